"""An image, or what an attack changed of it, as a panel of a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bivallate.quoting import line

__all__ = ["change", "class_label", "panel"]

RAW = 64  # pixels of a side, up to which an image is put in as it is
LETTERS = 14  # of a class's name above an image


def panel(axes: Any, image: np.ndarray) -> None:
    """Show an image (C, H, W) in [0, 1], in grey unless it has three channels."""
    shown = image.transpose(1, 2, 0) if len(image) == 3 else image.mean(0)
    way = "nearest" if max(shown.shape[:2]) <= RAW else "antialiased"
    axes.imshow(shown.clip(0, 1), cmap="gray", vmin=0, vmax=1, interpolation=way)
    axes.set_axis_off()


def change(clean: np.ndarray, attacked: np.ndarray, largest: float) -> np.ndarray:
    """The change between two images as an image: grey where there is none, `largest` fills the scale."""
    return 0.5 + 0.5 * (attacked - clean) / max(largest, 1e-12)


def class_label(classes: Sequence[str], label: Any) -> str:
    """The name of a class above an image; its number where it has none."""
    k = int(label)
    return line(classes[k] if k < len(classes) else k, LETTERS)
