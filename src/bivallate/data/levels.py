"""Whether pixels use their range: images that are nearly black, or all alike, would train without a word."""

from __future__ import annotations

import numpy as np

from bivallate.errors import UserError

__all__ = ["DARK", "check_levels", "level_above"]

DARK = (
    1 / 8
)  # of white: 12 bits in 16 are 1/16, digits of 0 to 16 in a byte too, [0, 1] divided by 255 far less
LEVELS = (1, 255, 1023, 4095, 16383, 65535, 2**32 - 1)
CHUNK = 2048


def level_above(value: float) -> float:
    """The smallest usual value of white that is at least this one; of nothing, 1."""
    return next((level for level in LEVELS if level >= value), value)


def check_levels(images: np.ndarray, what: str, rows: np.ndarray | None = None) -> list[str]:
    """What a user should know of images (N, C, H, W), uint8 or in [0, 1]: channels without content.

    Raises:
        UserError: if all are below an eighth of white, or every pixel has the same value.
    """
    chosen = np.arange(len(images)) if rows is None else rows
    low, high = np.full(images.shape[1], np.inf), np.full(images.shape[1], -np.inf)
    for start in range(0, len(chosen), CHUNK):
        part = images[chosen[start : start + CHUNK]]
        low = np.minimum(low, part.min(axis=(0, 2, 3)))
        high = np.maximum(high, part.max(axis=(0, 2, 3)))
    white = 255 if images.dtype == np.uint8 else 1
    if low.min() == high.max():
        raise UserError(f"{what}: every pixel of every image is {high.max():g}: there is nothing to learn")
    if high.max() <= DARK * white:
        raise UserError(
            f"{what}: the largest value of all pixels is {high.max():g} where {white} is white, so they are "
            f"nearly black: scale them so that white is {white}"
        )
    flat = np.flatnonzero(low == high)
    return [f"{what}: channel {c} is {high[c]:g} in every image" for c in flat.tolist()]
