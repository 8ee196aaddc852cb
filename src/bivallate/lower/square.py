"""Square attack: random search with square-shaped changes, without any gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cache

import torch
from torch import Tensor

from bivallate.lower.apgd import seldom
from bivallate.lower.objective import clearly_fooled, logit_margin, narrow
from bivallate.lower.problem import LowerProblem
from bivallate.lower.solver import Solver
from bivallate.lower.threat import TINY, Linf
from bivallate.noise import Noise
from bivallate.parts import part
from bivallate.types import Solution, per_example

__all__ = ["Square", "bump", "pattern", "share"]

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # queries after which the share is halved
BLOCK = 64  # queries whose signs are drawn at once
FLOOR = 3  # smallest side of a window in L2


def share(p0: float, query: int) -> float:
    """Share of the pixels that a query changes; query counts from 0 and the schedule is not rescaled."""
    return p0 / 2 ** sum(query > bound for bound in HALVINGS)


def bump(a: int, b: int) -> Tensor:
    """(a, b) with unit L2 norm: sum over k of 1 / (k + 1)^2 on the square of radius k about the centre."""
    value = torch.zeros(a, b)
    row, column = a // 2, b // 2
    for k in range(max(row, column) + 1):
        value[max(row - k, 0) : row + k + 1, max(column - k, 0) : column + k + 1] += 1 / (k + 1) ** 2
    return value / value.norm().clamp(min=TINY)


@cache
def pattern(s: int) -> Tensor:
    """(s, s) with unit L2 norm: a positive bump above a negative one. Kept: do not write into it."""
    value = torch.cat([bump(s // 2, s), -bump(s - s // 2, s)])
    return value / value.norm()


@dataclass
class _SquareState:
    """The examples still under attack, as images (B, C, H, W)."""

    rows: Tensor  # positions in the minibatch
    x: Tensor
    point: Tensor  # best so far
    margin: Tensor  # there
    gone: Tensor  # clearly misclassified
    asked: Tensor  # (B, changes of one pixel) those that have failed at this point; (B, 0) where too many

    def select(self, rows: Tensor) -> _SquareState:
        return _SquareState(*(getattr(self, f.name)[rows] for f in fields(self)))


@dataclass(frozen=True)
class _Windows:
    """Where the windows of each query lie: the same for all examples, a function of seed and query alone."""

    corners: list[list[float]]  # five uniform numbers a query: two corners, and the pattern's orientation
    height: int
    width: int
    edge: int  # 1 if windows may touch the last row and column

    @classmethod
    def drawn(cls, noise: Noise, queries: int, x: Tensor, *, edges: bool) -> _Windows:
        """The windows of so many queries on images x."""
        # one window a query for all examples, so that a proposal is one slice of the batch; each example
        # keeps or refuses it for itself, and has signs of its own
        numbers = _shared(noise).uniform("square/windows", (queries, 5))[0]
        return cls(numbers.tolist(), x.shape[2], x.shape[3], int(edges))

    def place(self, query: int, side: int, which: int = 0) -> tuple[slice, slice]:
        """The window's rows and columns; corners are uniform on 0, ..., size - side - 1 + edge."""
        # without the edge the published code's last row and column are never reached: it draws corners below
        # size - side, which excludes the last place that still fits
        u, v = self.corners[query][2 * which : 2 * which + 2]
        top, left = (int(r * (size - side + self.edge)) for r, size in ((u, self.height), (v, self.width)))
        return slice(top, top + side), slice(left, left + side)

    def transposed(self, query: int) -> bool:
        """Whether the pattern lies on its side."""
        return self.corners[query][4] > 0.5


