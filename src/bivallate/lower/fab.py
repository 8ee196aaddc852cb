"""FAB: walks along the decision boundary towards the clean image, and so measures a distance."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from bivallate.lower.active_examples import ActiveExamples, assign_rows, time_to_look
from bivallate.lower.l1 import filled
from bivallate.lower.modes import frozen
from bivallate.lower.objective import clearly_fooled, narrow
from bivallate.lower.problem import LowerProblem
from bivallate.lower.solver import Solver
from bivallate.lower.threat import L1, TINY, Linf, dual_norm
from bivallate.parts import part
from bivallate.types import Solution, per_example

__all__ = ["FAB", "nearest_in_l1", "nearest_on_plane"]

# If more than this share of steps crosses the boundary, a forward pass comes first and the gradient is taken
# only after the crossing points are pulled back: about the cost of a forward over that of forward and
# backward.
OFTEN = 0.3
OVERTIME = 8  # rounds between two looks on a device once the first examples may be done
FLAT = 1e-8  # L2: coordinates whose weight is smaller do not move


def nearest_on_plane(excess: Tensor, w: Tensor, point: Tensor, *, linf: bool) -> Tensor:
    """(B, n) the smallest move from `point` within [0, 1]^n that changes <w, point> by -excess.

    Coordinate j moves by min(lambda, room_j) in Linf and by min(lambda |w_j|, room_j) in L2, in the direction
    that reduces the excess. lambda is the root of a concave piecewise linear function. It is found by Newton
    steps, each of which only adds saturated coordinates. If the plane is out of reach, the result leads to
    the corner of the box that is nearest to it.

    Args:
        excess: (B,) <w, point> - b.
        w, point: (B, n).
    """
    pull = w.abs()
    if not linf:
        pull.masked_fill_(pull < FLAT, 0)
    direction = _against(excess, w)
    room = _room(direction, point)
    bound = room if linf else room / pull  # lambda at which a coordinate saturates
    rise = pull if linf else pull.square()
    scale = _root(excess.abs(), rise, pull * room, bound)[:, None]
    return torch.minimum(scale.expand_as(room) if linf else scale * pull, room).mul_(direction)


def nearest_in_l1(excess: Tensor, w: Tensor, point: Tensor) -> Tensor:
    """(B, n) the move of smallest L1 norm from `point` within [0, 1]^n that changes <w, point> by -excess.

    The coordinates of largest |w_j| move first, each up to its bound; see `nearest_on_plane`.
    """
    pull = w.abs()
    pull.masked_fill_(pull < FLAT, 0)
    direction = _against(excess, w)
    gain = pull * _room(direction, point)
    return filled(pull, gain, excess.abs()).div_(pull.clamp(min=FLAT)).mul_(direction)


def _against(excess: Tensor, w: Tensor) -> Tensor:
    """(B, n) the sign of each coordinate's move."""
    return w.sign().mul_(torch.where(excess >= 0, -1.0, 1.0).to(w)[:, None])


def _room(direction: Tensor, point: Tensor) -> Tensor:
    """(B, n) how far each coordinate may move: 1 - point or point."""
    return torch.addcmul(torch.full_like(point, 0.5), direction, 0.5 - point)


def _root(need: Tensor, rise: Tensor, gain: Tensor, bound: Tensor) -> Tensor:
    """(B,) the lambda with sum_j (rise_j lambda if lambda < bound_j else gain_j) = need; 1e30 if none exists.

    A row is done when its set of saturated coordinates no longer changes; its value is then exact.
    """
    if need.device.type != "cpu":
        return _sorted_root(need, rise, gain, bound)
    total = gain.sum(1)
    scale = torch.zeros_like(need)
    scale[need >= total] = 1e30
    live = ((need < total) & (need > 0)).nonzero()[:, 0]
    parts = torch.stack([rise, gain], 1)
    rows, at = live, torch.zeros_like(need)[live]
    parts, bound, need, total = parts[live], bound[live], need[live], total[live]
    free = torch.empty_like(bound)
    count = torch.full_like(at, -1)
    while len(rows):
        torch.gt(bound, at[:, None], out=free)
        slope, kept = torch.bmm(parts, free[:, :, None])[:, :, 0].unbind(1)
        size = free.sum(1)
        new = torch.where(slope > 0, (need - total + kept) / slope, at)
        done = (size == count) | ~(new > at)
        at, count = torch.maximum(at, new), size
        if int(done.sum()) * 2 >= len(done):
            scale[rows[done]] = at[done]
            more = (~done).nonzero()[:, 0]
            rows, at, count, need, total = (t[more] for t in (rows, at, count, need, total))
            parts, bound, free = parts[more], bound[more], free[: len(more)]
    return scale


