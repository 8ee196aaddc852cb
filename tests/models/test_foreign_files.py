"""Checkpoints of other projects are read as tensors alone, whatever they are wrapped in."""

import pickle
import sys

import pytest
import torch
from safetensors.torch import save_file
from tests.models.conftest import SHAPE, lived_in
from torch import nn

from bivallate import models
from bivallate.errors import UserError


def plain_state():
    return dict(lived_in("preact-resnet18", final_bn=False).network.state_dict())


WRAPPINGS = {
    "bare": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "epoch": 7, "best": 0.5},
    "parallel": lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
    "nested": lambda s: {"model": {f"module.model.{k}": v for k, v in s.items()}},
    "last": lambda s: {"last": s, "best": {k: v * 0 for k, v in s.items()}},
    "uncounted": lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
    "an attacker's": lambda s: {
        "model": {
            **{f"module.attacker.model.{k}": v.clone() for k, v in s.items()},
            **{f"module.model.{k}": v for k, v in s.items()},
        }
    },
    "an attacker's, last": lambda s: {
        **{f"module.model.{k}": v for k, v in s.items()},
        **{f"module.attacker.model.{k}": v.clone() for k, v in s.items()},
    },
    "an attacker's alone": lambda s: {f"attacker.model.{k}": v for k, v in s.items()},
    "backbone": lambda s: {"state_dict": {f"backbone.{k}": v for k, v in s.items()}},
    "encoder": lambda s: {f"module.encoder.{k}": v for k, v in s.items()},
    "second in a sequence": lambda s: {f"module.1.{k}": v for k, v in s.items()},
    "compiled": lambda s: {f"_orig_mod.module.{k}": v for k, v in s.items()},
    "averaged": lambda s: {"n_averaged": torch.tensor(3), **{f"module.{k}": v for k, v in s.items()}},
    "averaged, parallel": lambda s: {
        "module.n_averaged": torch.tensor(3),
        **{f"module.module.{k}": v for k, v in s.items()},
    },
    "ema": lambda s: {"ema": s, "epoch": 3},
    "weights": lambda s: {"weights": {f"module.{k}": v for k, v in s.items()}, "params": {"lr": 0.1}},
    "params": lambda s: {"params": {"state_dict": s}},
    "model and ema": lambda s: {"ema": {k: v * 0 for k, v in s.items()}, "model": s},
    "half": lambda s: {k: v.half() if v.is_floating_point() else v for k, v in s.items()},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_wrappings_are_undone(wrapping, tmp_path):
    state = plain_state()
    torch.save(WRAPPINGS[wrapping](state), tmp_path / "x.pt")
    model = models.load_robustbench(tmp_path / "x.pt", "preact-resnet18")
    expected = state["layer4.1.conv2.weight"]
    expected = expected.half().float() if wrapping == "half" else expected
    assert torch.equal(model.network.layer4[1].conv2.weight, expected)
    assert not model.training
    assert model.spec["final_bn"] is False
    assert isinstance(model.normalise, nn.Identity)


@pytest.mark.parametrize(
    "names",
    [
        ("mu", "sigma"),
        ("mean", "std"),
        ("normalize.mean", "normalize.std"),
        ("normalizer.new_mean", "normalizer.new_std"),
        ("attacker.normalize.new_mean", "attacker.normalize.new_std"),
        ("0.mean", "0.std"),
        ("norm.mean", "norm.std"),
        ("normalizer.mean", "normalizer.std"),
        ("normalization.mean", "normalization.std"),
    ],
)
def test_normalisation_is_found_under_its_names(names, tmp_path):
    state = plain_state()
    state[names[0]] = torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)
    state[names[1]] = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)
    save_file({f"module.{k}": v for k, v in state.items()}, tmp_path / "x.safetensors")
    model = models.load_robustbench(tmp_path / "x.safetensors", "preact-resnet18")
    assert model.normalise.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert model.normalise.std.flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])


@pytest.mark.parametrize("prefix", ["", "network."])
@pytest.mark.parametrize(
    "name", ["linear", "fc1", "tiny-cnn", "small-cnn", "mnist-net", "preact-resnet18-narrow"]
)
def test_the_head_is_found_where_the_files_tensors_are_sorted_by_name(name, prefix, tmp_path):
    model = lived_in(name, (1, 28, 28), num_classes=7)
    state = {f"{prefix}{key}": value.contiguous() for key, value in model.network.state_dict().items()}
    save_file(state, tmp_path / "x.safetensors")
    again = models.load_robustbench(tmp_path / "x.safetensors", name, shape=(1, 28, 28))
    x = torch.rand(2, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))


OWN = """
from torch import nn
class Net(nn.Module):
    def __init__(self, {parameter}):
        super().__init__()
        self.head = nn.Linear(64, {classes})
        self.stem = nn.Linear(64, 64)
    def forward(self, x):
        return self.head(self.stem(x.flatten(1)))
"""


