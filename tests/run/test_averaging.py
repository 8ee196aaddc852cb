"""Averages of the weights: which weights enter, with which share, and BatchNorm's statistics."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.ranks import in_two_processes
from tests.run.test_resume import Killed, kill_after, metrics, same_files, settings, tiny
from torch import nn
from torch.optim.swa_utils import update_bn

import bivallate as bv
from bivallate import UserError, collective
from bivallate.run.averaging import EMA, SWA, Cyclic, take_statistics
from bivallate.run.config import Config
from bivallate.run.cycles import Cycles
from bivallate.run.identity import identity_of
from bivallate.types import Batch

METHOD = bv.methods.at(bv.Linf(0.15), steps=1, attack_mode="train")


def network() -> nn.Module:
    """With BatchNorm and dropout."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.1), nn.Linear(144, 10)
    )


def trained(out: Path | None, **more: Any) -> bv.Run:
    return bv.train(network(), tiny(), METHOD, out=out, **settings(epochs=6, **more))  # pyright: ignore[reportArgumentType]


KINDS = {
    "from the middle": (SWA(0.5), bv.Flat(), (3, 4, 5, 6)),
    "from the beginning": (SWA(0.0), bv.Flat(), (1, 2, 3, 4, 5, 6)),
    "the end alone": (SWA(1.0), bv.Flat(), (6,)),
    "cycles": (Cyclic(), Cycles(2, low=0.1), (2, 4, 6)),
    "late cycles": (Cyclic(0.5), Cycles(1, low=0.1, start=0.5), (4, 5, 6)),
}


@pytest.mark.parametrize("name", KINDS)
def test_an_average_is_the_mean_of_the_weights_it_is_of(name: str, tmp_path: Path) -> None:
    kind, rate, epochs = KINDS[name]
    run = trained(tmp_path / "run", average=kind, rate=rate, keep=epochs)
    kept = [bv.load(tmp_path / "run", f"epoch-{e}", model=network()).state_dict() for e in epochs]
    average = bv.load(tmp_path / "run", "average", model=network())
    for key, value in dict(average.named_parameters()).items():
        torch.testing.assert_close(value, sum(k[key] for k in kept) / len(kept))
    assert ("average_forward" in run.history[-1]) == (len(epochs) > 1)
    first = run.history[0]
    assert (first["average_clean"], first["average_robust"]) == (first["clean"], first["robust"])


def test_batchnorm_of_an_average_is_that_of_the_last_epochs_minibatches(tmp_path: Path) -> None:
    trained(tmp_path / "run", average=SWA(0.5), rate=bv.Flat())
    average = bv.load(tmp_path / "run", "ema", model=network())
    again = copy.deepcopy(average).train()
    again.network[4].p = 0.0  # pyright: ignore
    batches = bv.data.Batches(tiny().train, 40, 0, tiny().augment)
    update_bn((batch.x for batch in batches.epoch(5)), again)
    norm, oracle = average.network[1], again.network[1]  # pyright: ignore
    torch.testing.assert_close(norm.running_mean, oracle.running_mean)
    torch.testing.assert_close(norm.running_var, oracle.running_var)
    last = bv.load(tmp_path / "run", "last", model=network()).network[1]  # pyright: ignore
    assert not torch.allclose(norm.running_mean, last.running_mean)


@pytest.mark.parametrize(("kind", "steps"), [(SWA(0.3), 8), (Cyclic(), 14)])
def test_a_killed_run_ends_at_the_same_average(kind, steps, tmp_path, monkeypatch) -> None:
    more = {"average": kind, "rate": Cycles(2), "checkpoint_minutes": 1e-6}
    trained(tmp_path / "whole", **more)
    with monkeypatch.context() as patch:
        kill_after(patch, steps)
        with pytest.raises(Killed):
            trained(tmp_path / "killed", **more)
    bv.resume(tmp_path / "killed", dataset=tiny(), model=network())
    same_files(tmp_path / "whole", tmp_path / "killed", "model.safetensors", "ema.safetensors")
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "killed")


def test_a_frozen_norm_keeps_its_statistics_and_a_network_without_one_costs_nothing() -> None:
    batch = Batch(torch.rand(8, 1, 8, 8), torch.zeros(8).long(), torch.arange(8))
    model = network()
    model[1].frozen_norm = True  # pyright: ignore
    model[1].running_mean.fill_(7.0)  # pyright: ignore
    assert take_statistics(model, lambda: [batch]) == 0
    assert model[1].running_mean.eq(7).all()  # pyright: ignore
    assert take_statistics(nn.Linear(2, 2), lambda: [batch]) == 0


def test_a_number_is_an_exponential_average_and_is_written_as_one(tmp_path: Path) -> None:
    plain = Config(METHOD, average=0.9)
    for config in (Config(METHOD, average=EMA(0.9)), Config(METHOD).set("average", "0.9")):
        assert config == plain
        assert identity_of(config, "", "") == identity_of(plain, "", "")
    plain.write(tmp_path / "config.toml")
    assert "average = 0.9\n" in (tmp_path / "config.toml").read_text()
    assert Config(METHOD, average=None) == Config(METHOD).set("average", "none") == Config(METHOD)
    other = Config(METHOD).set("average", "SWA").set("average.start", "0.5")
    other.write(tmp_path / "other.toml")
    assert Config.read(tmp_path / "other.toml") == other == Config(METHOD, average=SWA(0.5))


@pytest.mark.parametrize(
    ("average", "rate", "said"),
    [
        (1.0, bv.Flat(), "decay in"),
        ("swa", bv.Flat(), "a part such as Averaging"),
        (SWA, bv.Flat(), r"SWA cannot serve .* average .* write SWA\(\.\.\.\)\. Known: Cyclic, EMA, SWA"),
        (Cyclic(), bv.Triangle(), "after epoch 6 of 6.*rate=Cycles"),
        (Cyclic(), bv.Flat(), "after epoch 6 of 6"),
    ],
)
def test_what_is_no_average_says_what_is(average, rate, said) -> None:
    with pytest.raises(UserError, match=said):
        trained(None, average=average, rate=rate)


def _statistics(rank: int, folder: Path) -> None:
    own = torch.arange(64.0).view(2, 1, 4, 8)[rank : rank + 1].repeat(2, 1, 1, 1)
    model = nn.BatchNorm2d(1)
    take_statistics(model, lambda: [Batch(own, torch.zeros(2).long(), torch.arange(2))])
    torch.save(model.running_mean, folder / f"{rank}.pt")
    assert collective.world_size() == 2


def test_processes_take_the_mean_of_their_statistics(tmp_path: Path) -> None:
    in_two_processes(_statistics, tmp_path)
    assert [float(torch.load(tmp_path / f"{rank}.pt")) for rank in range(2)] == [31.5, 31.5]
