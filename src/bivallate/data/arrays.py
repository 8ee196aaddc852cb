"""Arrays as data sets: labels that are text are numbered, images fitted to a size and colour."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from bivallate.data.classes import positions
from bivallate.data.dataset import Split, digest
from bivallate.data.grey_levels import check_levels
from bivallate.data.reading import Reading
from bivallate.data.tensors import from_tensors
from bivallate.errors import UserError

__all__ = ["fitted", "read_arrays", "split_pair"]

LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2, the weights by which Pillow turns colour into grey


def split_pair(pair: Any, what: str) -> tuple[Any, Any]:
    """Split a pair into (x, y); x must be a tensor or an array. Raises UserError for anything else."""
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        got = f"{len(pair)} things" if isinstance(pair, tuple | list) else type(pair).__name__
        raise UserError(f"{what} must be a pair (x, y), got {got}")
    if isinstance(pair[0], tuple | list):
        raise UserError(
            f"{what} must be a tensor or an array, got a {type(pair[0]).__name__}: use np.asarray(x)"
        )
    return pair[0], pair[1]


def read_arrays(
    x: Any, y: Any, reading: Reading, what: str, names: list[str] | None = None
) -> tuple[Split, list[str], tuple[str, ...]]:
    """Read arrays as (split, class names, notes for the user).

    Text labels are numbered by `names`; without `names` in alphabetical order, and only with
    on_bad="convert". For integer labels `names` is returned unchanged (empty for None).

    Raises:
        UserError: arrays that cannot be used, or text labels without names and without on_bad="convert".
    """
    labels, names = _number(y, reading, what, names or [])
    split = from_tensors(x, labels, what=what)
    notes = check_levels(split.images, what)
    return fitted(split, reading, what), names, tuple(notes)


def _number(y: Any, reading: Reading, what: str, names: list[str]) -> tuple[Any, list[str]]:
    texts = None if isinstance(y, Tensor) else _texts(y)
    if texts is None or texts.ndim != 1:
        return y, names
    strings = [text.strip() for text in texts.tolist()]
    if "" in strings:
        raise UserError(f"{what}: row {strings.index('')} has no label: give it one, or leave the row out")
    own = sorted(set(strings))
    if not names:
        names = own
        if reading.on_bad != "convert":
            some = ", ".join(map(repr, names[:3]))
            raise UserError(
                f"{what}: the labels are text ({some}, ...): load with on_bad='convert' to number these "
                f"{len(names)} names in alphabetical order (--set data.on_bad=convert)"
            )
    number = dict(zip(own, positions(own, names), strict=True))
    for row, text in enumerate(strings):
        if number[text] < 0:
            raise UserError(f"{what}: row {row} has the label {text!r}, which is no class name")
    return np.array([number[text] for text in strings], np.int64), names


def _texts(y: Any) -> np.ndarray | None:
    """The labels as text, or None if they are not text."""
    try:
        labels = np.asarray(y)
    except ValueError:  # rows of different lengths: for from_tensors to refuse
        return None
    if labels.dtype.kind == "S":
        return np.char.decode(labels, "utf-8", "replace")
    if labels.dtype.kind in "UT" or (
        labels.dtype.kind == "O" and labels.size and all(isinstance(label, str) for label in labels.flat)
    ):
        return labels.astype(str)
    return None


def fitted(split: Split, reading: Reading, what: str) -> Split:
    """Fit every image to the size (scaled, centre cut) and the channels of `reading`."""
    images = split.images
    channels, h, w = split.shape
    if reading.channels not in (None, channels):
        if channels not in (1, 3):
            raise UserError(
                f"{what} have {channels} channels: only 1 or 3 can be turned into {reading.channels}"
            )
        images = _grey(images) if reading.channels == 1 else np.repeat(images, 3, axis=1)
    if reading.size not in (None, (h, w)):
        images = _resized(images, reading.size)
    if images is split.images:
        return split
    source = digest(np.ascontiguousarray(images), split.labels.numpy(), str(images.shape))
    return Split(images, split.labels, torch.arange(len(split)), source, classes=split.classes)


def _grey(images: np.ndarray) -> np.ndarray:
    grey = np.einsum("nchw,c->nhw", images, np.array(LUMA, np.float32), dtype=np.float32)[:, None]
    return grey.round().astype(np.uint8) if images.dtype == np.uint8 else grey.clip(0, 1)


def _resized(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(N, C, *size): plane by plane, so that floating point keeps its precision."""
    result = np.empty((*images.shape[:2], *size), images.dtype)
    for row, channel in np.ndindex(*images.shape[:2]):
        plane = Image.fromarray(np.ascontiguousarray(images[row, channel]))
        result[row, channel] = np.asarray(ImageOps.fit(plane, (size[1], size[0]), Image.Resampling.BICUBIC))
    return result if images.dtype == np.uint8 else result.clip(0, 1)  # a bicubic kernel overshoots at edges
