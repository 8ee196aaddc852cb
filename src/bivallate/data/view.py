"""Views: how each image of a batch was cut from its padded canvas, so that the cut can be undone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bivallate.data.palette import Palette, rotated
from bivallate.errors import UserError

__all__ = ["View", "plain"]

DRAWN = ("top", "left", "flip", "angle", "frame", "palette", "holes")


@dataclass(frozen=True)
class View:
    """How each image of a batch was cut from its padded canvas (C, H + 2 padding, W + 2 padding).

    Attributes:
        top, left: (B,) int64, corner of the window on the canvas.
        flip: (B,) bool, mirrored left to right.
        size: (H, W) of the window.
        padding: pixels added on every side.
        angle: (B,) degrees counter-clockwise, of a rotation after crop and flip; None for none.
        frame: (B, 4) rectangle of the window that a shift has filled, the rest is empty; None for no shift.
        palette: changes of colour and shape, made afterwards; None for none.
        holes: (B, N, 4) rectangles that are blanked last; None for none. Frame, palette and holes apply to
            images only; other state on the canvas follows crop, flip and rotation.
    """

    top: Tensor
    left: Tensor
    flip: Tensor
    size: tuple[int, int]
    padding: int = 0
    angle: Tensor | None = None
    frame: Tensor | None = None
    palette: Palette | None = None
    holes: Tensor | None = None

    @property
    def canvas(self) -> tuple[int, int]:
        """(H, W) of the canvas."""
        return self.size[0] + 2 * self.padding, self.size[1] + 2 * self.padding

    def to(self, device: torch.device | str) -> View:
        """The same view on another device."""
        return self._each(lambda values: values.to(device, non_blocking=True))

    def tensors(self) -> list[Tensor]:
        """All tensors of the view except the palette's."""
        return [v for n in DRAWN if isinstance(v := getattr(self, n), Tensor)]

    def of(self, tensors: Iterable[Tensor], device: torch.device | str) -> View:
        """The same view on another device, from tensors that are already there."""
        there = iter(tensors)
        return self._each(lambda v: next(there) if isinstance(v, Tensor) else v.to(device, non_blocking=True))

    def __getitem__(self, rows: Tensor | slice) -> View:
        return self._each(lambda values: values[rows])

    def _each(self, change: Callable[[Any], Any]) -> View:
        made = {n: getattr(self, n) for n in DRAWN}
        return replace(self, **{n: None if v is None else change(v) for n, v in made.items()})

    def apply(self, canvas: Tensor) -> Tensor:
        """Cut the window out of each canvas: (B, C, H + 2p, W + 2p) to (B, C, H, W), a copy, of any type."""
        self._check(canvas)
        if plain(canvas):
            window = self._windows(canvas.numpy())
        else:
            picked = canvas.flatten(2).gather(2, self._positions(canvas))
            window = picked.view(*canvas.shape[:2], *self.size)
        return window if self.angle is None else rotated(window, self.angle).to(window.dtype)

    def write(self, canvas: Tensor, crop: Tensor) -> Tensor:
        """Write each window back to its position on the canvas, in place; return the canvas.

        Raises:
            UserError: the view rotates images or changes their colour or shape, which has no inverse.
        """
        if self.angle is not None or self.palette is not None:
            raise UserError(
                "a rotated view, or one of changed colour or shape, cannot be written back to its canvas: "
                "use an augmentation without these (such as 'crop:4,flip') with methods that keep "
                "perturbations per image"
            )
        self._check(canvas)
        if not canvas.is_contiguous():
            raise ValueError("the canvas must be contiguous to be written in place")
        canvas.view(*canvas.shape[:2], -1).scatter_(
            2, self._positions(canvas), crop.to(canvas.dtype).flatten(2)
        )
        return canvas

    def _windows(self, canvas: np.ndarray) -> Tensor:
        """The same as gathering the positions, four times faster on a CPU because whole rows are copied."""
        every = np.lib.stride_tricks.sliding_window_view(canvas, self.size, (2, 3))
        window = every[np.arange(len(canvas)), :, self.top.numpy(), self.left.numpy()]
        flip = np.flatnonzero(self.flip.numpy())
        window[flip] = window[flip, :, :, ::-1]
        return torch.from_numpy(window)

    def _check(self, canvas: Tensor) -> None:
        if tuple(canvas.shape[2:]) != self.canvas or len(canvas) != len(self.top):
            got = (len(canvas), *canvas.shape[2:])
            raise ValueError(f"the view is of {len(self.top)} canvases {self.canvas}, got {got}")

    def _positions(self, canvas: Tensor) -> Tensor:
        """(B, C, H W) position on the flattened canvas of each pixel of the window."""
        h, w = self.size
        across = torch.arange(w, device=canvas.device)
        rows = self.top[:, None] + torch.arange(h, device=canvas.device)
        cols = self.left[:, None] + torch.where(self.flip[:, None], w - 1 - across, across)
        place = (rows * self.canvas[1])[:, :, None] + cols[:, None, :]
        return place.flatten(1)[:, None].expand(-1, canvas.shape[1], -1)


def plain(x: Tensor) -> bool:
    """Whether NumPy can handle the tensor, which here is faster than waking torch's threads."""
    return x.device.type == "cpu" and x.dtype in (torch.uint8, torch.float32) and not x.requires_grad