def _sorted_root(need: Tensor, rise: Tensor, gain: Tensor, bound: Tensor) -> Tensor:
    """The same root in closed form, for devices: the host need not wait for an iteration to end.

    Coordinates are sorted by the lambda at which they saturate. Those at whose lambda the sum is still below
    `need` are saturated at the root.
    """
    bound, order = bound.nan_to_num(nan=torch.inf, posinf=torch.inf).sort(1)
    rise, gain = rise.gather(1, order), gain.gather(1, order)
    before, rest = gain.cumsum(1) - gain, rise.flip(1).cumsum(1).flip(1)
    full = (before + bound * rest < need[:, None]) & bound.isfinite()
    slope, kept = rise.masked_fill(full, 0).sum(1), gain.masked_fill(~full, 0).sum(1)
    root = torch.where(slope > 0, (need - kept) / slope, 0).clamp(min=0)
    return torch.where(need >= gain.sum(1), 1e30, torch.where(need > 0, root, 0))


class Boundary(Protocol):
    """(problem, delta) -> logits (B, K), f (B,) and its gradient (B, C, H, W); the boundary is f = 0."""

    def __call__(self, problem: LowerProblem, delta: Tensor) -> tuple[Tensor, Tensor, Tensor]: ...


@part
class TargetPlane:
    """The boundary at which the problem's objective is zero: z_t = z_y for `TowardsTarget`.

    Cost: one backward.
    """

    def __call__(self, problem: LowerProblem, delta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, grad = problem.logits_and_gradient(delta)
        return logits, problem.objective(problem, logits), grad


@part
class NearestPlane:
    """The boundary that is nearest by linearisation, over all other classes. Cost: K backwards."""

    def __call__(self, problem: LowerProblem, delta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = problem.y
        with frozen(problem.forward.model), torch.enable_grad():
            point = delta.detach().requires_grad_()
            logits = problem.forward(problem.x + point)
            grads = [
                torch.autograd.grad(logits[:, k].sum(), point, retain_graph=True)[0]
                for k in range(logits.shape[1])
            ]
        logits, field = logits.detach(), torch.stack(grads, 1)
        rows = torch.arange(len(y), device=y.device)
        f = logits - logits[rows, y][:, None]
        field = field - field[rows, y][:, None]
        flat = field.flatten(2)
        dual = dual_norm(problem.threat, flat)
        choice = (f.abs() / (dual + TINY)).scatter(1, y[:, None], torch.inf).argmin(1)
        return logits, f[rows, choice], field[rows, choice]


@dataclass
class _Walk(ActiveExamples):
    """Where the examples are on their way along the boundary."""

    rows: Tensor  # (B,) places in the minibatch
    delta: Tensor
    f: Tensor  # the linearised boundary at delta, see `Boundary`
    w: Tensor
    decided: Tensor  # (B,) bool
    steps: Tensor  # (B,) steps made
    ready: Tensor  # (B,) bool: f and w are of the present delta


@part
class FAB(Solver):
    """Fast adaptive boundary attack: returns the smallest misclassified perturbation that was found.

    The problem's eps matters only for examples that leave and for the start of further restarts. The result
    of an example that was never misclassified is zero.

    After a step across the boundary an example is pulled back, and needs the gradient there. A CPU computes
    it at once, for these examples alone. A device would have to wait for their number: there they pause for
    one round, in which the pass of all examples gives their gradient. An example visits the same points.

    Attributes:
        steps: iterations.
        alpha_max: largest share of the step from the clean image, as published.
        overshoot: eta, as published.
        pull_back: beta, as published.
        boundary: the linearised boundary to approach.
        scatter: start at a random point of norm eps / 2 (further restarts) instead of the clean image.
        leave: whether examples that are clearly misclassified within eps leave the batch; false to measure
            distances.

    Cost: about (1 + min(c, 0.3)) steps forwards and backwards an example, c the share of steps that cross the
    boundary; at most `steps` forwards besides `steps` + 1 forwards and backwards. On a device the examples of
    a minibatch wait for the last one.
    """

    steps: int = 100
    alpha_max: float = 0.1
    overshoot: float = 1.05
    pull_back: float = 0.9
    boundary: Boundary = TargetPlane()
    scatter: bool = False
    leave: bool = True

    def solve(self, problem: LowerProblem) -> Solution:
        """Solution of the lower problem; see the class."""
        walk = self._begin(problem)
        answer, spent = torch.zeros_like(walk.delta), torch.zeros_like(problem.y)
        norm = torch.full_like(problem.x.flatten(1)[:, 0], torch.inf)
        rounds = self.steps if walk.delta.device.type == "cpu" else 2 * self.steps
        crossed = walk.steps.new_zeros(2)  # steps that cross the boundary, and all steps, since the last look
        often = True  # whether a step tends to cross the boundary
        for done_rounds in range(rounds):
            if self._time_to_look(done_rounds, walk.delta):
                done = walk.decided | (walk.steps >= self.steps)
                count, across, made = torch.cat([done.sum()[None], crossed]).tolist()
                often = across > OFTEN * made if made else often
                crossed.zero_()
                if count * 4 >= len(done):
                    kept = (~done).nonzero()[:, 0]
                    problem, walk = narrow(problem, kept), walk.select(kept)
            if len(walk.rows) == 0:
                break
            moving = walk.ready & (walk.steps < self.steps)
            logits = self._step(problem, walk, moving, often)
            fooled = (logits.argmax(1) != problem.y) & moving
            size = problem.threat.size(walk.delta)
            nearer = fooled & (size < norm[walk.rows]) & ~walk.decided
            assign_rows(answer, walk.rows, nearer, walk.delta)
            assign_rows(norm, walk.rows, nearer, size)
            if self.leave:
                inside = nearer & (size <= problem.threat.eps)
                walk.decided |= inside & clearly_fooled(problem, logits, problem.y)
            spent[walk.rows] += moving
            crossed += torch.stack([fooled.sum(), moving.sum()])
            self._return(problem, walk, fooled, often)
        return Solution(answer, answer, torch.zeros_like(spent), spent)

    def _begin(self, problem: LowerProblem) -> _Walk:
        delta = torch.zeros_like(problem.x)
        if self.scatter:
            noise = problem.threat.random(problem.noise, problem.x)
            radius = problem.threat.eps / 2 / (problem.threat.size(noise) + TINY)
            delta = problem.x.add(noise * per_example(radius, noise)).clamp_(0, 1).sub_(problem.x)
        f, w = self.boundary(problem, delta)[1:]
        rows = torch.arange(len(delta), device=delta.device)
        decided = torch.zeros_like(rows, dtype=torch.bool)
        return _Walk(rows, delta, f, w, decided, torch.zeros_like(rows), ~decided)

    def _time_to_look(self, rounds: int, delta: Tensor) -> bool:
        """Whether to check which examples are done: none has made all steps before so many rounds."""
        late = rounds - self.steps
        return time_to_look(rounds, delta) or (late >= 0 and late % OVERTIME == 0)

    def _step(self, problem: LowerProblem, walk: _Walk, moving: Tensor, often: bool) -> Tensor:
        """Move these examples; returns the logits (B, K) of all."""
        moved = self._approach(problem, walk.delta, walk.f, walk.w)
        walk.delta = torch.where(per_example(moving, moved), moved, walk.delta)
        walk.steps += moving
        if often:
            return problem.value(walk.delta)[0]
        # take the gradient at once, and again only for the examples that are pulled back
        logits, walk.f, walk.w = self.boundary(problem, walk.delta)
        return logits

    def _return(self, problem: LowerProblem, walk: _Walk, crossing: Tensor, often: bool) -> None:
        """Pull the crossing examples back, and take the gradients that are missing."""
        if walk.delta.device.type != "cpu":
            factor = torch.where(crossing, self.pull_back, 1.0).to(walk.delta)
            walk.delta = per_example(factor, walk.delta) * walk.delta
            walk.ready = torch.ones_like(crossing) if often else ~crossing
        else:
            back = crossing.nonzero()[:, 0]
            walk.delta[back] *= self.pull_back
            if len(back) and not often:
                walk.f[back], walk.w[back] = self.boundary(narrow(problem, back), walk.delta[back])[1:]
        if often:
            walk.f, walk.w = self.boundary(problem, walk.delta)[1:]

    def _approach(self, problem: LowerProblem, delta: Tensor, f: Tensor, w: Tensor) -> Tensor:
        """Step to the linearised boundary, mixed with the step to it from the clean image."""
        x, w, moved = problem.x.flatten(1), w.flatten(1), delta.flatten(1)
        excess = f - (w * moved).sum(1)  # at the clean image
        nearest = nearest_in_l1
        if not isinstance(problem.threat, L1):
            nearest = partial(nearest_on_plane, linf=isinstance(problem.threat, Linf))
        here, home = nearest(f, w, x + moved), nearest(excess, w, x)
        near, far = (problem.threat.size(p).clamp(min=FLAT) for p in (here, home))
        mix = (near / (near + far)).clamp(max=self.alpha_max)[:, None]
        moved = torch.lerp(moved + self.overshoot * here, self.overshoot * home, mix)
        return moved.add_(x).clamp_(0, 1).sub_(x).view_as(delta)