@part
class Square(Solver):
    """Square attack on the margin loss: a change is kept if it lowers the margin.

    Attributes:
        queries: forwards an example, besides the first. p0: initial share of the pixels in a window.
        edges: windows may touch the last row and column; the public code's never do (at a side of one
            pixel the last row and column would keep their first values), which False restores.
        shrink: in L2, where the share of the pixels falls below the smallest window of 3 x 3, the move is
            made smaller instead; the public code's moves stay as large, which False restores.

    Cost: queries + 1 forwards an example at most. For Linf, a query that would change nothing, or (on small
    images) one pixel in a way that has failed at the same point before, is answered without a forward on a
    processor, as a network that is not random would answer it; examples that are clearly misclassified leave
    the batch, on a device in larger lots.

    Deviation: positions of windows are drawn once per query for all examples and all restarts (the public
    code: once per query and batch), for examples of several restarts share a minibatch; signs are drawn for
    each example and restart; and see `edges` and `shrink`.
    """

    queries: int = 5000
    p0: float = 0.8
    edges: bool = True
    shrink: bool = True

    def solve(self, problem: LowerProblem) -> Solution:
        """Solution of the lower problem; see the class."""
        noise, shape, eps = problem.noise, problem.x.shape, problem.threat.eps
        x = _as_images(problem.x)
        linf = isinstance(problem.threat, Linf)
        start, propose = (_stripes, _square) if linf else (_tiles, _exchange)
        state = self._begin(problem, x, start(x, eps, noise))
        answer, spent = torch.zeros_like(x), torch.ones_like(problem.y)
        windows = _Windows.drawn(noise, self.queries, x, edges=self.edges)
        signs = noise.sign("square/0", (BLOCK, x.shape[1]), x.dtype)
        for query in range(self.queries):
            if seldom(query, x) and int(state.gone.sum()) * 8 >= len(state.gone):
                answer[state.rows] = state.point - state.x
                kept = (~state.gone).nonzero()[:, 0]
                problem, state = narrow(problem, kept), state.select(kept)
            if len(state.rows) == 0:
                break
            if query and query % BLOCK == 0:
                signs = noise.sign(f"square/{query}", (BLOCK, x.shape[1]), x.dtype)
            sign = signs[state.rows, query % BLOCK][:, :, None, None]
            rows, images = propose(state, eps, windows, query, self.p0, sign, shrink=self.shrink)
            if len(rows):
                self._ask(state, problem, rows, images)
                spent[state.rows[rows]] += 1
        answer[state.rows] = state.point - state.x
        answer = answer.view(shape)
        return Solution(answer, answer, torch.zeros_like(spent), spent)

    def _begin(self, problem: LowerProblem, x: Tensor, point: Tensor) -> _SquareState:
        rows = torch.arange(len(x), device=x.device)
        worst = torch.full_like(x[:, 0, 0, 0], torch.inf)
        changes = x[0, 0].numel() * 2 ** x.shape[1]
        asked = torch.zeros(
            len(x), changes * (4 * changes <= self.queries), dtype=torch.bool, device=x.device
        )
        state = _SquareState(rows, x, point.clone(), worst, torch.zeros_like(rows, dtype=torch.bool), asked)
        self._ask(state, problem, rows, point)
        return state

    def _ask(self, state: _SquareState, problem: LowerProblem, rows: Tensor, images: Tensor) -> None:
        """Ask the model about the proposed images of some rows, and keep those with a lower margin."""
        with torch.inference_mode():
            logits = problem.forward(images.view(-1, *problem.x.shape[1:]))
        margin = logit_margin(logits, problem.y[rows])
        better = (margin < state.margin[rows]) & ~state.gone[rows]
        if images.device.type != "cpu":  # all are asked there, and the host does not wait for who is better
            state.point = torch.where(per_example(better, images), images, state.point)
            state.margin = torch.where(better, margin, state.margin)
            state.gone |= better & clearly_fooled(problem, logits, problem.y)
            state.asked &= ~better[:, None]
            return
        lower = better.nonzero()[:, 0]
        if len(lower):
            at = rows[lower]
            state.point[at], state.margin[at] = images[lower], margin[lower]
            state.gone[at] = clearly_fooled(problem, logits[lower], problem.y[at])
            state.asked[at] = False


def _as_images(x: Tensor) -> Tensor:
    """(B, C, H, W) of images, sequences (B, C, L) or vectors (B, D)."""
    if x.ndim == 4:
        return x
    if x.ndim == 2:
        return x[:, None, None, :]
    return x[:, :, None, :] if x.ndim == 3 else x.flatten(3)


def _stripes(x: Tensor, eps: float, noise: Noise) -> Tensor:
    """Linf start: vertical stripes, a sign for each image, channel and column."""
    signs = noise.sign("square/start", (x.shape[1], 1, x.shape[3]), x.dtype)
    return (x + eps * signs).clamp_(0, 1)