@pytest.mark.parametrize(("parameter", "classes"), [("num_classes", "num_classes"), ("width=1", "3")])
def test_the_head_of_an_own_network_is_found_too(parameter, classes, tmp_path, monkeypatch):
    (tmp_path / "net_of_two_layers.py").write_text(OWN.format(parameter=parameter, classes=classes))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "net_of_two_layers", raising=False)
    name = "net_of_two_layers:Net"
    model = models.create(name, num_classes=3, shape=(1, 8, 8), seed=1).eval()
    save_file(model.network.state_dict(), tmp_path / "x.safetensors")
    again = models.load_robustbench(tmp_path / "x.safetensors", name, shape=(1, 8, 8))
    assert torch.equal(again.network.head.weight, model.network.head.weight)
    sys.modules.pop("net_of_two_layers")


TWO_NETWORKS = [
    ("model.", "net."),
    ("net.", "model."),
    ("encoder.", "backbone."),
    ("", "model."),
    ("module.model.", "module."),
]


@pytest.mark.parametrize(("one", "two"), TWO_NETWORKS)
def test_a_file_of_two_networks_is_refused_with_both_prefixes(one, two, tmp_path):
    student = plain_state()
    teacher = {k: v + 0.5 if v.is_floating_point() else v for k, v in student.items()}
    both = {f"{one}{k}": v for k, v in student.items()} | {f"{two}{k}": v for k, v in teacher.items()}
    torch.save({"state_dict": both}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=f"begin with '{one}' and with '{two}' .*keep the tensors of one"):
        models.load_robustbench(tmp_path / "x.pt", "preact-resnet18")


def test_equal_copies_under_two_prefixes_are_one_network_even_with_nan(tmp_path):
    state = plain_state()
    state["linear.bias"] = torch.full_like(state["linear.bias"], torch.nan)
    save_file(
        {f"{p}{k}": v.clone() for p in ("", "model.") for k, v in state.items()}, tmp_path / "x.safetensors"
    )
    model = models.load_robustbench(tmp_path / "x.safetensors", "preact-resnet18")
    assert model.network.linear.bias.isnan().all()


def written_with_statistics(path):
    state = plain_state() | {"mu": torch.tensor([0.1, 0.2, 0.3]), "sigma": torch.tensor([0.4, 0.5, 0.6])}
    save_file(state, path)
    return path


def test_a_normalisation_that_the_file_holds_wins_over_the_datas_with_a_note(tmp_path):
    path, told = written_with_statistics(tmp_path / "x.safetensors"), []
    data = ([0.5] * 3, [0.25] * 3)
    model = models.load_robustbench(path, "preact-resnet18", fallback=data, tell=told.append)
    assert model.normalise.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert len(told) == 1
    assert (
        "mean=[0.1, 0.2, 0.3] and std=[0.4, 0.5, 0.6], which is taken; that of the data, mean=[0.5" in told[0]
    )
    same = ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    models.load_robustbench(path, "preact-resnet18", fallback=same, tell=told.append)
    assert len(told) == 1
    save_file(plain_state(), path)
    model = models.load_robustbench(path, "preact-resnet18", fallback=data, tell=told.append)
    assert model.normalise.mean.flatten().tolist() == [0.5] * 3
    assert len(told) == 1


@pytest.mark.parametrize(
    "given", [{"mean": [0.5] * 3, "std": [0.25] * 3}, {"std": [0.4, 0.5, 0.7]}, {"mean": [0.1]}]
)
def test_another_normalisation_than_the_files_is_refused_with_both(given, tmp_path):
    path = written_with_statistics(tmp_path / "x.safetensors")
    with pytest.raises(UserError) as raised:
        models.load_robustbench(path, "preact-resnet18", **given)
    said = str(raised.value)
    assert "its own, mean=[0.1, 0.2, 0.3] and std=[0.4, 0.5, 0.6]" in said
    assert all(f"{name}={value}" in said for name, value in given.items())


def test_the_files_own_normalisation_may_be_given_too(tmp_path):
    path = written_with_statistics(tmp_path / "x.safetensors")
    model = models.load_robustbench(path, "preact-resnet18", mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])
    assert model.normalise.std.flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])


def test_the_trades_codes_second_first_block_is_left_out(tmp_path):
    state = dict(lived_in("wrn-16-8").network.state_dict())
    state |= {f"sub_{k}": v for k, v in state.items() if k.startswith("block1.")}
    torch.save(state, tmp_path / "x.pt")
    model = models.load_robustbench(tmp_path / "x.pt", "wrn-16-8")
    assert torch.equal(model.network.fc.weight, state["fc.weight"])


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


