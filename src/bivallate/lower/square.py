"""Square attack: random search with square-shaped changes, without any gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from bivallate.lower.active_examples import time_to_look
from bivallate.lower.objective import clearly_fooled, logit_margin, narrow
from bivallate.lower.problem import LowerProblem
from bivallate.lower.solver import Solver
from bivallate.lower.threat import L1, L2, TINY, Linf
from bivallate.lower.windows import FLOOR, Windows, as_images, norm_of, overlap, pattern, share, tiling
from bivallate.noise import Noise
from bivallate.parts import part
from bivallate.types import Solution, per_example

__all__ = ["Square"]

BLOCK = 64  # queries whose signs are drawn at once


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


@part
class Square(Solver):
    """Square attack on the margin loss: a change is kept if it lowers the margin.

    Attributes:
        queries: forwards an example, besides the first. p0: initial share of the pixels in a window.
        edges: windows may touch the last row and column; the public code's never do (at a side of one
            pixel the last row and column would keep their first values), which False restores.
        shrink: in L2 and L1, where the share of the pixels falls below the smallest window of 3 x 3, the move
            is made smaller instead; the public code's moves stay as large, which False restores.

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
        x = as_images(problem.x)
        start, propose = _MOVES.get(type(problem.threat), _MOVES[L2])
        state = self._begin(problem, x, start(x, eps, noise))
        answer, spent = torch.zeros_like(x), torch.ones_like(problem.y)
        windows = Windows.drawn(noise, self.queries, x, edges=self.edges)
        signs = noise.sign("square/0", (BLOCK, x.shape[1]), x.dtype)
        for query in range(self.queries):
            if time_to_look(query, x) and int(state.gone.sum()) * 8 >= len(state.gone):
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


def _stripes(x: Tensor, eps: float, noise: Noise) -> Tensor:
    """Linf start: vertical stripes, a sign for each image, channel and column."""
    signs = noise.sign("square/start", (x.shape[1], 1, x.shape[3]), x.dtype)
    return (x + eps * signs).clamp_(0, 1)


def _square(
    state: _SquareState, eps: float, windows: Windows, query: int, p0: float, sign: Tensor, *, shrink: bool
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
    """L2 start: patterns side by side."""
    delta = tiling(x, noise)
    return (x + eps * delta / (norm_of(delta) + TINY)).clamp_(0, 1)


def _sparse_tiles(x: Tensor, eps: float, noise: Noise) -> Tensor:
    """L1 start: the same, projected."""
    return x + L1(eps).project(tiling(x, noise, 1), x)


def _exchange(
    state: _SquareState, eps: float, windows: Windows, query: int, p0: float, sign: Tensor, *, shrink: bool
) -> tuple[Tensor, Tensor]:
    """L2: the norm of one window, and what is left of the budget, goes into a pattern in another."""
    delta = _exchanged(state.point - state.x, eps, windows, query, p0, sign, shrink, 2)
    images = (delta * (eps / (norm_of(delta) + TINY))).add_(state.x).clamp_(0, 1)
    return torch.arange(len(images), device=images.device), images


def _sparse_exchange(
    state: _SquareState, eps: float, windows: Windows, query: int, p0: float, sign: Tensor, *, shrink: bool
) -> tuple[Tensor, Tensor]:
    """L1: the same, where each channel gets the budget of all, and the projection decides."""
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
    """The perturbation with another window, in L2 or L1 (order).

    Of a move of size t < 1, t^2 of the first window's squares (L1: t of its sizes) go, and t of the pattern
    comes.
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