def _square(
    state: _SquareState, eps: float, windows: _Windows, query: int, p0: float, sign: Tensor, *, shrink: bool
) -> tuple[Tensor, Tensor]:
    """Linf: the window of each image goes to +-eps. Only images that this changes are proposed."""
    height, width = state.x.shape[2:]
    side = max(1, round(math.sqrt(share(p0, query) * height * width)))
    rows, columns = windows.place(query, min(side, height, width))
    new = (state.x[:, :, rows, columns] + eps * sign).clamp_(0, 1)
    differs = (new != state.point[:, :, rows, columns]).flatten(1).any(1)
    if side == 1 and state.asked.shape[1]:
        differs &= _unasked(state, rows.start * width + columns.start, sign.flatten(1))
    if differs.device.type != "cpu":  # to ask for nothing costs less than to wait for how many these are
        images = state.point.clone()
        images[:, :, rows, columns] = new
        return torch.arange(len(images), device=images.device), images
    changed = differs.nonzero()[:, 0]
    images = state.point[changed]
    images[:, :, rows, columns] = new[changed]
    return changed, images


def _unasked(state: _SquareState, pixel: int, sign: Tensor) -> Tensor:
    """(B,) whether this pixel has not been changed to these signs yet, since the last success.

    Of signs (B, C) and the image's point, which starts anew when it moves; from now on it has been asked.
    """
    channels = torch.arange(sign.shape[1], device=sign.device)
    change = pixel * 2 ** sign.shape[1] + ((sign > 0) << channels).sum(1)
    every = torch.arange(len(change), device=change.device)
    fresh = ~state.asked[every, change]
    state.asked[every, change] = True
    return fresh


def _tiles(x: Tensor, eps: float, noise: Noise) -> Tensor:
    """L2 start: the image is tiled with patterns, a sign for each image, channel and tile."""
    _, channels, height, width = x.shape
    side = max(1, min(height // 5, width))
    offset = max(0, (height - 5 * side) // 2)
    down, across = height // side, width // side
    turned = _shared(noise).uniform("square/turned", (down, across))[0] > 0.5
    signs = noise.sign("square/start", (channels, down, across), x.dtype)
    delta, tile = torch.zeros_like(x), pattern(side).to(x)
    for i in range(down):
        for j in range(across):
            top, left = offset + i * side, offset + j * side
            value = tile.T if turned[i, j] else tile
            place = delta[:, :, top : top + side, left : left + side]
            place += (value * signs[:, :, i, j, None, None])[:, :, : place.shape[2], : place.shape[3]]
    return (x + eps * delta / (_norm(delta) + TINY)).clamp_(0, 1)


def _exchange(
    state: _SquareState, eps: float, windows: _Windows, query: int, p0: float, sign: Tensor, *, shrink: bool
) -> tuple[Tensor, Tensor]:
    """L2: the norm of one window, and what is left of the budget, goes into a pattern in another.

    Of a move of size t < 1, t^2 of the first window's squares go, and t of the pattern comes.
    """
    height, width = state.x.shape[2:]
    length = math.sqrt(share(p0, query) * height * width)
    size = min(1.0, length / FLOOR) if shrink else 1.0
    side = max(FLOOR, round(length))
    side = min(side + (side % 2 == 0), height, width)
    into, source = windows.place(query, side), windows.place(query, side, which=1)
    delta = state.point - state.x
    a, b = delta[:, :, *into], delta[:, :, *source]
    there = _norm(a, (2, 3))
    gone = _norm(b, (2, 3)).square() - _overlap(delta, into, source)
    both = there.square() + size**2 * gone
    value = size * pattern(side).to(delta)
    change = (value.T if windows.transposed(query) else value) * sign
    change = change + a / (there + TINY)
    left = (eps**2 - _norm(delta).square()).clamp_(min=0) / delta.shape[1]
    change = change * ((left + both.clamp_(min=0)).sqrt_() / (_norm(change, (2, 3)) + TINY))
    delta[:, :, *source] *= math.sqrt(1 - size**2)
    delta[:, :, *into] = change
    images = (delta * (eps / (_norm(delta) + TINY))).add_(state.x).clamp_(0, 1)
    return torch.arange(len(images), device=images.device), images


def _overlap(delta: Tensor, a: tuple[slice, slice], b: tuple[slice, slice]) -> Tensor | float:
    """Sum of squares over the intersection of two windows."""
    both = tuple(slice(max(p.start, q.start), min(p.stop, q.stop)) for p, q in zip(a, b, strict=True))
    if any(s.start >= s.stop for s in both):
        return 0.0
    return _norm(delta[:, :, *both], (2, 3)).square()


def _norm(values: Tensor, over: tuple[int, ...] = (1, 2, 3)) -> Tensor:
    return torch.linalg.vector_norm(values, dim=over, keepdim=True)


def _shared(noise: Noise) -> Noise:
    """Draws that all rows have in common, whichever restarts they are of."""
    return Noise(noise.seed, torch.zeros(1, dtype=torch.int64), noise.epoch)
