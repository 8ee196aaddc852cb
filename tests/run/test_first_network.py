"""Training from given weights: where they come from, which of them stay, and which layers are frozen."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from packaging.version import Version
from safetensors.torch import load_file, save_file
from tests.run.runs import Killed, copy, digits, kill_at, settings

import bivallate as bv
from bivallate import models
from bivallate.cli import run
from bivallate.errors import UserError
from bivallate.evaluation.points import model_fingerprint
from bivallate.models.layers import freeze, parameters_matching
from bivallate.run.config import Config, Model
from bivallate.run.first_network import begin_network
from bivallate.run.initial import Init
from bivallate.run.optim import SGD, AdamW, optimizer_of

AT = bv.methods.at(bv.Linf(0.15), steps=1)
NAMES = [str(k) for k in range(10)]


@pytest.fixture(scope="module")
def data() -> bv.data.Dataset:
    return digits(48)


@pytest.fixture(scope="module")
def places(tmp_path_factory, data) -> dict[str, str]:
    """The same network wherever weights may lie: its place by kind."""
    root = tmp_path_factory.mktemp("weights")
    net = models.create("preact-resnet18-narrow", num_classes=10, shape=data.shape, mean=0.3, std=0.4, seed=3)
    for module in net.modules():  # as if it were trained
        if isinstance(module, torch.nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.uniform_(-0.1, 0.1)
    models.save(net, root / "folder", classes=NAMES)
    models.save(net, root / "alone.safetensors", classes=NAMES)
    (root / "bare").mkdir()
    public = {**net.network.state_dict(), "mu": net.normalise.mean, "sigma": net.normalise.std}
    save_file(public, root / "bare" / "state.safetensors")
    torch.save({"state_dict": net.network.state_dict()}, root / "bare" / "state.pt")
    run_of = root / "run"
    shutil.copytree(root / "folder", run_of)
    (run_of / "best.safetensors").write_bytes((run_of / "model.safetensors").read_bytes())
    return {
        "a folder": str(root / "folder"),
        "a run": str(run_of),
        "a file": str(root / "alone.safetensors"),
        "the hub": "hub:owner/net",
        "a bare state dict": str(root / "bare" / "state.safetensors"),
        "a checkpoint of torch": str(root / "bare" / "state.pt"),
    }


def plan(place: str, **more) -> Config:
    return Config(AT, init=Init(place, **more), model=Model("linear"))


OLD = Version(torch.__version__) < Version("2.10")  # then no .pt is read
KINDS = (
    *("a folder", "a run", "a file", "the hub", "a bare state dict"),
    pytest.param("a checkpoint of torch", marks=pytest.mark.skipif(OLD, reason="needs PyTorch 2.10")),
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_begins_with_the_weights_wherever_they_lie(kind, places, data, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: places["a folder"])
    bare = kind in ("a bare state dict", "a checkpoint of torch")
    told: list[str] = []
    config, network = begin_network(
        plan(places[kind]), data, "preact-resnet18-narrow" if bare else None, told.append
    )
    source = models.load(places["a folder"])
    x = torch.rand(8, *data.shape)
    mean = 0.0 if kind == "a checkpoint of torch" else 0.3  # which holds no normalisation
    expected = source.network((x - mean) / (0.4 if mean else 1.0))
    torch.testing.assert_close(network.eval()(x), expected, rtol=1e-5, atol=1e-5)
    assert config.model.name == "preact-resnet18-narrow"
    assert config.model.normalise == bool(mean)
    assert len(config.init.fingerprint) == 32
    assert config.init.fingerprint[:12] in told[0]
    again = begin_network(config, data, None, told.append)[1]  # as `train --config` repeats it
    assert model_fingerprint(again) == model_fingerprint(network)


def test_a_head_of_other_classes_is_new_and_said(places, data):
    four = data.but(classes=list("abcd"))
    told: list[str] = []
    network = begin_network(plan(places["a folder"]), four, None, told.append)[1]
    assert network.network.linear.weight.shape[0] == 4
    assert "the head linear is new: 10 classes before, 4 now" in told
    source = models.load(places["a folder"])
    for (name, own), theirs in zip(network.state_dict().items(), source.state_dict().values(), strict=True):
        assert ("linear" in name) != (own.shape == theirs.shape and torch.equal(own, theirs)), name


def test_a_head_of_the_same_classes_follows_their_order_and_one_of_others_is_new(places, data):
    source = models.load(places["a folder"]).network.linear.weight
    told: list[str] = []

    def head(classes, **init):
        return begin_network(plan(places["a folder"], **init), data.but(classes=classes), None, told.append)[
            1
        ]

    turned = head(NAMES[::-1]).network.linear.weight
    assert torch.equal(turned, source.flip(0))
    other = [f"class {k}" for k in range(10)]
    assert not torch.equal(head(other).network.linear.weight, source)
    assert "the classes have other names" in told[-1]
    assert torch.equal(head(other, head="keep").network.linear.weight, source)
    assert not torch.equal(head(NAMES, head="new").network.linear.weight, source)
    with pytest.warns(UserWarning, match="head linear is new"):  # nobody listens
        begin_network(plan(places["a folder"]), data.but(classes=other), None, None)


def test_weights_that_cannot_serve_are_refused_in_words(places, data, tmp_path):
    colour = data.but(shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)
    pair = data.but(classes=["a", "b"])
    (tmp_path / "x.safetensors").write_bytes(b"PK\x03\x04")
    (tmp_path / "x.txt").write_text("weights")
    cases = {
        "no weights at .*nowhere": (plan(str(tmp_path / "nowhere")), data, None),
        "say --model": (plan(places["a bare state dict"]), data, None),
        "holds preact-resnet18-narrow, not linear": (plan(places["a folder"]), data, "linear"),
        "--set data.channels=1": (plan(places["a folder"]), colour, None),
        "the head .* cannot be kept": (plan(places["a folder"], head="keep"), pair, None),
        "does not hold weights": (plan(str(tmp_path / "x.txt")), data, "resnet18"),
        "pickle|zip|not": (plan(str(tmp_path / "x.safetensors")), data, "resnet18"),
        "unknown weights": (plan(places["a run"], which="bset"), data, None),
        "holds another architecture": (plan(places["a bare state dict"]), data, "preact-resnet18"),
        "no longer holds the weights": (plan(places["a folder"], fingerprint="0" * 32), data, None),
    }
    for words, (config, dataset, architecture) in cases.items():
        named = dataclasses.replace(config, model=Model("preact-resnet18-narrow"))
        with pytest.raises(UserError, match=words):
            begin_network(
                named if config.init.fingerprint else config, dataset, architecture, lambda text: None
            )


@pytest.mark.parametrize("name", ["at", "fast-bat", "free-at", "at-awp", "bilaw", "done-adam"])
def test_what_is_frozen_stays_to_the_bit_and_the_rest_learns(name, places, data):
    method = bv.methods.entries.create(name, bv.Linf(0.15))  # pyright: ignore[reportAttributeAccessIssue]
    frozen = ("stem", "layer1", "layer2.*")
    done = bv.train(
        None, data, method, init=places["a folder"], freeze=frozen, **settings(epochs=1, average=0.5)
    )
    before, after = models.load(places["a folder"]).state_dict(), done.model.state_dict()
    still = {k for k in after if k.split(".")[1] in ("conv1", "layer1", "layer2")}
    assert len(still) > 20
    for key in after.keys() - {"normalise.mean", "normalise.std"}:
        if "num_batches" not in key:
            assert torch.equal(before[key], after[key]) == (key in still), key


def test_patterns_mean_layers_and_nothing_else():
    net = models.create("preact-resnet18-narrow", num_classes=10, shape=(1, 8, 8))
    every = [name for name, _ in net.named_parameters()]
    assert parameters_matching(net, "head") == ["network.linear.weight", "network.linear.bias"]
    assert parameters_matching(net, "stem") == ["network.conv1.weight"]
    assert parameters_matching(net, "!head") == every[:-2]
    assert parameters_matching(net, "*") == every
    assert parameters_matching(net, "layer1.0") == [
        name for name in every if name.startswith("network.layer1.0.")
    ]
    for wrong, words in (("layre1", "did you mean 'layer1'"), ("", "no parameter"), ("!zzz", "no parameter")):
        with pytest.raises(UserError, match=words):
            parameters_matching(net, wrong)
    with pytest.raises(UserError, match="nothing is left"):
        freeze(net, ("*",))


@pytest.mark.parametrize("kind", [SGD, AdamW])
def test_groups_keep_their_ratio_and_the_first_pattern_counts(kind):
    net = models.create("tiny-cnn", num_classes=10, shape=(1, 8, 8))
    optimizer = optimizer_of(kind(0.1, groups=("head:10", "stem:1/10", "*:0.5")), net)
    rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    assert len(rates) == len(list(net.parameters()))
    found = [rates[id(p)] for p in net.parameters()]
    assert found == pytest.approx([0.01, 0.01, *[0.05] * 4, 1.0, 1.0])
    for wrong in (("head",), ("head:0",), ("head:x",), ("zzz:2",), "head:2"):
        with pytest.raises(UserError):
            kind(0.1, groups=wrong).make(net)


def tuned(out: Path | None, places: dict[str, str], **more):
    optimizer = SGD(0.05, groups=("head:3",))
    steady = settings(optimizer=optimizer, **more)
    return bv.train(None, digits(), AT, init=places["a folder"], freeze="stem", out=out, **steady)


@pytest.fixture(scope="module")
def whole(places, tmp_path_factory) -> Path:
    """A run that nobody has interrupted."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    tuned(out, places)
    return out


