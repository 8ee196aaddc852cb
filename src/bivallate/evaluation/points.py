"""The points under attack: read them from a caller's data, choose and check them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from bivallate.data.classes import positions, unknown_class
from bivallate.data.dataset import Split
from bivallate.errors import UserError, to_python
from bivallate.evaluation.sequences import Rows, as_rows, as_tensor
from bivallate.noise import permutation
from bivallate.quoting import line

__all__ = [
    "Points",
    "as_points",
    "check_images",
    "check_labels",
    "check_threat",
    "class_names",
    "data_fingerprint",
    "model_fingerprint",
    "select",
    "state_fingerprint",
    "whole_labels",
]


NAME = 40  # characters of a class in a message


class Points(Protocol):
    """Images that can be read by row: a `data.Split`, or a wrapped pair of tensors."""

    def __len__(self) -> int: ...

    def tensors(self, rows: Tensor) -> tuple[Tensor, Tensor]: ...


WRAPPERS = nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel


@dataclass(frozen=True, eq=False)
class TensorPair:
    """Images x (N, C, H, W) and labels y (N,) in memory."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def tensors(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(x, y) of the given rows."""
        return self.x[rows.to(self.x.device)], self.y[rows.to(self.y.device)]


def as_points(data: Any, *models: Any) -> Points:
    """The points under attack, from any form of a caller's data.

    Args:
        data: a split, a pair (x, y) of tensors or arrays, a TensorDataset, or a sequence of pairs (image,
            label), such as a PyTorch data set.
        models: if all of them and the split name their classes, labels are matched by name.

    Raises:
        UserError: other data, a class with rows that the models do not have, or models with different
        classes.
    """
    held: Any = getattr(data, "tensors", None)  # a tuple for a TensorDataset, a method for a split
    pair = held if isinstance(held, tuple) else data
    if isinstance(pair, tuple | list) and len(pair) == 2 and not isinstance(pair[0], tuple | list):
        x, y = as_tensor(pair[0], "x"), as_tensor(pair[1], "y")
        if y.ndim != 1 or len(x) != len(y):
            raise UserError(f"y must be (N,) labels for the N images, got {tuple(x.shape)}, {tuple(y.shape)}")
        return TensorPair(x, y)
    if callable(held):
        return _renumbered(data, shared_classes(models)) if isinstance(data, Split) else data
    return as_rows(data)


def shared_classes(models: Sequence[Any]) -> list[str] | None:
    """The class names that all these models share; None if one of them has no names.

    Raises UserError if two name different ones.
    """
    found = [getattr(_unwrapped(model), "classes", None) for model in models]
    named = [list(names) for names in found if isinstance(names, list | tuple)]
    if any(names != named[0] for names in named):
        raise UserError("these models name different classes, or in another order: look at each on its own")
    return named[0] if named and len(named) == len(found) else None


def _unwrapped(model: Any) -> Any:
    """The model inside torch.compile's, DataParallel's and averaging wrappers, which hide its attributes."""
    while hasattr(model, "_orig_mod") or isinstance(model, WRAPPERS):
        model = getattr(model, "_orig_mod", None) or model.module
    return model


def _renumbered(split: Split, known: list[str] | None) -> Split:
    """Renumber a split's labels by the known class names; without names it is returned unchanged."""
    if split.classes is None or known is None or list(split.classes) == known:
        return split
    place = positions(split.classes, known)
    lost = [k for k in split.labels.unique().tolist() if place[k] < 0]
    if lost:
        error = unknown_class("the split", split.classes[lost[0]], known, "the model has")
        raise UserError(f"{error}; give split.tensors() to read labels by their numbers")
    return replace(split, labels=torch.tensor(place)[split.labels], classes=tuple(known))


def select(total: int, n: int | None, first: int | None, seed: int) -> Tensor:
    """(n,) rows in ascending order: all, the first ones, or a seeded random subset."""
    if n is not None and first is not None:
        raise UserError("give n (a random subset) or first (the leading rows), not both")
    wanted = to_python(n if n is not None else first)
    if total == 0:
        raise UserError("there are no points to evaluate: the data is empty")
    if wanted is None:
        return torch.arange(total)
    name = "n" if n is not None else "first"
    if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1:
        raise UserError(f"{name} must be a whole number of at least 1, got {wanted!r}")
    if wanted > total:
        raise UserError(f"{name} is {wanted}, but the data has {total} points")
    return torch.arange(wanted) if n is None else permutation(seed, "subset", 0, total)[:wanted].sort().values


def check_images(x: Tensor) -> None:
    """Raise UserError unless x is (B, ...) floating point in [0, 1]."""
    if not x.is_floating_point():
        raise UserError(f"images must be floating point in [0, 1], got {x.dtype}; divide bytes by 255")
    if x.ndim < 2:
        raise UserError(f"images must be (N, C, H, W), got shape {tuple(x.shape)}")
    low, high = (float(v) for v in x.aminmax()) if x.numel() else (0.0, 1.0)
    if not (low >= 0 and high <= 1):  # also false for NaN
        raise UserError(
            f"images must lie in [0, 1], got values from {low:g} to {high:g}; "
            "normalisation belongs into the model's first layer"
        )


def check_threat(threat: object) -> None:
    """Raise UserError unless it is a threat model."""
    if not all(hasattr(threat, name) for name in ("eps", "project", "size")):
        raise UserError(
            f"threat must be a threat model such as bv.Linf(8 / 255) or bv.L2(0.5), got {threat!r}"
        )


def whole_labels(y: Tensor) -> Tensor:
    """Convert integer labels of any type to int64. Raises UserError for other numbers."""
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise UserError(f"labels must be integers, got {y.dtype}")
    return y.long()


def check_labels(y: Tensor, classes: int) -> None:
    """Raise UserError unless y is integer in 0, ..., classes - 1."""
    low, high = (int(v) for v in whole_labels(y).aminmax())
    if low < 0 or high >= classes:
        raise UserError(f"labels must lie in 0..{classes - 1} for this model, got {low}..{high}")


def class_names(model: Any, count: int) -> list[str]:
    """The names of a model's classes, one short line each; their numbers if it has no names."""
    names = shared_classes([model])
    known = names if names is not None and len(names) == count else range(count)
    return [line(name, NAME) for name in known]


def data_fingerprint(data: Points, index: Tensor) -> str:
    """Hash of the evaluated points: of their tensors, or of the split and the rows."""
    state = hashlib.blake2b(digest_size=16)
    if isinstance(data, TensorPair | Rows):
        for some in index.split(1000) if isinstance(data, Rows) else [index]:
            for tensor in data.tensors(some):
                state.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
                state.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    else:
        source = getattr(data, "fingerprint", None)
        state.update(str(source if source is not None else id(data)).encode())
        state.update(index.numpy().data)
    return state.hexdigest()


def model_fingerprint(model: nn.Module) -> str:
    """Hash of the model's class and of every parameter and buffer."""
    return state_fingerprint(type(model), model.state_dict())


def state_fingerprint(kind: type[nn.Module], tensors: Mapping[str, Any]) -> str:
    """The `model_fingerprint` of a model with this class and state, without building it."""
    state = hashlib.blake2b(digest_size=16)
    state.update(kind.__qualname__.encode())
    for name, tensor in sorted(tensors.items()):
        if isinstance(tensor, Tensor):
            state.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            flat = tensor.detach().cpu().contiguous().flatten()
            state.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return state.hexdigest()
