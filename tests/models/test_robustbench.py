"""Public checkpoints: their keys, outputs and wrappers; nothing in them is executed."""

import pickle

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from bivallate import models
from bivallate.errors import UserError

SHAPE = (3, 32, 32)


def bn(state, at, x):
    names = ("running_mean", "running_var", "weight", "bias")
    return F.batch_norm(x, *(state[f"{at}.{name}"] for name in names))


def conv(state, at, x, stride=1):
    weight = state[f"{at}.weight"]
    return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)


def strides(blocks):
    for stage, depth in enumerate(blocks, start=1):
        for block in range(depth):
            yield f"layer{stage}.{block}", 2 if block == 0 and stage > 1 else 1


def public_resnet(state, x, blocks, bottleneck=False, shortcut="shortcut", head="linear", large=False):
    """ResNet by its public keys, written straight down."""
    x = bn(state, "bn1", conv(state, "conv1", x, 2 if large else 1)).relu()
    x = F.max_pool2d(x, 3, 2, 1) if large else x
    for at, stride in strides(blocks):
        first, second = (1, stride) if bottleneck else (stride, 1)
        out = bn(state, f"{at}.bn1", conv(state, f"{at}.conv1", x, first)).relu()
        out = bn(state, f"{at}.bn2", conv(state, f"{at}.conv2", out, second))
        if bottleneck:
            out = bn(state, f"{at}.bn3", conv(state, f"{at}.conv3", out.relu()))
        if f"{at}.{shortcut}.0.weight" in state:
            x = bn(state, f"{at}.{shortcut}.1", conv(state, f"{at}.{shortcut}.0", x, stride))
        x = (out + x).relu()
    return F.linear(x.mean((2, 3)), state[f"{head}.weight"], state[f"{head}.bias"])


def public_preact(state, x, blocks, second_version=False, bn_before_fc=False, bottleneck=False):
    """PreActResNet by its public keys; the second version feeds the activation to the shortcut."""
    x = conv(state, "conv1", x)
    for at, stride in strides(blocks):
        out = bn(state, f"{at}.bn1", x).relu()
        if f"{at}.shortcut.0.weight" in state:
            x = conv(state, f"{at}.shortcut.0", out if second_version else x, stride)
        out = conv(state, f"{at}.conv1", out, 1 if bottleneck else stride)
        out = conv(state, f"{at}.conv2", bn(state, f"{at}.bn2", out).relu(), stride if bottleneck else 1)
        if bottleneck:
            out = conv(state, f"{at}.conv3", bn(state, f"{at}.bn3", out).relu())
        x = out + x
    x = bn(state, "bn", x).relu() if bn_before_fc else x
    return F.linear(F.avg_pool2d(x, 4).flatten(1), state["linear.weight"], state["linear.bias"])


def public_wide(state, x, n):
    """WideResNet of the TRADES family by its public keys."""
    x = conv(state, "conv1", x)
    for stage in (1, 2, 3):
        for block in range(n):
            at, stride = f"block{stage}.layer.{block}", 2 if block == 0 and stage > 1 else 1
            out = bn(state, f"{at}.bn1", x).relu()
            if f"{at}.convShortcut.weight" in state:
                x = conv(state, f"{at}.convShortcut", out, stride)
            out = conv(state, f"{at}.conv1", out, stride)
            x = x + conv(state, f"{at}.conv2", bn(state, f"{at}.bn2", out).relu())
    x = bn(state, "bn1", x).relu()
    return F.linear(F.avg_pool2d(x, 8).flatten(1), state["fc.weight"], state["fc.bias"])


BASIC, DEEP = (2, 2, 2, 2), (3, 4, 6, 3)
EXPORTS = [
    ("resnet18", {}, "ResNet(BasicBlock, [2, 2, 2, 2]", lambda s, x: public_resnet(s, x, BASIC)),
    ("resnet50", {}, "ResNet(Bottleneck, [3, 4, 6, 3]", lambda s, x: public_resnet(s, x, DEEP, True)),
    (
        "preact-resnet18",
        {},
        "PreActResNet(PreActBlock, [2, 2, 2, 2]",
        lambda s, x: public_preact(s, x, BASIC, False, True),
    ),
    (
        "preact-resnet18",
        {"shortcut": "activated", "final_bn": False},
        "PreActResNet(PreActBlockV2, [2, 2, 2, 2]",
        lambda s, x: public_preact(s, x, BASIC, True, False),
    ),
    (
        "preact-resnet50",
        {},
        "PreActResNet(PreActBottleneck, [3, 4, 6, 3]",
        lambda s, x: public_preact(s, x, DEEP, True, True, True),
    ),
    ("wrn-16-8", {}, "WideResNet(depth=16, widen_factor=8", lambda s, x: public_wide(s, x, 2)),
]


