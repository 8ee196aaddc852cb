"""Rectangles of an image that an augmentation blanks: Cutout, random erasing, and what a shift leaves empty.

A rectangle is (top, left, bottom, right), the last two excluded; drawn for each row by its own noise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bivallate.noise import Noise

__all__ = ["cutout", "erasing", "inside", "shifted"]

TRIES = 10  # rectangles that are drawn; if none fits, random erasing leaves the image unchanged


def inside(rectangle: Tensor, sides: tuple[int, int]) -> Tensor:
    """(B, 1, H, W) bool, the pixels of each row's rectangle (B, 4)."""
    rows, cols = (torch.arange(n, device=rectangle.device) for n in sides)
    top, left, bottom, right = rectangle[:, :, None].unbind(1)
    tall, wide = (rows >= top) & (rows < bottom), (cols >= left) & (cols < right)
    return (tall[:, :, None] & wide[:, None, :])[:, None]


def cutout(noise: Noise, side: int, sides: tuple[int, int]) -> Tensor:
    """(B, 4) squares centred at a uniform pixel; they may reach beyond the image.

    Reference: DeVries and Taylor, Cutout, 2017, section 3.
    """
    place = torch.stack([noise.integers(f"cutout/{k}", 0, n) for k, n in enumerate(sides)], 1) - side // 2
    return torch.cat([place, place + side], 1)


def erasing(noise: Noise, probability: float, area: float, sides: tuple[int, int]) -> Tensor:
    """(B, 4) rectangles with 0.02 to `area` of the image's area and a side ratio of 0.3 to 3.3, or empty.

    Reference: Zhong et al., Random Erasing, AAAI 2020, algorithm 1.
    """
    h, w = sides
    u = noise.uniform("erase", (TRIES, 4), torch.float64)
    size = (0.02 + u[..., 0] * (area - 0.02)) * h * w
    ratio = torch.exp(torch.log(torch.tensor(0.3)) + u[..., 1] * torch.log(torch.tensor(11.0)))
    tall, wide = (size * ratio).sqrt().round().long(), (size / ratio).sqrt().round().long()
    top = (u[..., 2] * (h - tall + 1).clamp(min=1)).long()
    left = (u[..., 3] * (w - wide + 1).clamp(min=1)).long()
    every = torch.stack([top, left, top + tall, left + wide], 2)
    fits = (tall < h) & (wide < w)
    first = fits.int().argmax(1)
    found = every[torch.arange(len(every), device=every.device), first]
    chosen = (noise.uniform("erase/whether", ()) < probability) & fits.any(1)
    return found * chosen[:, None]


def shifted(noise: Noise, most: int, sides: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """CropShift: cut a rectangle out of the image and put it at a random position of an empty image.

    A strength from 0 to `most` pixels is divided into numbers of rows and of columns that are lost.

    Returns:
        (B, 2) offset of the cut from the position where it is put, (B, 4) the rectangle where it is put.

    Reference: Li and Spratling, ICLR 2023, algorithm 1.
    """
    strength = noise.integers("shift", 0, most + 1)
    u = noise.uniform("shift/parts", (5,), torch.float64)
    lost = torch.empty(len(u), 2, dtype=torch.int64, device=u.device)
    lost[:, 1] = (u[:, 0] * (strength + 1)).long()
    lost[:, 0] = strength - lost[:, 1]
    cut, put = ((u[:, k : k + 2] * (lost + 1)).long() for k in (1, 3))
    whole = torch.tensor(sides, device=u.device)
    return cut - put, torch.cat([put, put + whole - lost], 1)
