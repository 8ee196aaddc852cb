"""CutMix: a rectangle of another image, and a share of its label."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from bivallate.data.erasing import inside
from bivallate.noise import Noise
from bivallate.types import Batch, Mixed

__all__ = ["mixed", "partners"]


def partners(noise: Noise, rows: int) -> Tensor:
    """(B,) int64, for each row the row in 0, ..., rows - 1 whose image is pasted into it."""
    return noise.integers("cutmix/partner", 0, rows)


def rectangles(noise: Noise, probability: float, sides: tuple[int, int]) -> Tensor:
    """(B, 4) rectangles with an area uniform in (0, 1), cut off at the border; empty where none is pasted.

    Reference: Yun et al., CutMix, ICCV 2019, section 3.1 with alpha = 1.
    """
    u = noise.uniform("cutmix", (2,), torch.float64)
    half = u[:, :1].sqrt() * torch.tensor(sides, device=u.device) // 2
    centre = torch.stack([noise.integers(f"cutmix/{k}", 0, n) for k, n in enumerate(sides)], 1)
    limit = torch.tensor(sides, device=u.device)
    corners = [(centre - half.long()).clamp(min=0), torch.minimum(centre + half.long(), limit)]
    return torch.cat(corners, 1) * (u[:, 1:] < probability)


def mixed(
    batch: Batch, noise: Noise, probability: float, other: Callable[[Tensor], Batch], rows: int
) -> Batch:
    """Paste rectangles of other images of the split into the images of a minibatch.

    Args:
        noise: of the minibatch's rows.
        probability: that an image gets a rectangle.
        other: rows of the split -> their images, with this epoch's augmentation.
        rows: number in the split.
    """
    sides = (batch.x.shape[2], batch.x.shape[3])
    place = rectangles(noise, probability, sides).to(batch.x.device)
    second = other(partners(noise, rows))
    where = inside(place, sides)
    area = (place[:, 2] - place[:, 0]) * (place[:, 3] - place[:, 1])
    share = 1 - area.to(batch.x.dtype) / (sides[0] * sides[1])
    return replace(batch, x=torch.where(where, second.x, batch.x), mixed=Mixed(second.y, share))
