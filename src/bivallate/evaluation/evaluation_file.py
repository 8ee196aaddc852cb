"""The contents of an evaluation's file, and the conversion of arrays to text."""

from __future__ import annotations

import base64
import math
import zlib
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import numpy as np
import torch
from torch import Tensor

from bivallate.errors import UserError
from bivallate.schema import Amount, Count, Range, Whole

MOST_CLASSES = 30_000  # whose confusion matrix fits into memory

__all__ = ["pack", "unpack"]


class Packed(TypedDict):
    """A column of an evaluation's file."""

    dtype: Literal["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"]
    shape: Annotated[list[Annotated[int, Range(0, 10**8)]], Range(0, 4)]
    zlib: str


class PointColumns(TypedDict):
    """Columns with one value for each point."""

    y: Packed
    predicted: Packed
    stage: Packed
    index: Packed
    margin: Packed


class WrittenIdentity(TypedDict):
    """An `Identity`."""

    run: str
    weights: str
    split: str
    data: str
    data_set: str
    n: Count | None
    first: Count | None
    split_fingerprint: NotRequired[str]


class WrittenScore(TypedDict):
    """The entries of an evaluation's file that are read; its other entries follow from the points."""

    attack: str
    attack_detail: dict[str, Any]
    threat: dict[str, Any]
    classes: Annotated[int, Range(1, MOST_CLASSES)]
    points: PointColumns
    stage_names: list[str]
    passes: dict[str, Amount]
    seconds: Amount
    seed: Whole
    search_precision: NotRequired[str]
    data_fingerprint: str
    model_fingerprint: str
    identity: NotRequired[WrittenIdentity | None]
    warnings: list[str]


def pack(values: Tensor) -> dict[str, Any]:
    """Pack a tensor into type, shape and compressed little-endian bytes."""
    array = values.detach().cpu().contiguous().numpy()
    array = array.astype(array.dtype.newbyteorder("<"))
    data = base64.b64encode(zlib.compress(array.tobytes(), 6)).decode("ascii")
    return {"dtype": array.dtype.name, "shape": list(array.shape), "zlib": data}


def unpack(entry: dict[str, Any]) -> Tensor:
    """The inverse of `pack`. Raises ValueError for damaged text; unpacks at most the declared size."""
    kind, shape = np.dtype(entry["dtype"]), entry["shape"]
    size = kind.itemsize * math.prod(shape)
    unpacking = zlib.decompressobj()
    try:
        raw = unpacking.decompress(base64.b64decode(entry["zlib"]), size + 1)
    except zlib.error as error:
        raise ValueError(f"a column is damaged: {error}") from error
    if len(raw) != size or not unpacking.eof:
        raise ValueError(f"a column is damaged: it does not hold the {size} bytes of its shape")
    return torch.from_numpy(np.frombuffer(raw, kind.newbyteorder("<")).reshape(shape).astype(kind))


def unpacked(entry: dict[str, Any], name: str) -> Tensor:
    """As `unpack`. Raises UserError that names the column."""
    try:
        return unpack(entry)
    except (ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise UserError(f"{name}: {error}") from error


def within(n: int, **columns: Tensor) -> None:
    """Raise UserError unless each column has n numbers, none of them NaN, and n is at least 1."""
    for name, column in columns.items():
        if column.shape != (n,) or n < 1:
            raise UserError(f"{name} must have one value for each of {n} points, got {list(column.shape)}")
        if bool(column.isnan().any()):
            raise UserError(f"{name} holds what is no number")


def in_range(**columns: tuple[Tensor, int, int]) -> None:
    """Raise UserError unless all numbers of a column (values, lowest, highest) lie between the two."""
    for name, (column, lowest, highest) in columns.items():
        if int(column.min()) < lowest or int(column.max()) > highest:
            raise UserError(f"{name} holds numbers outside of {lowest} to {highest}")


def small(whole: Tensor) -> Tensor:
    """Store whole numbers in 16 bits if they fit, else in 32."""
    return whole.to(torch.int16) if int(whole.max()) < 2**15 else whole.to(torch.int32)
