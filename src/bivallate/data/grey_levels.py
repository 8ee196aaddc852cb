"""Refuse or note images that are nearly black or all equal, most of which are misread."""

from __future__ import annotations

import numpy as np

from bivallate.errors import UserError

__all__ = ["DARK", "GreyLevels", "check_levels", "level_above"]

# As a share of white: 12 bits stored in 16 reach 1/16, as do digits of 0 to 16 stored in a byte; images in
# [0, 1] that were divided by 255 once more reach far less.
DARK = 1 / 8
LEVELS = (1, 255, 1023, 4095, 16383, 65535, 2**32 - 1)
CHUNK = 2048


def level_above(value: float) -> float:
    """The smallest usual white level that is at least `value`."""
    return next((level for level in LEVELS if level >= value), value)


class GreyLevels:
    """The lowest and highest value of each channel, over images that are added in parts."""

    def __init__(self, channels: int, white: float) -> None:
        self.white = white
        self.low, self.high = np.full(channels, np.inf), np.full(channels, -np.inf)

    def add(self, images: np.ndarray) -> None:
        """Add images (N, C, H, W)."""
        self.low = np.minimum(self.low, images.min(axis=(0, 2, 3)))
        self.high = np.maximum(self.high, images.max(axis=(0, 2, 3)))

    @property
    def decided(self) -> bool:
        """Whether `check` finds nothing, whatever images are added."""
        return bool(self.high.max() > DARK * self.white and (self.low < self.high).all())

    def check(self, what: str) -> list[str]:
        """Notes for the user on channels without content.

        Raises:
            UserError: all values are below an eighth of white, or every pixel has the same value.
        """
        highest = self.high.max()
        if self.low.min() == highest:
            raise UserError(f"{what}: every pixel of every image is {highest:g}: there is nothing to learn")
        if highest <= DARK * self.white:
            raise UserError(
                f"{what}: the largest value of all pixels is {highest:g} where {self.white} is white, so "
                f"they are nearly black: scale them so that white is {self.white}"
            )
        flat = np.flatnonzero(self.low == self.high)
        return [f"{what}: channel {c} is {self.high[c]:g} in every image" for c in flat.tolist()]


def check_levels(images: np.ndarray, what: str, rows: np.ndarray | None = None) -> list[str]:
    """Notes for the user on images (N, C, H, W), uint8 or in [0, 1]; raises as `GreyLevels.check` does."""
    chosen = np.arange(len(images)) if rows is None else rows
    levels = GreyLevels(images.shape[1], 255 if images.dtype == np.uint8 else 1)
    for start in range(0, len(chosen), CHUNK):
        levels.add(images[chosen[start : start + CHUNK]])
    return levels.check(what)
