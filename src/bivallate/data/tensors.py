"""Arrays in memory: pairs of tensors, `.npz` files and the digits that come with scikit-learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bivallate.data.archive import Archive, open_npz
from bivallate.data.classes import numbered_from_one
from bivallate.data.dataset import Split, digest
from bivallate.errors import UserError, listed
from bivallate.untrusted_files import reason_of

__all__ = ["check_labels", "digits", "from_tensors", "read_npz"]

IMAGE_KEYS = ("images", "image", "x")
LABEL_KEYS = ("labels", "label", "y")


def from_tensors(x: Any, y: Any, classes: int | None = None, what: str = "images") -> Split:
    """Check images (N, C, H, W) in [0, 1] and labels (N,), and make a split of them.

    Both are tensors or arrays; images may also be uint8 in 0..255. (N, H, W, C) is transposed if the last
    axis can only be the channels.

    Args:
        classes: number of classes; None allows any label from 0 on.
        what: names the images in errors.

    Raises:
        UserError: a wrong shape or type, values outside [0, 1], no rows, or labels outside the classes.
    """
    images = channels_first(_array(x, what))
    labels = _integers(y, what)
    if images.ndim != 4:
        raise UserError(f"{what} must have the shape (N, C, H, W), got {tuple(images.shape)}")
    if len(images) == 0:
        raise UserError(f"{what}: no rows, shape {tuple(images.shape)}")
    if 0 in images.shape:
        raise UserError(
            f"{what} must have at least one channel and pixel, got the shape {tuple(images.shape)}"
        )
    if labels.ndim != 1 or len(labels) != len(images):
        raise UserError(
            f"{what}: labels must have the shape ({len(images)},), one per image, got "
            f"{tuple(labels.shape)}{_one_hot(labels)}"
        )
    if labels.dtype.is_floating_point or labels.dtype.is_complex or labels.dtype == torch.bool:
        raise UserError(f"{what}: labels must be integers 0, 1, ..., got {labels.dtype}{_whole(labels)}")
    labels = labels.long()
    check_labels(labels, classes, what)
    source = digest(np.ascontiguousarray(images), labels.numpy(), str(images.shape))
    return Split(images, labels, torch.arange(len(labels)), source)


def channels_first(images: np.ndarray) -> np.ndarray:
    """Transpose (N, H, W, C) with 1, 3 or 4 channels and more rows and columns; keep anything else."""
    if images.ndim == 4 and images.shape[3] in (1, 3, 4) and min(images.shape[1:3]) > 4:
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return images


def _one_hot(labels: Tensor) -> str:
    """The advice of a message about one-hot labels."""
    if labels.ndim != 2 or labels.shape[1] < 2 or not bool(((labels != 0).sum(1) == 1).all()):
        return ""
    return ": they are one-hot, use y.argmax(1)"


def _whole(labels: Tensor) -> str:
    """The end of a message on labels that are no integers: how to convert them, or which one is not whole."""
    if labels.dtype.is_complex:
        return ""
    if labels.dtype == torch.bool:
        return ": false and true are 0 and 1, use y.astype(int)"
    broken = labels != labels.round()  # NaN too
    if bool(broken.any()):
        row = int(broken.nonzero()[0, 0])
        return f"; row {row} has {float(labels[row]):g}"
    return ": they are whole numbers, use y.astype(int)"


def _integers(y: Any, what: str) -> Tensor:
    """The labels as a tensor; integers of any size, byte order and sign become int64."""
    wanted = f"{what}: labels must be integers 0, 1, ..."
    labels = _native(y, f"{wanted}, one per image")
    if labels.dtype.kind not in "iufcb":
        kind = "text" if labels.dtype.kind in "SUT" else labels.dtype
        raise UserError(f"{wanted}, got {kind}")
    if labels.dtype.kind == "u" and labels.size and labels.max() > np.iinfo(np.int64).max:
        raise UserError(f"{wanted}, got {labels.max()}")
    return torch.as_tensor(labels.astype(np.int64) if labels.dtype.kind in "iu" else labels)


def _native(values: Any, wanted: str) -> np.ndarray:
    """Convert values to a contiguous array in this machine's byte order, as torch needs.

    Raises:
        UserError: the values cannot be converted; the message begins with `wanted`.
    """
    try:
        if isinstance(values, Tensor):
            held = values.detach().cpu().resolve_conj().resolve_neg()
            array = (held.float() if held.dtype == torch.bfloat16 else held).numpy()
        else:
            array = np.asarray(values)
            array = array.astype(np.float32) if array.dtype.name == "bfloat16" else array
        return np.ascontiguousarray(array, array.dtype.newbyteorder("=")).reshape(array.shape)
    except Exception as error:
        raise UserError(f"{wanted}: {reason_of(error)}") from error


def _array(x: Any, what: str) -> np.ndarray:
    """Check images: uint8 is kept, floating point is checked for the range [0, 1] and becomes float32."""
    images = _native(x, f"{what} must be one tensor or array (N, C, H, W)")
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind != "f":
        raise UserError(f"{what} must be floating point in [0, 1] or uint8 in 0..255, got {images.dtype}")
    if images.size and not np.isfinite(images).all():
        row = int(np.argwhere(~np.isfinite(images))[0][0])
        raise UserError(f"{what} must be finite; row {row} holds NaN or infinity")
    if images.size and (images.min() < 0 or images.max() > 1):
        hint = (
            ": divide by 255"
            if images.min() >= 0 and images.max() > 2
            else ": do not normalise; the model does"
        )
        raise UserError(
            f"{what} must lie in [0, 1], got values from {images.min():.4g} to {images.max():.4g}{hint}"
        )
    return np.ascontiguousarray(images, np.float32)


def check_labels(labels: Tensor, classes: int | None, what: str) -> None:
    """Raise UserError, naming the row, for a label below 0 or outside the classes."""
    wrong = (labels < 0) | (labels >= (classes if classes is not None else torch.iinfo(torch.int64).max))
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0, 0])
        span = f"0 to {classes - 1}" if classes is not None else "0 or more"
        hint = numbered_from_one(labels.numpy(), classes or 0)
        raise UserError(f"{what}: labels must be {span}; row {row} has {int(labels[row])}{hint}")


def read_npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read (images (N, C, H, W), labels) from an `.npz`; its images are (N, H, W[, C]) or (N, C, H, W).

    The arrays may be called images, image or x, and labels, label or y. Types and values stay as in the file;
    `from_tensors` checks them.

    Raises:
        UserError: a file that cannot be read, lacks an array, or has images without 1 or 3 channels.
    """
    with open_npz(path) as file:
        images, labels = (_entry(file, wanted) for wanted in (IMAGE_KEYS, LABEL_KEYS))
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[3] in (1, 3) and images.shape[1] not in (1, 3):
        images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    if images.ndim == 4 and len(images) and images.shape[1] not in (1, 3):
        raise UserError(
            f"{path}: images must have 1 or 3 channels, (N, H, W, C), (N, C, H, W) or (N, H, W); "
            f"got the shape {images.shape}"
        )
    return images, labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels


def _entry(file: Archive, wanted: tuple[str, ...]) -> np.ndarray:
    for key in wanted:
        if key in file.entries:
            return file[key]
    raise UserError(f"{file.path} has no array called {' or '.join(wanted)}; it has {listed(file.entries)}")


def digits() -> tuple[Split, list[str]]:
    """scikit-learn's 1,797 handwritten digits (1, 8, 8), values k / 16, and the names of the classes."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    images = (bunch.images / 16).astype(np.float32)[:, None]
    return from_tensors(images, bunch.target.astype(np.int64), 10, "digits"), [str(k) for k in range(10)]
