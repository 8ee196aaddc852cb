"""Augmentation of whole batches on their device, recorded so that it can be undone.

A crop of a padded image and a flip select pixels of the padded canvas, so they have an exact inverse on the
window: `View` holds that selection. State on the canvas (ATTA's stored perturbations) is read with
`View.apply` and written back with `View.write`. A rotation is recorded but has no inverse.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bivallate.data.erasing import cutout, erasing, inside, shifted
from bivallate.data.palette import SPACES, draw
from bivallate.data.view import View, plain
from bivallate.errors import UserError, check_range, check_whole, unknown
from bivallate.noise import Noise

__all__ = ["Augment", "View"]

WHOLE = {"crop": "pad", "cutout": "cutout", "shift": "shift"}  # words with a number of pixels
WORDS = ["none", "crop:4", "flip", "rotate:15", "fill:0.5", "cutout:8", "cutmix:0.5", "shift:10"]
WORDS += ["colors:color", "colors:shape", "erase:0.5", "idbh:weak", "idbh:strong", "idbh:svhn"]
IDBH = {
    "idbh:weak": "flip,shift:10,colors:color,erase:0.5",
    "idbh:strong": "flip,shift:10,colors:color,erase:1",
    "idbh:svhn": "flip,shift:8,colors:shape,erase:1:0.5",
}


def _framed(x: np.ndarray, pad: int, value: float) -> Tensor:
    b, c, h, w = x.shape
    canvas = np.full((b, c, h + 2 * pad, w + 2 * pad), value, x.dtype)
    canvas[:, :, pad:-pad, pad:-pad] = x
    return torch.from_numpy(canvas)


def _blank(x: Tensor, where: Tensor, fill: float | str) -> Tensor:
    """Fill the pixels of a mask (B, 1, H, W)."""
    value = 0.0 if fill == "reflect" else float(fill)
    return x.masked_fill(where, math.floor(value * 255 + 0.5) if x.dtype == torch.uint8 else value)


@dataclass(frozen=True)
class Augment:
    """A random crop of the padded image, a random flip and more, drawn per row.

    Attributes:
        pad: pixels added on every side before a crop of the original size.
        flip: mirror left to right with probability one half; not for digits and signs.
        rotate: largest angle in degrees, in both directions.
        fill: value of added and blanked pixels in [0, 1], or "reflect", which blanks with 0.
        cutout: side of a square that is blanked, in pixels.
        shift: largest strength of CropShift, in pixels, instead of a crop.
        colors: one change of colour or shape for each image (`palette`), of the space "color" or "shape".
        erase: probability that a rectangle is blanked.
        area: its largest area, as a share of the image.
        cutmix: probability that a rectangle of another image is pasted, with a share of its label.

    Raises:
        UserError: a value out of range, or parts that exclude each other.

    Example:
        >>> Augment.parse("crop:4,flip").pad
        4
        >>> str(Augment(pad=4, rotate=15))
        'crop:4,rotate:15'
        >>> str(Augment.parse("idbh:weak"))
        'flip,shift:10,colors:color,erase:0.5'
    """

    pad: int = 0
    flip: bool = False
    rotate: float = 0.0
    fill: float | str = 0.0
    cutout: int = 0
    shift: int = 0
    colors: str = ""
    erase: float = 0.0
    area: float = 0.33
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        if self.pad < 0 or not 0 <= self.rotate <= 180:
            raise UserError(
                f"augmentation needs pad >= 0 and rotate in [0, 180], got {self.pad}, {self.rotate}"
            )
        if self.fill != "reflect" and not (isinstance(self.fill, int | float) and 0 <= self.fill <= 1):
            raise UserError(f"fill must be a value in [0, 1] or 'reflect', got {self.fill!r}")
        for name in ("cutout", "shift"):
            check_whole(f"augmentation: {name}", getattr(self, name), 0)
        for name in ("erase", "cutmix"):
            check_range(f"augmentation: {name}", getattr(self, name), 0, 1)
        check_range("augmentation: area", self.area, 0.02, 1)
        if self.shift and (self.pad or self.rotate):
            raise UserError("shift takes the place of crop and goes without rotate: leave them out")
        if self.colors and self.colors not in SPACES:
            raise unknown("space of colors", self.colors, SPACES)

    @property
    def identity(self) -> bool:
        """Whether every image stays as it is; CutMix, which mixes two, does not count."""
        return not (self.padding or self.flip or self.rotate or self.cutout or self.colors or self.erase)

    @property
    def padding(self) -> int:
        """Pixels by which the canvas is wider than the image, on every side."""
        return max(self.pad, self.shift)

    @property
    def reshapes(self) -> bool:
        """Whether it rotates images or changes their colour or shape, which has no inverse."""
        return self.rotate > 0 or bool(self.colors)

    @classmethod
    def parse(cls, text: str) -> Augment:
        """Read the form that `str` writes: "none", or words of docs/data.md with commas. Raises UserError."""
        parts: dict[str, int | bool | float | str] = {}
        for word in (w.strip() for w in _spelt(text, IDBH).split(",")):
            key, _, value = word.partition(":")
            try:
                if key == "flip" and not value:
                    parts["flip"] = True
                elif key in WHOLE:
                    parts[WHOLE[key]] = int(value)
                elif key in ("rotate", "cutmix"):
                    parts[key] = float(value)
                elif key == "erase":
                    odds, colon, area = value.partition(":")
                    parts |= {"erase": float(odds)} | ({"area": float(area)} if colon else {})
                elif key == "colors":
                    parts[key] = value
                elif key == "fill":
                    parts["fill"] = value if value == "reflect" else float(value)
                elif word != "none":
                    raise unknown("augmentation", word, WORDS)
            except ValueError:
                raise UserError(
                    f"augmentation {word!r} needs a number, as in 'crop:4' or 'rotate:15'"
                ) from None
        return cls(**parts)  # pyright: ignore[reportArgumentType]

    def __str__(self) -> str:
        area = "" if self.area == 0.33 else f":{self.area:g}"
        words = [f"crop:{self.pad}"] if self.pad else []
        words += ["flip"] if self.flip else []
        words += [f"rotate:{self.rotate:g}"] if self.rotate else []
        words += [f"fill:{self.fill}"] if self.fill != 0 else []
        words += [f"{k}:{v}" for k in ("cutout", "shift", "colors") if (v := getattr(self, k))]
        words += [f"erase:{self.erase:g}{area}"] if self.erase else []
        words += [f"cutmix:{self.cutmix:g}"] if self.cutmix else []
        return ",".join(words) or "none"

    def view(self, noise: Noise, shape: tuple[int, int, int]) -> View:
        """Draw a view for each row of the noise, of images (C, H, W)."""
        zero, sides = torch.zeros_like(noise.index), (shape[1], shape[2])
        top, left, frame = zero, zero, None
        if self.pad:
            top, left = noise.integers("crop", 0, 2 * self.pad + 1, (2,)).unbind(1)
        if self.shift:
            far, frame = shifted(noise, min(self.shift, min(sides) - 1), sides)
            top, left = (far + self.shift).unbind(1)
        flip = noise.uniform("flip", ()) < 0.5 if self.flip else zero.bool()
        if frame is not None:  # the frame is that of the mirrored window
            wide = torch.where(flip[:, None], sides[1] - frame[:, [3, 1]], frame[:, [1, 3]])
            frame = torch.stack([frame[:, 0], wide[:, 0], frame[:, 2], wide[:, 1]], 1)
        angle = (2 * noise.uniform("rotate", ()) - 1) * self.rotate if self.rotate else None
        palette = draw(noise, self.colors) if self.colors else None
        holes = [cutout(noise, self.cutout, sides)] if self.cutout else []
        holes += [erasing(noise, self.erase, self.area, sides)] if self.erase else []
        blank = torch.stack(holes, 1) if holes else None
        return View(top, left, flip, sides, self.padding, angle, frame, palette, blank)

    def canvas(self, x: Tensor) -> Tensor:
        """Pad (B, C, H, W) on every side; uint8 or floating."""
        pad = self.padding
        if pad == 0:
            return x
        if self.fill == "reflect":
            h, w = x.shape[2:]
            if pad >= min(h, w):
                raise UserError(f"reflection pads by less than the image's side {min(h, w)}, got {pad}")
            rows, cols = (_reflected(side, pad).to(x.device) for side in (h, w))
            return x[:, :, rows][:, :, :, cols]
        fill = float(self.fill)
        value = math.floor(fill * 255 + 0.5) if x.dtype == torch.uint8 else fill
        if plain(x):
            return _framed(x.numpy(), pad, value)
        return F.pad(x, (pad,) * 4, value=value)

    def __call__(self, x: Tensor, noise: Noise) -> tuple[Tensor, View]:
        """(x, view): the augmented batch (B, C, H, W) and its view; `Batches` adds CutMix afterwards."""
        _, c, h, w = x.shape
        view = self.view(noise, (c, h, w))
        return self.cut(x, view), view

    def cut(self, x: Tensor, view: View) -> Tensor:
        """Augment images by a view that was drawn before."""
        if self.identity:
            return x
        x = view.apply(self.canvas(x))
        if view.frame is not None:
            x = _blank(x, ~inside(view.frame, view.size), self.fill)
        if view.palette is not None:
            x = view.palette(x)
        for hole in () if view.holes is None else view.holes.unbind(1):
            x = _blank(x, inside(hole, view.size), self.fill)
        return x


def _spelt(text: str, known: dict[str, str]) -> str:
    """Replace words that stand for several by these."""
    return ",".join(known.get(word.strip(), word) for word in text.split(","))


def _reflected(side: int, pad: int) -> Tensor:
    """(side + 2 pad,) the pixel that each padded position mirrors, without repeating the edge."""
    place = torch.arange(-pad, side + pad).abs()
    return torch.where(place >= side, 2 * (side - 1) - place, place)