@pytest.mark.parametrize("steps", [0, 4, 7])
def test_a_killed_run_goes_on_to_the_bit_whatever_became_of_the_first_weights(
    steps, places, whole, tmp_path, monkeypatch
):
    own = dict(places, **{"a folder": str(copy(Path(places["a folder"]), tmp_path / "first"))})
    with monkeypatch.context() as patch:
        kill_at(patch, steps)
        with pytest.raises(Killed):
            tuned(tmp_path / "killed", own)
    shutil.rmtree(tmp_path / "first")
    bv.resume(tmp_path / "killed", dataset=digits())
    for name in ("model", "ema", "best"):
        one, other = (load_file(folder / f"{name}.safetensors") for folder in (whole, tmp_path / "killed"))
        assert all(torch.equal(one[k], other[k]) for k in one), name
        bv.load(tmp_path / "killed", {"model": "last"}.get(name, name))  # manifest and weights agree
    described = json.loads((tmp_path / "killed" / "model.json").read_text())
    init = described["config"]["init"]
    assert init["weights"] == "first"  # no place of this machine
    assert init["fingerprint"] == model_fingerprint(models.load(places["a folder"]))
    assert init["freeze"] == ["stem"]


def test_the_command_line_goes_from_plain_training_to_robust(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = ["--data", "digits", "--epochs", "1", "--threads", "1", "--quiet"]
    assert run(["train", "plain", *short, "--out", "plain", "--model", "linear"]) == 0
    more = ["--set", "optimizer.groups=head:10", "--recipe", "finetune", "--quiet"]
    assert run(["train", "at", *short[:-1], "--init", "plain", "--out", "tuned", *more]) == 0
    written = Config.read(tmp_path / "tuned" / "config.toml")
    assert (written.init.which, written.init.weights) == ("last", str(tmp_path / "plain"))
    assert (written.model.name, written.recipe) == ("linear", "finetune")
    assert written.optimizer == dataclasses.replace(written.optimizer, groups=("head:10",))
    assert run(["train", "--config", "tuned/config.toml", "--out", "again", "--quiet"]) == 0
    same_files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("tuned", "again")]
    assert same_files[0] == same_files[1]
    assert (
        run(["train", "--config", "tuned/config.toml", "--init", "tuned", "--out", "third", "--quiet"]) == 0
    )
    assert Config.read(tmp_path / "third" / "config.toml").init.which == "best"
    capsys.readouterr()
    assert run(["train", "at", *short, "--init", "plain", "--freeze", "sten", "--out", "x"]) == 2
    assert "did you mean 'stem'" in capsys.readouterr().err
    assert run(["train", "at", *short, "--init", "plane", "--out", "x"]) == 2
    assert "no weights at plane" in capsys.readouterr().err


