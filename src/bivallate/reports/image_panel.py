"""An image, or the change that an attack made to it, as a panel of a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bivallate.quoting import line

__all__ = ["change", "class_label", "panel"]

RAW = 64  # pixels; images with longer sides are interpolated
LETTERS = 14  # most letters of a class's name above an image


def panel(axes: Any, image: np.ndarray) -> None:
    """Show an image (C, H, W) in [0, 1]; unless it has three channels, as the grey mean of its channels."""
    shown = image.transpose(1, 2, 0) if len(image) == 3 else image.mean(0)
    way = "nearest" if max(shown.shape[:2]) <= RAW else "antialiased"
    axes.imshow(shown.clip(0, 1), cmap="gray", vmin=0, vmax=1, interpolation=way)
    axes.set_axis_off()


def change(clean: np.ndarray, attacked: np.ndarray, largest: float) -> np.ndarray:
    """The difference of two images as an image: 0 becomes grey, plus and minus `largest` white and black."""
    return 0.5 + 0.5 * (attacked - clean) / max(largest, 1e-12)


def class_label(classes: Sequence[str], label: Any) -> str:
    """The name of a class, shortened; its number if it has no name."""
    k = int(label)
    return line(classes[k] if k < len(classes) else k, LETTERS)
