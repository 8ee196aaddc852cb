"""A training with compiled steps: its names, its network, its resume, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch

import bivallate as bv
from bivallate.errors import UserError
from bivallate.lower import compiled
from bivallate.parts import decode, encode
from bivallate.reproduce.definition import without_machine
from bivallate.run.config import Config
from bivallate.run.progress import Progress

torch_dynamo = pytest.importorskip("torch._dynamo")

REFUSED = ("yopo",)


class Power(Exception):
    """It was cut."""


class Cut(Progress):
    """Ends the training after so many minibatches."""

    def __init__(self, after: int) -> None:
        self.left = after

    def step(self, *_) -> None:
        self.left -= 1
        if not self.left:
            raise Power


@pytest.fixture
def eagerly(monkeypatch):
    """Traced as ever, and run without a compiler."""
    torch_dynamo.reset()
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    yield
    torch_dynamo.reset()


def trained(few: bv.data.Dataset, **settings):
    model = bv.models.create("tiny-cnn", num_classes=10, shape=few.shape, seed=0)
    data = few.but(train=few.train.subset(slice(0, 70)))
    options = {"epochs": 2, "batch_size": 32, "device": "cpu", "average": 0.5, **settings}
    return bv.train(model, data, bv.methods.at(bv.Linf(0.1), steps=2), **options)


@pytest.mark.filterwarnings("ignore")  # torch's own, of what it traces
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_training_keeps_plain_names_and_a_plain_network(
    few, eagerly, tmp_path, channels_last: bool
) -> None:
    run = trained(few, compile=True, out=tmp_path / "run", channels_last=channels_last)
    assert torch_dynamo.utils.counters["stats"]["unique_graphs"] >= 2, "attack and outer pass"
    plain = trained(few, channels_last=channels_last)
    assert list(run.model.state_dict()) == list(plain.model.state_dict())
    for a, b in zip(run.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-5)
    loaded = bv.load(tmp_path / "run", weights="last")
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), run.model.parameters(), strict=True))
    assert run.model._compiled_call_impl is None


@pytest.mark.parametrize("name", REFUSED)
def test_a_method_that_gains_nothing_is_refused(few, name: str) -> None:
    with pytest.raises(UserError, match="compile=true: yopo reads the first layer's output"):
        bv.train("tiny-cnn", few, name, eps=0.1, epochs=1, compile=True, device="cpu")


@pytest.mark.filterwarnings("ignore")
def test_it_is_resumed_to_the_bit(few, eagerly, tmp_path) -> None:
    whole = trained(few, compile=True, out=tmp_path / "whole")
    with pytest.raises(Power):
        trained(few, compile=True, out=tmp_path / "cut", progress=Cut(4), checkpoint_minutes=1e-9)
    torch_dynamo.reset()
    again = bv.resume(tmp_path / "cut", dataset=few.but(train=few.train.subset(slice(0, 70))))
    pairs = zip(whole.model.state_dict().values(), again.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_an_older_configuration_is_not_compiled() -> None:
    config = Config(bv.methods.at(bv.Linf(0.1)), compile=True, graphs=True)
    entry = json.loads(json.dumps(encode(config)))
    del entry["compile"], entry["graphs"]
    assert (decode(entry).compile, decode(entry).graphs) == (False, False)
    assert without_machine(config) == without_machine(decode(entry)), (
        "records of it count as the same definition"
    )
    with pytest.raises(UserError):
        config.set("compile", "perhaps")


def test_graphs_are_of_cuda(few) -> None:
    with pytest.raises(UserError, match="graphs=true needs CUDA, and this is cpu: train with graphs=false"):
        trained(few, graphs=True)
