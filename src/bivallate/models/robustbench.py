"""Read and write state dicts of public robust models, without executing what a file holds.

Covered are the networks of RobustBench, of the TRADES family and of the Fast-AT and Fast-BAT code.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from bivallate.errors import UserError, listed
from bivallate.files import write_whole
from bivallate.models.architectures import blank
from bivallate.models.checkpoint_file import read_checkpoint
from bivallate.models.classifier import Classifier, Normalise
from bivallate.models.foreign_state import (
    PREFIXES,
    chosen_statistics,
    take_statistics,
    unwrapped,
    without_prefixes,
)
from bivallate.models.io import fill
from bivallate.models.layers import NETWORK, head_path

__all__ = ["export_robustbench", "load_robustbench"]

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
BLOCKS = {"18": [2, 2, 2, 2], "34": [3, 4, 6, 3], "50": [3, 4, 6, 3]}


def load_robustbench(
    path: str | os.PathLike[str],
    architecture: str,
    *,
    shape: Sequence[int] = (3, 32, 32),
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    fallback: tuple[Sequence[float], Sequence[float]] | None = None,
    entry: str | None = None,
    tell: Callable[[str], None] = lambda text: None,
    **options: Any,
) -> Classifier:
    """Load the classifier in a public checkpoint, in eval mode and float32.

    A `.pt` file is read with `weights_only=True`, which accepts tensors and plain containers only. Before
    PyTorch 2.10 this could be circumvented, so there `.pt` files are refused. The number of classes, the BN
    before the average, the first layer and the normalisation are found from the keys and shapes.

    Args:
        path: a .pt or .safetensors file.
        architecture: resnet*, preact-resnet* or wrn-*.
        shape: (C, H, W) of the images.
        mean, std: channel statistics in [0, 1] pixel units, for checkpoints that do not hold them.
        fallback: mean and std, such as those of the data, that are taken if the checkpoint holds none and
            none are given; where it holds others, its own are taken, and `tell` is told.
        entry: the checkpoint's key that holds the weights; by default state_dict, model_state_dict, model,
            net, last and best are tried in turn, then ema, weights and params, of which one alone
            may be there.
        tell: is called with a text that names the prefixes taken off the keys, and one that says where
            `fallback` was not taken.
        options: options of the architecture. The keys do not show whether `shortcut` is "raw" (default for
            basic blocks; RobustBench's PreActBlock) or "activated" (its PreActBlockV2).

    Raises:
        UserError: the file is not a state dict, needs code to be executed (any `.pt` before PyTorch 2.10), is
            damaged, or is of another architecture; it holds several networks under one
            architecture's names; or it holds another normalisation than mean and std.
    """
    file = Path(path)
    found = unwrapped(read_checkpoint(file), file, entry)
    state, taken = without_prefixes(found, file)
    if taken:
        tell(f"{file.name}: taken off the names of its tensors: {', '.join(taken)}")
    first, spread = chosen_statistics(file, take_statistics(state), (mean, std), fallback, tell)
    state = _renamed(state, architecture, options)
    model = _built(
        file, state, {"name": architecture, "shape": shape, "mean": first, "std": spread, **options}
    )
    tensors = {f"network.{key}": value for key, value in state.items()}
    for key, value in model.state_dict().items():
        if key.startswith("normalise."):
            tensors[key] = value
        elif key.endswith("num_batches_tracked"):  # absent from checkpoints older than torch 0.4.1
            tensors.setdefault(key, torch.zeros_like(value))
    try:
        fill(model, tensors, str(file))
    except UserError as error:
        known = f"known are {', '.join(PREFIXES)}"
        raise UserError(f"{error}. Prefixes taken off its names: {listed(taken)}; {known}") from error
    return model.eval()


def _built(file: Path, state: dict[str, Tensor], facts: dict[str, Any]) -> Classifier:
    """The architecture with as many classes as the checkpoint's head has rows.

    Safetensors files are sorted by name, so that the last linear layer there may be any. The architecture
    says which is the head: built with a number of classes that no tensor has rows of, it has one such layer.

    Raises:
        UserError: there is no linear layer, or the architecture cannot be built.
    """
    rows = [len(value) for key, value in state.items() if key.endswith("weight") and value.ndim == 2]
    if not rows:
        raise UserError(f"{file} holds no linear layer: it is not the state dict of a classifier")
    taken = {len(value) for value in state.values() if value.ndim > 0}
    unlike = next(k for k in itertools.count(2) if k not in taken)
    try:
        head = head_path(blank({**facts, "num_classes": unlike})).removeprefix(NETWORK)
    except UserError:
        if ":" not in facts["name"] or facts["name"].startswith("timm:"):
            raise
        return _of_fixed_classes(facts, rows)
    found = state.get(f"{head}.weight")
    return blank({**facts, "num_classes": rows[-1] if found is None else len(found)})


def _of_fixed_classes(facts: dict[str, Any], rows: list[int]) -> Classifier:
    """A network of the user's own that has one number of classes alone: that of one of the linear layers."""
    last: UserError | None = None
    for classes in dict.fromkeys(rows):
        try:
            return blank({**facts, "num_classes": classes})
        except UserError as error:
            last = error
    assert last is not None
    raise last


def _renamed(state: dict[str, Tensor], architecture: str, options: dict[str, Any]) -> dict[str, Tensor]:
    """The state dict under this package's names, in float32; `options` gets those that the keys show."""
    if architecture.startswith("wrn"):
        # The TRADES code registers the first block a second time under this name and never runs it.
        state = {key: value for key, value in state.items() if not key.startswith("sub_block1.")}
    if architecture.startswith("preact"):
        options.setdefault("final_bn", "bn.weight" in state)
    if architecture.startswith("resnet"):
        state = {
            key.replace(".downsample.", ".shortcut.").replace("fc.", "linear."): value
            for key, value in state.items()
        }
        if "conv1.weight" in state and state["conv1.weight"].shape[-1] == 7:
            options.setdefault("stem", "imagenet")
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


def export_robustbench(model: Classifier, path: str | os.PathLike[str]) -> str:
    """Write a state dict under the public names; a normalisation is added as the buffers `mu` and `sigma`.

    A ResNet with the ImageNet first layer is written under torchvision's names and without its statistics,
    because RobustBench's loader for ImageNet models adds them itself.

    Args:
        model: a resnet, preact-resnet or wrn with relu.
        path: ends in .safetensors, or in .pt for loaders that read only PyTorch's own format.

    Returns:
        The call of RobustBench's (or torchvision's) constructor that the keys fit. If the state dict holds
        `mu` and `sigma`, derive a class from it that has these buffers and normalises.

    Raises:
        UserError: no public definition computes the same function as this model.
    """
    constructor, torchvision = _constructor(model)
    state = {key: value.detach().cpu().contiguous() for key, value in model.network.state_dict().items()}
    first = model.normalise
    if torchvision:
        state = {
            key.replace(".shortcut.", ".downsample.").replace("linear.", "fc."): v for key, v in state.items()
        }
    elif isinstance(first, Normalise):
        state |= {"mu": first.mean.detach().cpu(), "sigma": first.std.detach().cpu()}
    file = Path(path)
    if file.suffix == ".safetensors":
        write_whole(file, lambda target: save_file(state, target, metadata={"format": "pt"}))
    else:
        write_whole(file, lambda target: torch.save({"state_dict": state}, target))
    return constructor


def _constructor(model: Classifier) -> tuple[str, bool]:
    """The call of the public constructor, and whether it is torchvision's."""
    name, spec = model.architecture, model.spec or {}
    if not name.startswith(("preact-resnet", "resnet", "wrn-")):
        raise UserError(
            f"{name} has no public definition to export to: choose a resnet, preact-resnet or wrn"
        )
    if spec.get("activation") != "relu":
        raise UserError(
            f"the public definitions compute with relu, this model with {spec.get('activation')}: "
            "loaded there, it would compute something else"
        )
    if spec.get("width", 1) != 1:
        raise UserError(
            f"the public definitions have width 1, this model has width {spec['width']:g}: "
            "loaded there, its tensors would not fit; share it by save_pretrained"
        )
    _check_images(model, name.startswith("wrn-"), spec.get("stem") == "imagenet")
    classes = f"num_classes={model.num_classes}"
    if name.startswith("wrn-"):
        depth, factor = (34, 10) if name == "wrn-32-10" else map(int, name.split("-")[1:])
        return f"WideResNet(depth={depth}, widen_factor={factor}, {classes})", False
    depth = name[-2:]
    if name.startswith("preact"):
        activated = spec["shortcut"] == "activated"
        block = "PreActBlockV2" if activated else "PreActBlock"
        if depth == "50":
            block = "PreActBottleneck"
            if not activated:
                raise UserError(
                    "the public bottleneck's shortcut takes the activated input, this model's the raw"
                )
        return f"PreActResNet({block}, {BLOCKS[depth]}, {classes}, bn_before_fc={spec['final_bn']})", False
    if spec["stem"] == "imagenet":
        _imagenet_statistics(model)
        return f"torchvision.models.resnet{depth}({classes})", True
    block = "Bottleneck" if depth == "50" else "BasicBlock"
    return f"ResNet({block}, {BLOCKS[depth]}, {classes})", False


def _check_images(model: Classifier, wide: bool, imagenet: bool) -> None:
    """Raise UserError unless the public definition takes the model's images and averages all of the last map.

    It pools over 8 x 8 in a WideResNet, 4 x 4 in the others, where this package averages over all there is.
    Each halving rounds up.
    """
    channels, *sides = model.shape
    if channels != 3:
        raise UserError(
            f"the public definitions take images of 3 channels, this model takes {channels}: loaded there, "
            "its first layer would not fit; share it by save_pretrained"
        )
    pool, stride = (8, 4) if wide else (4, 8)
    if not imagenet and any(-(-side // stride) != pool for side in sides):
        raise UserError(
            f"the public definition averages over {pool} x {pool} at its end, for images of 32 x 32; this "
            f"model takes {sides[0]} x {sides[1]}: loaded there, it would fail or compute something else; "
            "share it by save_pretrained"
        )


def _imagenet_statistics(model: Classifier) -> None:
    expected = [torch.tensor(values).view(1, -1, 1, 1) for values in IMAGENET]
    first = model.normalise
    held = [first.mean.cpu(), first.std.cpu()] if isinstance(first, Normalise) else []
    if len(held) != 2 or not all(torch.allclose(a.float(), b) for a, b in zip(held, expected, strict=True)):
        raise UserError(
            "the loader of ImageNet models normalises with ImageNet's own statistics, this model with "
            "others: loaded there, it would compute something else"
        )