def lived_in(name, shape=SHAPE, num_classes=10, **options):
    torch.manual_seed(0)
    model = models.create(name, num_classes=num_classes, shape=shape, **options).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return model


@pytest.mark.parametrize(("name", "options", "constructor", "public"), EXPORTS)
def test_the_public_definition_computes_our_logits_from_our_export(
    name, options, constructor, public, tmp_path
):
    model = lived_in(name, mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26), **options)
    path = tmp_path / "net.safetensors"
    assert models.export_robustbench(model, path).startswith(constructor)
    state = load_file(path)
    x = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(x)
        got = public(state, (x - state["mu"]) / state["sigma"])
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    chosen = {"shortcut": options["shortcut"]} if "shortcut" in options else {}
    again = models.load_robustbench(path, name, **chosen)
    with torch.no_grad():
        assert torch.equal(again(x), expected)


def test_imagenet_networks_travel_under_torchvisions_names(tmp_path):
    statistics = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    model = lived_in("resnet18", (3, 64, 64), stem="imagenet", **statistics)
    assert (
        models.export_robustbench(model, tmp_path / "x.pt") == "torchvision.models.resnet18(num_classes=10)"
    )
    state = torch.load(tmp_path / "x.pt", weights_only=True)["state_dict"]
    assert {"fc.weight", "fc.bias", "layer2.0.downsample.0.weight", "layer2.0.downsample.1.bias"} <= set(
        state
    )
    assert not [key for key in state if "mu" in key or "normalise" in key]
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        got = public_resnet(state, model.normalise(x), BASIC, False, "downsample", "fc", True)
        torch.testing.assert_close(got, model(x), rtol=1e-4, atol=1e-5)
        again = models.load_robustbench(tmp_path / "x.pt", "resnet18", shape=(3, 64, 64), **statistics)
        assert torch.equal(again(x), model(x))


def of_bn(at, channels):
    each = {f"{at}.{name}": (channels,) for name in ("weight", "bias", "running_mean", "running_var")}
    return each | {f"{at}.num_batches_tracked": ()}


def of_leaderboard_resnet(blocks, bottleneck=False, preact=False, final_bn=False):
    """Keys and shapes of its ResNet and PreActResNet (architectures/resnet.py at commit 3c3ee54)."""
    found, planes, wide = {"conv1.weight": (64, 3, 3, 3)}, 64, 4 if bottleneck else 1
    found |= {} if preact else of_bn("bn1", 64)
    for stage, depth in enumerate(blocks):
        width = 64 * 2**stage
        for block in range(depth):
            at, out = f"layer{stage + 1}.{block}", width * wide
            sizes = [(width, planes, 1), (width, width, 3), (out, width, 1)]
            sizes = sizes if bottleneck else [(width, planes, 3), (width, width, 3)]
            for k, (to, of, kernel) in enumerate(sizes, 1):
                found[f"{at}.conv{k}.weight"] = (to, of, kernel, kernel)
                found |= of_bn(f"{at}.bn{k}", of if preact else to)
            if block == 0 and (stage > 0 or planes != out):
                found[f"{at}.shortcut.0.weight"] = (out, planes, 1, 1)
                found |= {} if preact else of_bn(f"{at}.shortcut.1", out)
            planes = out
    found |= of_bn("bn", planes) if final_bn else {}
    return found | {"linear.weight": (10, planes), "linear.bias": (10,)}


