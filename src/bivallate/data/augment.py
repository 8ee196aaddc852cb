"""Augmentation of whole batches on their device, recorded so that it can be undone.

A crop of a padded image and a flip are a choice of pixels of the padded canvas, so they have an exact inverse
on the window: `View` holds that choice. State that lives on the canvas (ATTA's stored perturbations) is read
with `View.apply` and written back with `View.write`. A rotation is recorded but has no inverse.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bivallate.errors import UserError, unknown
from bivallate.noise import Noise

__all__ = ["Augment", "View"]


@dataclass(frozen=True)
class View:
    """How each image of a batch was cut from its padded canvas (C, H + 2 padding, W + 2 padding).

    Attributes:
        top, left: (B,) int64, corner of the window on the canvas. flip: (B,) bool, mirrored left to right.
        size: (H, W) of the window. padding: pixels added on every side.
        angle: (B,) degrees counter-clockwise, turned after crop and flip; None for no rotation.
    """

    top: Tensor
    left: Tensor
    flip: Tensor
    size: tuple[int, int]
    padding: int = 0
    angle: Tensor | None = None

    @property
    def canvas(self) -> tuple[int, int]:
        """(H, W) of the canvas."""
        return self.size[0] + 2 * self.padding, self.size[1] + 2 * self.padding

    def to(self, device: torch.device | str) -> View:
        """The same view on another device."""
        angle = self.angle.to(device) if self.angle is not None else None
        top, left, flip = (t.to(device, non_blocking=True) for t in (self.top, self.left, self.flip))
        return replace(self, top=top, left=left, flip=flip, angle=angle)

    def __getitem__(self, rows: Tensor | slice) -> View:
        angle = self.angle[rows] if self.angle is not None else None
        return replace(self, top=self.top[rows], left=self.left[rows], flip=self.flip[rows], angle=angle)

    def apply(self, canvas: Tensor) -> Tensor:
        """The window of each canvas: (B, C, H + 2p, W + 2p) to (B, C, H, W), a copy, of any type."""
        self._check(canvas)
        if _plain(canvas):
            window = self._windows(canvas.numpy())
        else:
            picked = canvas.flatten(2).gather(2, self._positions(canvas))
            window = picked.view(*canvas.shape[:2], *self.size)
        return window if self.angle is None else _rotate(window, self.angle)

    def write(self, canvas: Tensor, crop: Tensor) -> Tensor:
        """Put each window back where `apply` found it, in place; return the canvas, elsewhere unchanged.

        Raises:
            UserError: if the view was rotated, which has no inverse.
        """
        if self.angle is not None:
            raise UserError(
                "a rotated view cannot be written back to its canvas: use an augmentation without rotation "
                "(such as 'crop:4,flip') with methods that keep perturbations per image"
            )
        self._check(canvas)
        if not canvas.is_contiguous():
            raise ValueError("the canvas must be contiguous to be written in place")
        canvas.view(*canvas.shape[:2], -1).scatter_(
            2, self._positions(canvas), crop.to(canvas.dtype).flatten(2)
        )
        return canvas

    def _windows(self, canvas: np.ndarray) -> Tensor:
        """What gathering the positions gives, four times faster on a processor: whole rows are copied."""
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
        """(B, C, H W) place on the flattened canvas of each pixel of the window."""
        h, w = self.size
        across = torch.arange(w, device=canvas.device)
        rows = self.top[:, None] + torch.arange(h, device=canvas.device)
        cols = self.left[:, None] + torch.where(self.flip[:, None], w - 1 - across, across)
        place = (rows * self.canvas[1])[:, :, None] + cols[:, None, :]
        return place.flatten(1)[:, None].expand(-1, canvas.shape[1], -1)


def _plain(x: Tensor) -> bool:
    """Whether NumPy may handle it, which is quicker here than waking torch's threads."""
    return x.device.type == "cpu" and x.dtype in (torch.uint8, torch.float32) and not x.requires_grad


def _framed(x: np.ndarray, pad: int, value: float) -> Tensor:
    b, c, h, w = x.shape
    canvas = np.full((b, c, h + 2 * pad, w + 2 * pad), value, x.dtype)
    canvas[:, :, pad:-pad, pad:-pad] = x
    return torch.from_numpy(canvas)