def test_init_in_python_says_what_it_cannot_do(data):
    net = models.create("linear", num_classes=10, shape=data.shape)
    for call, words in (
        (lambda: bv.train(net, data, AT, init="x"), "has its weights"),
        (lambda: bv.train(None, data, AT), "name a network"),
        (lambda: bv.train(None, data, AT, init=bv.train(net, data, AT, epochs=1)), "kept nothing on disk"),
    ):
        with pytest.raises(UserError, match=words):
            call()


def test_pretrained_networks_of_timm_are_read_by_timm(tmp_path, data):
    timm = pytest.importorskip("timm")
    own = timm.create_model("test_resnet.r160_in1k", pretrained=False)
    file = tmp_path / "weights.safetensors"
    save_file(own.state_dict(), file)
    registry = timm.models._registry._model_pretrained_cfgs
    kept = registry["test_resnet.r160_in1k"]
    registry["test_resnet.r160_in1k"] = dataclasses.replace(kept, file=str(file), hf_hub_id=None, url="")
    try:
        told: list[str] = []
        network = begin_network(plan("timm:test_resnet.r160_in1k"), data, None, told.append)[1]
    finally:
        registry["test_resnet.r160_in1k"] = kept
    assert "the head fc is new: 1000 classes before, 10 now" in told
    inner, source = network.network.state_dict(), own.state_dict()
    taken = [k for k in source if not k.startswith("fc.") and k != "conv1.0.weight"]
    assert all(torch.equal(inner[k], source[k]) for k in taken if inner[k].shape == source[k].shape)
    assert network.num_classes == 10
