"""Read PyTorch data sets, (image, label) by row, and arrays as points to evaluate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bivallate.errors import UserError

__all__ = ["Rows", "as_rows", "as_tensor"]


def as_tensor(value: Any, what: str) -> Tensor:
    """Convert a tensor, array or list of numbers to a tensor. Raises UserError for anything else."""
    if isinstance(value, Tensor):
        return value.detach()
    try:
        array = np.asarray(value)
        return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))  # native byte order
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{what} must be a tensor or an array of numbers, got {type(value).__name__}"
        ) from error


@dataclass(frozen=True, eq=False)
class Rows:
    """A sequence of items (image, label), whose rows are read when they are needed.

    Attributes:
        items: for example a torch.utils.data.Dataset with tensors or arrays in [0, 1].
    """

    items: Any

    def __len__(self) -> int:
        return len(self.items)

    def tensors(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(x, y) of the given rows."""
        pairs = [self._row(row) for row in rows.tolist()]
        shapes = {tuple(x.shape) for x, _ in pairs}
        if len(shapes) > 1:
            raise UserError(f"images of several shapes, {sorted(shapes)[:3]}: let the data set give one size")
        return torch.stack([x for x, _ in pairs]), torch.stack([y for _, y in pairs])

    def _row(self, row: int) -> tuple[Tensor, Tensor]:
        try:
            item = self.items[row]
        except Exception as error:  # the user's own code
            raise UserError(
                f"row {row} of the data cannot be read ({type(error).__name__}: {error})"
            ) from error
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise UserError(f"row {row} of the data must be a pair (image, label), got {type(item).__name__}")
        x, y = as_tensor(item[0], f"the image of row {row}"), as_tensor(item[1], f"the label of row {row}")
        if y.numel() != 1:
            raise UserError(f"the label of row {row} must be one number, got shape {tuple(y.shape)}")
        return x, y.reshape(())


def as_rows(data: Any) -> Rows:
    """Wrap a sequence of rows. Raises UserError, which says what to pass instead, for anything else."""
    name = type(data).__name__
    if hasattr(data, "dataset") and hasattr(data, "batch_size"):
        raise UserError(
            f"got a {name}: hand over its data set ({name.lower()}.dataset); batches are made here"
        )
    if hasattr(data, "test") and hasattr(data, "train"):
        raise UserError("got a data set with its splits: hand over one of them, such as data.test")
    if isinstance(data, str):
        raise UserError(f"got the name {data!r}: hand over bv.data.load({data!r}).test")
    if isinstance(data, Mapping) or not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        raise UserError(
            "data must be a split, a pair (x, y) of tensors, or a sequence of pairs (image, label), got "
            f"{name}"
        )
    return Rows(data)