def _rotate(x: Tensor, angle: Tensor) -> Tensor:
    """Turned about the centre, nearest pixel, black outside, as torchvision's RandomRotation by default."""
    h, w = x.shape[2:]
    turn = torch.deg2rad(angle.to(x.device))
    cos, sin, zero = turn.cos(), turn.sin(), torch.zeros_like(turn)
    rows = torch.stack([cos, -sin * (h / w), zero, sin * (w / h), cos, zero], 1).view(-1, 2, 3)
    grid = F.affine_grid(rows.float(), list(x.shape), align_corners=False)
    turned = F.grid_sample(x.float(), grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return turned.to(x.dtype)


@dataclass(frozen=True)
class Augment:
    """A random crop of the padded image, a random flip and a random rotation, drawn per row.

    Attributes:
        pad: pixels added on every side before a crop of the original size.
        flip: mirror left to right with probability one half; never for digits and signs.
        rotate: largest angle in degrees either way.
        fill: value of the added pixels in [0, 1], or "reflect".

    Example:
        >>> Augment.parse("crop:4,flip")
        Augment(pad=4, flip=True, rotate=0.0, fill=0.0)
        >>> str(Augment(pad=4, rotate=15))
        'crop:4,rotate:15'
    """

    pad: int = 0
    flip: bool = False
    rotate: float = 0.0
    fill: float | str = 0.0

    def __post_init__(self) -> None:
        if self.pad < 0 or not 0 <= self.rotate <= 180:
            raise UserError(
                f"augmentation needs pad >= 0 and rotate in [0, 180], got {self.pad}, {self.rotate}"
            )
        if self.fill != "reflect" and not (isinstance(self.fill, int | float) and 0 <= self.fill <= 1):
            raise UserError(f"fill must be a value in [0, 1] or 'reflect', got {self.fill!r}")

    @property
    def identity(self) -> bool:
        """Whether it changes nothing."""
        return self.pad == 0 and not self.flip and self.rotate == 0

    @classmethod
    def parse(cls, text: str) -> Augment:
        """From words as `str` writes them: none, or some of crop:PIXELS, flip, rotate:DEGREES, fill:VALUE."""
        parts: dict[str, int | bool | float | str] = {}
        for word in (w.strip() for w in text.split(",")):
            key, _, value = word.partition(":")
            try:
                if key == "crop":
                    parts["pad"] = int(value)
                elif key == "flip" and not value:
                    parts["flip"] = True
                elif key == "rotate":
                    parts["rotate"] = float(value)
                elif key == "fill":
                    parts["fill"] = value if value == "reflect" else float(value)
                elif word != "none":
                    raise unknown("augmentation", word, ["none", "crop:4", "flip", "rotate:15", "fill:0.5"])
            except ValueError:
                raise UserError(
                    f"augmentation {word!r} needs a number, as in 'crop:4' or 'rotate:15'"
                ) from None
        return cls(**parts)  # pyright: ignore[reportArgumentType]

    def __str__(self) -> str:
        words = [f"crop:{self.pad}"] if self.pad else []
        words += ["flip"] if self.flip else []
        words += [f"rotate:{self.rotate:g}"] if self.rotate else []
        words += [f"fill:{self.fill}"] if self.fill != 0 else []
        return ",".join(words) or "none"

    def view(self, noise: Noise, shape: tuple[int, int, int]) -> View:
        """Draw a view for each row of the noise, of images (C, H, W)."""
        zero = torch.zeros_like(noise.index)
        top, left = zero, zero
        if self.pad:
            top, left = noise.integers("crop", 0, 2 * self.pad + 1, (2,)).unbind(1)
        flip = noise.uniform("flip", ()) < 0.5 if self.flip else zero.bool()
        angle = (2 * noise.uniform("rotate", ()) - 1) * self.rotate if self.rotate else None
        return View(top, left, flip, (shape[1], shape[2]), self.pad, angle)

    def canvas(self, x: Tensor) -> Tensor:
        """Pad (B, C, H, W) on every side; uint8 or floating."""
        if self.pad == 0:
            return x
        if self.fill == "reflect":
            h, w = x.shape[2:]
            if self.pad >= min(h, w):
                raise UserError(f"reflection pads by less than the image's side {min(h, w)}, got {self.pad}")
            rows, cols = (_reflected(side, self.pad).to(x.device) for side in (h, w))
            return x[:, :, rows][:, :, :, cols]
        fill = float(self.fill)
        value = math.floor(fill * 255 + 0.5) if x.dtype == torch.uint8 else fill
        if _plain(x):
            return _framed(x.numpy(), self.pad, value)
        return F.pad(x, (self.pad,) * 4, value=value)

    def __call__(self, x: Tensor, noise: Noise) -> tuple[Tensor, View]:
        """(x, view): the augmented batch (B, C, H, W) and how it was cut."""
        _, c, h, w = x.shape
        view = self.view(noise, (c, h, w))
        return self.cut(x, view), view

    def cut(self, x: Tensor, view: View) -> Tensor:
        """The images as a view drawn before shows them."""
        return x if self.identity else view.apply(self.canvas(x))


def _reflected(side: int, pad: int) -> Tensor:
    """(side + 2 pad,) the pixel that each padded place mirrors, the edge not repeated."""
    place = torch.arange(-pad, side + pad).abs()
    return torch.where(place >= side, 2 * (side - 1) - place, place)
