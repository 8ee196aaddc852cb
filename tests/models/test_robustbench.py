"""Public checkpoints: their keys, outputs and wrappers; nothing in them is executed."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tests.models.conftest import SHAPE, lived_in

from bivallate import models
from bivallate.errors import UserError


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


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("resnet18", (1, 28, 28), "3 channels, this model takes 1"),
        ("wrn-16-8", (4, 32, 32), "3 channels, this model takes 4"),
        ("resnet18", (3, 64, 64), "4 x 4 .* takes 64 x 64"),
        ("preact-resnet18", (3, 32, 33), "4 x 4 .* takes 32 x 33"),
        ("preact-resnet18", (3, 24, 24), "4 x 4 .* takes 24 x 24"),
        ("wrn-16-8", (3, 64, 64), "8 x 8 .* takes 64 x 64"),
        ("wrn-16-8", (3, 28, 28), "8 x 8 .* takes 28 x 28"),
    ],
)
def test_images_that_the_public_definition_cannot_take_are_not_exported(name, shape, words, tmp_path):
    model = models.create(name, num_classes=10, shape=shape)
    with pytest.raises(UserError, match=words):
        models.export_robustbench(model, tmp_path / "x.pt")
    assert not list(tmp_path.iterdir())


def test_other_sizes_that_end_in_the_pooled_map_compute_the_same_there(tmp_path):
    x = torch.rand(2, 3, 29, 29)
    for name, public in (
        ("preact-resnet18", lambda s: public_preact(s, x, BASIC, False, True)),
        ("wrn-16-8", lambda s: public_wide(s, x, 2)),
    ):
        model = lived_in(name, (3, 29, 29))
        models.export_robustbench(model, tmp_path / "x.safetensors")
        with torch.no_grad():
            torch.testing.assert_close(
                public(load_file(tmp_path / "x.safetensors")), model(x), rtol=1e-4, atol=1e-4
            )