def bomb(path):
    path.write_bytes(pickle.dumps(Bomb()))


def zipped_bomb(path):
    torch.save({"state_dict": Bomb()}, path)


def whole_module(path):
    torch.save(nn.Linear(2, 2), path)


def text(path):
    path.write_text("not a checkpoint\n")


def truncated(path):
    torch.save(plain_state(), path)
    path.write_bytes(path.read_bytes()[:1000])


def listed(path):
    torch.save([torch.zeros(1)], path)


def elsewhere(path):
    torch.save({"ema_weights": {"a": torch.zeros(1)}, "epoch": 3}, path)


def ambiguous(path):
    torch.save({"ema": {"a": torch.zeros(1)}, "params": {"a": torch.ones(1)}, "epoch": 3}, path)


def without_tensors(path):
    torch.save({"epoch": 3, "params": {"lr": 0.1}}, path)


def headless(path):
    torch.save({"conv1.weight": torch.zeros(64, 3, 3, 3)}, path)


def numbered(path):
    torch.save(dict(enumerate(plain_state().values())), path)


def prefixed(path):
    torch.save({f"unheard.{k}": v for k, v in plain_state().items()}, path)


def other(path):
    torch.save(dict(models.create("resnet18", num_classes=10, shape=SHAPE).network.state_dict()), path)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (bomb, "more than tensors"),
        (zipped_bomb, "more than tensors"),
        (whole_module, "more than tensors"),
        (text, "."),
        (truncated, "truncated"),
        (listed, "holds a list"),
        (elsewhere, r"tensors are in its ema_weights\. In Python name one as entry="),
        (ambiguous, r"tensors are in its ema, params\. .*save it as a file of its own"),
        (without_tensors, "holds no state dict: its entries are epoch, params"),
        (headless, "no linear layer"),
        (numbered, "names its tensors by ints, such as 0"),
        (
            prefixed,
            r"it adds network.unheard.* taken off its names: none; known are module., .*attacker., 1.$",
        ),
        (other, "another architecture than preact-resnet18"),
        (lambda path: None, "No such file"),
    ],
)
def test_other_files_are_refused_and_nothing_is_executed(write, words, tmp_path):
    path = tmp_path / "x.pt"
    write(path)
    with pytest.raises(UserError, match=words):
        models.load_robustbench(path, "preact-resnet18")


@pytest.mark.parametrize("version", ["2.4.1+cu121", "2.5.1", "2.6.0", "2.9.1"])
def test_an_old_pytorch_reads_safetensors_only(version, tmp_path, monkeypatch):
    model = models.create("preact-resnet18", num_classes=4, shape=SHAPE, seed=0)
    for name in "x.pt", "x.safetensors":
        models.export_robustbench(model, tmp_path / name)
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(UserError, match=r"2\.10.*update PyTorch, or convert"):
        models.load_robustbench(tmp_path / "x.pt", "preact-resnet18")
    models.load_robustbench(tmp_path / "x.safetensors", "preact-resnet18")


@pytest.mark.parametrize("version", ["2.10.0", "2.10.0a0+git1234", "3.0"])
def test_a_pytorch_that_was_mended_reads_tensors_of_a_pickle(version, tmp_path, monkeypatch):
    models.export_robustbench(
        models.create("preact-resnet18", num_classes=4, shape=SHAPE, seed=0), tmp_path / "x.pt"
    )
    monkeypatch.setattr(torch, "__version__", version)
    assert models.load_robustbench(tmp_path / "x.pt", "preact-resnet18").num_classes == 4


def test_an_entry_can_be_named(tmp_path):
    state = plain_state()
    torch.save({"ema_weights": state, "state_dict": {k: v * 0 for k, v in state.items()}}, tmp_path / "x.pt")
    model = models.load_robustbench(tmp_path / "x.pt", "preact-resnet18", entry="ema_weights")
    assert torch.equal(model.stem.weight, state["conv1.weight"])
    with pytest.raises(UserError, match="it has ema_weights, state_dict"):
        models.load_robustbench(tmp_path / "x.pt", "preact-resnet18", entry="ema")


PREFIXED = ("module.", "attacker.", "backbone.", "model.", "1.", "_orig_mod.", "module._orig_mod.model.", "")


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("prefix", PREFIXED)
def test_prefixes_that_were_taken_off_are_said(prefix, suffix, tmp_path):
    path, told = tmp_path / f"x.{suffix}", []
    state = {f"{prefix}{key}": value for key, value in plain_state().items()}
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    model = models.load_robustbench(path, "preact-resnet18", tell=told.append)
    assert all(torch.equal(model.network.state_dict()[k], v) for k, v in plain_state().items())
    wanted = f"x.{suffix}: taken off the names of its tensors: {prefix}"
    assert told == ([wanted] if prefix else [])