def of_leaderboard_wide(depth, factor):
    """Keys and shapes of its WideResNet (architectures/wide_resnet.py at commit 3c3ee54)."""
    found, planes = {"conv1.weight": (16, 3, 3, 3)}, 16
    for stage in range(3):
        out = 16 * factor * 2**stage
        for block in range((depth - 4) // 6):
            at = f"block{stage + 1}.layer.{block}"
            found |= of_bn(f"{at}.bn1", planes) | of_bn(f"{at}.bn2", out)
            found |= {f"{at}.conv1.weight": (out, planes, 3, 3), f"{at}.conv2.weight": (out, out, 3, 3)}
            if planes != out:
                found[f"{at}.convShortcut.weight"] = (out, planes, 1, 1)
            planes = out
    return found | of_bn("bn1", planes) | {"fc.weight": (10, planes), "fc.bias": (10,)}


STRICT = [
    ("resnet18", {}, of_leaderboard_resnet(BASIC)),
    ("resnet50", {}, of_leaderboard_resnet(DEEP, bottleneck=True)),
    ("preact-resnet18", {"final_bn": False}, of_leaderboard_resnet(BASIC, preact=True)),
    ("preact-resnet18", {"shortcut": "activated"}, of_leaderboard_resnet(BASIC, preact=True, final_bn=True)),
    ("wrn-16-8", {}, of_leaderboard_wide(16, 8)),
]


@pytest.mark.parametrize(("name", "options", "theirs"), STRICT)
def test_the_export_has_the_keys_and_shapes_that_a_strict_load_there_needs(name, options, theirs, tmp_path):
    """`mu` and `sigma` are buffers of (1, 3, 1, 1) in all of its classes that normalise (model_zoo/cifar10.py
    at commit 011e54c); its loader cuts a key where `module.` or `model.` stand in it (utils.py at 0132419).
    """
    model = models.create(name, num_classes=10, shape=SHAPE, mean=[0.5] * 3, std=[0.25] * 3, **options)
    models.export_robustbench(model, tmp_path / "net.safetensors")
    ours = {key: tuple(value.shape) for key, value in load_file(tmp_path / "net.safetensors").items()}
    assert ours == theirs | {"mu": (1, 3, 1, 1), "sigma": (1, 3, 1, 1)}
    assert not [key for key in ours if "module." in key or "model." in key]


def leaderboard_loader(path, own):
    """How the leaderboard reads a `.pt`: unwrap, strip prefixes, load strictly."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    state = checkpoint["state_dict"]
    for prefix in ("module.", "model."):
        state = {k[len(prefix) :] if prefix in k else k: v for k, v in state.items()}
    own.load_state_dict(state, strict=True)
    return own


def test_the_leaderboards_loader_accepts_our_export(tmp_path):
    model = lived_in("wrn-16-8", mean=0.5, std=0.25)
    models.export_robustbench(model, tmp_path / "net.pt")
    blank = models.create("wrn-16-8", num_classes=10, shape=SHAPE).network
    blank.register_buffer("mu", torch.zeros(1, 3, 1, 1))
    blank.register_buffer("sigma", torch.ones(1, 3, 1, 1))
    blank = leaderboard_loader(tmp_path / "net.pt", blank).eval()
    x = torch.rand(2, *SHAPE)
    assert torch.equal(blank((x - blank.mu) / blank.sigma), model(x))


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
            **{f"module.attacker.model.{k}": v * 0 for k, v in s.items()},
            **{f"module.model.{k}": v for k, v in s.items()},
        }
    },
    "an attacker's, last": lambda s: {
        **{f"module.model.{k}": v for k, v in s.items()},
        **{f"module.attacker.model.{k}": v * 0 for k, v in s.items()},
    },
    "an attacker's alone": lambda s: {f"attacker.model.{k}": v for k, v in s.items()},
    "backbone": lambda s: {"state_dict": {f"backbone.{k}": v for k, v in s.items()}},
    "encoder": lambda s: {f"module.encoder.{k}": v for k, v in s.items()},
    "second in a sequence": lambda s: {f"module.1.{k}": v for k, v in s.items()},
    "compiled": lambda s: {f"_orig_mod.module.{k}": v for k, v in s.items()},
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
    told = models.load_robustbench(
        tmp_path / "x.safetensors", "preact-resnet18", mean=[0.5] * 3, std=[0.5] * 3
    )
    assert told.normalise.mean.flatten().tolist() == [0.5] * 3


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
        (elsewhere, "entry="),
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


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("small-cnn", {}, "no public definition"),
        ("resnet18", {"activation": "silu"}, "with silu"),
        ("preact-resnet50", {"shortcut": "raw"}, "the raw"),
        ("resnet18", {"width": 0.25}, "has width 0.25"),
        ("preact-resnet18-narrow", {}, "has width 0.125"),
        ("resnet18", {"stem": "imagenet", "mean": 0.5, "std": 0.5}, "ImageNet's own statistics"),
    ],
)
def test_what_would_compute_something_else_there_is_not_exported(name, options, words, tmp_path):
    model = models.create(name, num_classes=2, shape=SHAPE, **options)
    with pytest.raises(UserError, match=words):
        models.export_robustbench(model, tmp_path / "x.pt")
    assert not list(tmp_path.iterdir())


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
