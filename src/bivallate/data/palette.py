"""One random change of colour or shape an image: saturation, brightness, ..., shear, rotation.

Reference: Li and Spratling, Data Augmentation Alone Can Improve Adversarial Training, ICLR 2023, the
transformations and ranges of their public code (ColorShape); each as torchvision defines it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bivallate.noise import Noise
from bivallate.types import per_example

__all__ = ["SPACES", "Palette", "draw", "turned"]

Change = Callable[[Tensor, Tensor], Tensor]  # images in [0, 1], strengths (B,)


def turned(x: Tensor, matrix: Tensor) -> Tensor:
    """Transform by a matrix (B, 2, 2) about the centre: nearest pixel, black outside the image.

    Each pixel of the result is the one at the matrix times its position.
    """
    h, w = x.shape[2:]
    scale = torch.tensor([[1.0, h / w], [w / h, 1.0]], device=x.device, dtype=torch.float32)
    rows = F.pad(matrix.float() * scale, (0, 1))
    grid = F.affine_grid(rows, list(x.shape), align_corners=False)
    return F.grid_sample(x.float(), grid, mode="nearest", padding_mode="zeros", align_corners=False)


def rotated(x: Tensor, degrees: Tensor) -> Tensor:
    """Rotate images counter-clockwise by degrees (B,)."""
    turn = torch.deg2rad(degrees.to(x.device))
    cos, sin = turn.cos(), turn.sin()
    return turned(x, torch.stack([cos, -sin, sin, cos], 1).view(-1, 2, 2))


def _sheared(axis: int) -> Change:
    def shear(x: Tensor, strength: Tensor) -> Tensor:
        matrix = torch.eye(2, device=x.device).repeat(len(x), 1, 1)
        matrix[:, axis, 1 - axis] = strength.tan().to(matrix.dtype)
        return turned(x, matrix)

    return shear


def _blend(x: Tensor, other: Tensor, share: Tensor) -> Tensor:
    share = per_example(share, x).to(x.dtype)
    return (share * x + (1 - share) * other).clamp(0, 1)


def _grey(x: Tensor) -> Tensor:
    if x.shape[1] != 3:
        return x
    weights = torch.tensor([0.2989, 0.587, 0.114], dtype=x.dtype, device=x.device)
    return (x * weights[:, None, None]).sum(1, keepdim=True)


def _contrast(x: Tensor, strength: Tensor) -> Tensor:
    return _blend(x, _grey(x).mean((1, 2, 3), keepdim=True), strength)


def _sharpness(x: Tensor, strength: Tensor) -> Tensor:
    """Blend with a 3 x 3 blur of the image; the border is not blurred."""
    c = x.shape[1]
    kernel = torch.ones(c, 1, 3, 3, dtype=x.dtype, device=x.device)
    kernel[:, :, 1, 1] = 5
    blurred = x.clone()
    if min(x.shape[2:]) > 2:
        blurred[:, :, 1:-1, 1:-1] = F.conv2d(x, kernel / 13, groups=c)
    return _blend(x, blurred, strength)


def _autocontrast(x: Tensor, strength: Tensor) -> Tensor:
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    return torch.where(high > low, (x - low) / (high - low).clamp(min=1e-12), x)


def _equalize(x: Tensor, strength: Tensor) -> Tensor:
    """Equalise the histogram of 256 levels, in each channel."""
    level = (255 * x).round().long().flatten(2)
    count = torch.zeros(*level.shape[:2], 256, dtype=torch.long, device=x.device)
    count.scatter_add_(2, level, torch.ones_like(level))
    step = (level.shape[2] - count.gather(2, level.amax(2, keepdim=True))) // 255
    table = (count.cumsum(2) + step // 2) // step.clamp(min=1)
    table = F.pad(table, (1, 0))[..., :-1].clamp(0, 255)
    made = table.gather(2, level).view_as(x).to(x.dtype) / 255
    return torch.where(step.view(*step.shape[:2], 1, 1) > 0, made, x)


CHANGES: tuple[tuple[str, Change], ...] = (
    ("color", lambda x, s: _blend(x, _grey(x), s)),
    ("brightness", lambda x, s: _blend(x, torch.zeros_like(x), s)),
    ("contrast", _contrast),
    ("sharpness", _sharpness),
    ("autocontrast", _autocontrast),
    ("equalize", _equalize),
    ("shear x", _sheared(0)),
    ("shear y", _sheared(1)),
    ("rotate", rotated),
)
RANGES = ((0.1, 1.9), (0.5, 1.9), (0.5, 1.9), (0.1, 1.9), (0.0, 0.0), (0.0, 0.0))  # of the first six
SPACES: dict[str, tuple[tuple[float, ...], float, int]] = {  # probabilities, largest shear, largest degrees
    "color": ((0.125,) * 6 + (0.0625,) * 2 + (0.125,), 0.15, 10),
    "shape": ((0.08, 0.08, 0.04, 0.08, 0.04, 0.08, 0.15, 0.15, 0.3), 0.35, 30),
}


@dataclass(frozen=True)
class Palette:
    """The changes drawn for the images of a batch.

    Attributes:
        which: (B,) int64, number of the change in `CHANGES`.
        strength: (B,).
    """

    which: Tensor
    strength: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Palette:
        """The same changes on another device."""
        which, strength = (t.to(device, non_blocking=non_blocking) for t in (self.which, self.strength))
        return Palette(which, strength)

    def __getitem__(self, rows: Tensor | slice) -> Palette:
        return Palette(self.which[rows], self.strength[rows])

    def __call__(self, x: Tensor) -> Tensor:
        """Change images (B, C, H, W), uint8 or floating; the type is kept."""
        real = x / 255.0 if x.dtype == torch.uint8 else x
        made = real.clone()
        for k, (_, change) in enumerate(CHANGES):
            rows = (self.which == k).nonzero()[:, 0]
            if len(rows):
                made[rows] = change(real[rows], self.strength[rows]).to(made.dtype)
        return (255 * made).round().to(torch.uint8) if x.dtype == torch.uint8 else made


def draw(noise: Noise, space: str) -> Palette:
    """Draw a change and its strength for each row."""
    odds, shear, degrees = SPACES[space]
    u = noise.uniform("palette", (3,), torch.float64)
    bounds = torch.tensor(odds, dtype=torch.float64, device=u.device).cumsum(0)[:-1].contiguous()
    which = torch.bucketize(u[:, 0].contiguous(), bounds, right=True)
    lows, highs = zip(*RANGES, (0.05, shear), (0.05, shear), (1, degrees), strict=True)
    low, high = (torch.tensor(v, dtype=torch.float64, device=u.device)[which] for v in (lows, highs))
    strength = low + u[:, 1] * (high - low)
    strength = torch.where(which == len(CHANGES) - 1, (low + u[:, 1] * (high - low + 1)).floor(), strength)
    strength = torch.where((which > 5) & (u[:, 2] < 0.5), -strength, strength)
    return Palette(which, strength.float())
