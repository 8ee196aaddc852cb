"""The windows of the Square attack, and the patterns that are put into them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from bivallate.lower.threat import TINY
from bivallate.noise import Noise

__all__ = ["FLOOR", "Windows", "as_images", "bump", "norm_of", "overlap", "pattern", "share", "tiling"]

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # queries after which the share is halved
FLOOR = 3  # smallest side of a window with a pattern


def share(p0: float, query: int) -> float:
    """Share of the pixels that a query changes; queries count from 0, whatever their total number."""
    return p0 / 2 ** sum(query > bound for bound in HALVINGS)


def bump(a: int, b: int, order: int = 2) -> Tensor:
    """(a, b) of unit norm: sum over k of 1 / (k + 1)^2 on the square of radius k about the centre.

    order: 2, or 1 for unit L1 norm and 1 / (k + 1)^4.
    """
    value = torch.zeros(a, b)
    row, column = a // 2, b // 2
    for k in range(max(row, column) + 1):
        value[max(row - k, 0) : row + k + 1, max(column - k, 0) : column + k + 1] += (k + 1) ** (-4 / order)
    return value / value.norm(p=order).clamp(min=TINY)


@cache
def pattern(s: int, order: int = 2) -> Tensor:
    """(s, s) of unit norm: a positive bump above a negative one. It is cached: do not write into it."""
    value = torch.cat([bump(s // 2, s, order), -bump(s - s // 2, s, order)])
    return value / value.norm(p=order)


@dataclass(frozen=True)
class Windows:
    """The positions of the windows of each query, equal for all examples; a function of seed and query."""

    corners: list[list[float]]  # five uniform numbers a query: two corners, and the pattern's orientation
    height: int
    width: int
    edge: int  # 1 if windows may touch the last row and column

    @classmethod
    def drawn(cls, noise: Noise, queries: int, x: Tensor, *, edges: bool) -> Windows:
        """Draw the windows of `queries` queries on images x."""
        # One window a query for all examples, so that a proposal is one slice of the batch. Each example
        # accepts or rejects it on its own, and has its own signs.
        numbers = _shared(noise).uniform("square/windows", (queries, 5))[0]
        return cls(numbers.tolist(), x.shape[2], x.shape[3], int(edges))

    def place(self, query: int, side: int, which: int = 0) -> tuple[slice, slice]:
        """The window's rows and columns; corners are uniform on 0, ..., size - side - 1 + edge."""
        # The published code (edge = 0) draws corners below size - side, which excludes the last position that
        # still fits: its windows never reach the last row and column.
        u, v = self.corners[query][2 * which : 2 * which + 2]
        top, left = (int(r * (size - side + self.edge)) for r, size in ((u, self.height), (v, self.width)))
        return slice(top, top + side), slice(left, left + side)

    def transposed(self, query: int) -> bool:
        """Whether the pattern is transposed."""
        return self.corners[query][4] > 0.5


def as_images(x: Tensor) -> Tensor:
    """View images, sequences (B, C, L) or vectors (B, D) as (B, C, H, W)."""
    if x.ndim == 4:
        return x
    if x.ndim == 2:
        return x[:, None, None, :]
    return x[:, :, None, :] if x.ndim == 3 else x.flatten(3)


def tiling(x: Tensor, noise: Noise, order: int = 2) -> Tensor:
    """(B, C, H, W) patterns side by side, with a sign for each image, channel and tile."""
    _, channels, height, width = x.shape
    side = max(1, min(height // 5, width))
    offset = max(0, (height - 5 * side) // 2)
    down, across = height // side, width // side
    turned = _shared(noise).uniform("square/turned", (down, across))[0] > 0.5
    signs = noise.sign("square/start", (channels, down, across), x.dtype)
    delta, tile = torch.zeros_like(x), pattern(side, order).to(x)
    for i in range(down):
        for j in range(across):
            top, left = offset + i * side, offset + j * side
            value = tile.T if turned[i, j] else tile
            place = delta[:, :, top : top + side, left : left + side]
            place += (value * signs[:, :, i, j, None, None])[:, :, : place.shape[2], : place.shape[3]]
    return delta


def overlap(delta: Tensor, a: tuple[slice, slice], b: tuple[slice, slice], order: int = 2) -> Tensor | float:
    """Sum of squares (order 1: of sizes) over the intersection of two windows."""
    both = tuple(slice(max(p.start, q.start), min(p.stop, q.stop)) for p, q in zip(a, b, strict=True))
    if any(s.start >= s.stop for s in both):
        return 0.0
    return norm_of(delta[:, :, *both], (2, 3), order) ** order


def norm_of(values: Tensor, over: tuple[int, ...] = (1, 2, 3), order: int = 2) -> Tensor:
    """The norm over some dimensions, which stay with length 1."""
    return torch.linalg.vector_norm(values, ord=order, dim=over, keepdim=True)


def _shared(noise: Noise) -> Noise:
    """Draws that all rows and restarts share."""
    return Noise(noise.seed, torch.zeros(1, dtype=torch.int64), noise.epoch)
