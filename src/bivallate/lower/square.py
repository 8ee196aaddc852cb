"""Square attack: random search with square-shaped changes, without gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from bivallate.lower.active_examples import time_to_look, worth_shrinking
from bivallate.lower.objective import clearly_fooled, logit_margin, narrow
from bivallate.lower.problem import LowerProblem
from bivallate.lower.solver import Solver
from bivallate.lower.threat import L1, L2, TINY, Linf
from bivallate.lower.windows import FLOOR, Windows, as_images, norm_of, overlap, pattern, share, tiling
from bivallate.noise import Noise
from bivallate.parts import part
from bivallate.types import Solution, per_example

__all__ = ["Square"]

BLOCK = 64  # number of queries whose signs are drawn at once


@dataclass
class _SquareState:
    """The examples still under attack, as images (B, C, H, W)."""

    rows: Tensor  # positions in the minibatch
    x: Tensor
    point: Tensor  # best image so far
    margin: Tensor  # (B,) margin at the best image
    decided: Tensor  # (B,) bool, clearly misclassified
    asked: Tensor  # (B, changes of one pixel) bool, failed at this point; (B, 0) if there are too many

    def select(self, rows: Tensor) -> _SquareState:
        return _SquareState(*(getattr(self, f.name)[rows] for f in fields(self)))


@part
class Square(Solver):
    """Square attack on the margin loss: a change is kept if it lowers the margin.

    Attributes:
        queries: forwards an example, besides the first.
        p0: initial share of the pixels in a window.
        edges: whether windows may touch the last row and column. In the public code they never do, so that
            with windows of one pixel the last row and column keep their first values; False restores that.
        shrink: in L2 and L1, whether the move is made smaller where the share of the pixels falls below the
            smallest window, 3 x 3. In the public code moves stay as large; False restores that.

    Cost: at most queries + 1 forwards an example. For Linf on a CPU two kinds of query need no forward: one
    that would change nothing, and (on small images) one that changes a single pixel in a way that has failed
    at the same point before. A deterministic network would give the same answer. Examples that are clearly
    misclassified leave the batch, on a device many at once.

    Deviation: positions of windows are drawn once per query for all examples and restarts (the public code:
    once per query and batch), because examples of several restarts share a minibatch; signs are drawn for
    each example and restart. See also `edges` and `shrink`.
    """

    queries: int = 5000
    p0: float = 0.8
    edges: bool = True
    shrink: bool = True

    def solve(self, problem: LowerProblem) -> Solution:
        """Solution of the lower problem; see the class."""
        noise, shape, eps = problem.noise, problem.x.shape, problem.threat.eps
        x = as_images(problem.x)
        start, propose = _MOVES.get(type(problem.threat), _MOVES[L2])
        state = self._begin(problem, x, start(x, eps, noise))
        answer, spent = torch.zeros_like(x), torch.ones_like(problem.y)
        windows = Windows.drawn(noise, self.queries, x, edges=self.edges)
        signs = noise.sign("square/0", (BLOCK, x.shape[1]), x.dtype)
        for query in range(self.queries):
            if time_to_look(query, x) and worth_shrinking(state.decided, one_in=8):
                answer[state.rows] = state.point - state.x
                kept = (~state.decided).nonzero()[:, 0]
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
        return Solution(answer, None, torch.zeros_like(spent), spent)

    def _begin(self, problem: LowerProblem, x: Tensor, point: Tensor) -> _SquareState:
        rows = torch.arange(len(x), device=x.device)
        margin = torch.full_like(x[:, 0, 0, 0], torch.inf)  # so that the first images are kept
        changes = x[0, 0].numel() * 2 ** x.shape[1]
        asked = torch.zeros(
            len(x), changes * (4 * changes <= self.queries), dtype=torch.bool, device=x.device
        )
        state = _SquareState(rows, x, point.clone(), margin, torch.zeros_like(rows, dtype=torch.bool), asked)
        self._ask(state, problem, rows, point)
        return state

    def _ask(self, state: _SquareState, problem: LowerProblem, rows: Tensor, images: Tensor) -> None:
        """Evaluate the proposed images of some rows, and keep those with a lower margin."""
        with torch.inference_mode():
            logits = problem.forward(images.view(-1, *problem.x.shape[1:]))
        margin = logit_margin(logits, problem.y[rows])
        better = (margin < state.margin[rows]) & ~state.decided[rows]
        # On a device all rows are proposed, and the update is masked, so that the host need not wait.
        if images.device.type != "cpu":
            state.point = torch.where(per_example(better, images), images, state.point)
            state.margin = torch.where(better, margin, state.margin)
            state.decided |= better & clearly_fooled(problem, logits, problem.y)
            state.asked &= ~better[:, None]
            return
        lower = better.nonzero()[:, 0]
        if len(lower):
            at = rows[lower]
            state.point[at], state.margin[at] = images[lower], margin[lower]
            state.decided[at] = clearly_fooled(problem, logits[lower], problem.y[at])
            state.asked[at] = False


def _stripes(x: Tensor, eps: float, noise: Noise) -> Tensor:
    """Linf start: vertical stripes of +-eps, with a sign for each image, channel and column."""
    signs = noise.sign("square/start", (x.shape[1], 1, x.shape[3]), x.dtype)
    return (x + eps * signs).clamp_(0, 1)


def _square(
    state: _SquareState, eps: float, windows: Windows, query: int, p0: float, sign: Tensor, *, shrink: bool
) -> tuple[Tensor, Tensor]:
    """Linf: set the window of each image to x +- eps. Only images that change are proposed."""
    height, width = state.x.shape[2:]
    side = max(1, round(math.sqrt(share(p0, query) * height * width)))
    rows, columns = windows.place(query, min(side, height, width))
    new = (state.x[:, :, rows, columns] + eps * sign).clamp_(0, 1)
    differs = (new != state.point[:, :, rows, columns]).flatten(1).any(1)
    if side == 1 and state.asked.shape[1]:
        differs &= _unasked(state, rows.start * width + columns.start, sign.flatten(1))
    if differs.device.type != "cpu":  # evaluating unchanged images costs less than waiting for their number
        images = state.point.clone()
        images[:, :, rows, columns] = new
        return torch.arange(len(images), device=images.device), images
    changed = differs.nonzero()[:, 0]
    images = state.point[changed]
    images[:, :, rows, columns] = new[changed]
    return changed, images


def _unasked(state: _SquareState, pixel: int, sign: Tensor) -> Tensor:
    """(B,) whether this pixel has not been set to these signs (B, C) since the image last changed.

    The change is marked as asked.
    """
    channels = torch.arange(sign.shape[1], device=sign.device)
    change = pixel * 2 ** sign.shape[1] + ((sign > 0) << channels).sum(1)
    every = torch.arange(len(change), device=change.device)
    fresh = ~state.asked[every, change]
    state.asked[every, change] = True
    return fresh


def _tiles(x: Tensor, eps: float, noise: Noise) -> Tensor:
    """L2 start: patterns side by side, scaled to norm eps."""
    delta = tiling(x, noise)
    return (x + eps * delta / (norm_of(delta) + TINY)).clamp_(0, 1)


def _sparse_tiles(x: Tensor, eps: float, noise: Noise) -> Tensor:
    """L1 start: patterns side by side, projected on the ball."""
    return x + L1(eps).project(tiling(x, noise, 1), x)


def _exchange(
    state: _SquareState, eps: float, windows: Windows, query: int, p0: float, sign: Tensor, *, shrink: bool
) -> tuple[Tensor, Tensor]:
    """L2: move the norm of one window, and the unused part of eps, into a pattern in another window."""
    delta = _exchanged(state.point - state.x, eps, windows, query, p0, sign, shrink, 2)
    images = (delta * (eps / (norm_of(delta) + TINY))).add_(state.x).clamp_(0, 1)
    return torch.arange(len(images), device=images.device), images


def _sparse_exchange(
    state: _SquareState, eps: float, windows: Windows, query: int, p0: float, sign: Tensor, *, shrink: bool
) -> tuple[Tensor, Tensor]:
    """L1: as `_exchange`, but each channel gets the budget of all channels, and the result is projected."""
    delta = _exchanged(state.point - state.x, eps, windows, query, p0, sign, shrink, 1)
    images = state.x + L1(eps).project(delta, state.x)
    return torch.arange(len(images), device=images.device), images


def _exchanged(
    delta: Tensor,
    eps: float,
    windows: Windows,
    query: int,
    p0: float,
    sign: Tensor,
    shrink: bool,
    order: int,
) -> Tensor:
    """Move the norm of one window into another, in L2 or L1 (`order`).

    With a size t < 1 (`shrink`) only the share t^2 of the first window's squares (L1: t of its absolute
    values) is moved, and the pattern is scaled by t.
    """
    height, width = delta.shape[2:]
    length = math.sqrt(share(p0, query) * height * width)
    size = min(1.0, length / FLOOR) if shrink else 1.0
    side = max(FLOOR, round(length))
    side = min(side + (side % 2 == 0), height, width)
    into, source = windows.place(query, side), windows.place(query, side, which=1)
    a, b = delta[:, :, *into], delta[:, :, *source]
    there = norm_of(a, (2, 3), order)
    gone = norm_of(b, (2, 3), order) ** order - overlap(delta, into, source, order)
    both = there**order + size**order * gone
    value = size * pattern(side, order).to(delta)
    change = (value.T if windows.transposed(query) else value) * sign
    change = change + a / (there + TINY)
    left = (eps**order - norm_of(delta, order=order) ** order).clamp_(min=0) / delta.shape[1]
    budget = (left + both.clamp_(min=0)).pow_(1 / order) * (delta.shape[1] if order == 1 else 1)
    change = change * (budget / (norm_of(change, (2, 3), order) + TINY))
    delta[:, :, *source] *= (1 - size**order) ** (1 / order)
    delta[:, :, *into] = change
    return delta


_MOVES = {Linf: (_stripes, _square), L2: (_tiles, _exchange), L1: (_sparse_tiles, _sparse_exchange)}
