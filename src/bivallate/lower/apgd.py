"""Auto-PGD: gradient ascent with momentum and a step size that follows its progress."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bivallate.lower.active_examples import (
    ActiveExamples,
    assign_rows,
    misclassified,
    model_answer,
    time_to_look,
    worth_shrinking,
)
from bivallate.lower.objective import narrow
from bivallate.lower.problem import LowerProblem
from bivallate.lower.solver import Solver
from bivallate.lower.sparse_apgd import SparseAPGD
from bivallate.lower.threat import L1, TINY, Linf
from bivallate.parts import part
from bivallate.types import Solution, per_example

__all__ = ["APGD", "checkpoints", "sphere"]

MOMENTUM = 0.25  # weight of the last move


def sphere(problem: LowerProblem) -> Tensor:
    """A start on the ball's surface: eps t / ||t||, t uniform for Linf and Gaussian for L2, then the box."""
    shape, dtype = tuple(problem.x.shape[1:]), problem.x.dtype
    if isinstance(problem.threat, Linf):
        t = problem.noise.symmetric("start", shape, dtype)
    else:
        t = problem.noise.normal("start", shape, dtype)
    delta = problem.threat.eps * t / per_example(problem.threat.size(t) + TINY, t)
    return (problem.x + delta).clamp_(0, 1).sub_(problem.x)


def cheap_projection(problem: LowerProblem) -> Callable[[Tensor], Tensor]:
    """The map delta -> C(x) of the attack: for Linf the projection; for L2 radial scaling, then the box.

    For L2 the result is feasible but not the nearest point; the attack was published with this map.
    """
    x, threat = problem.x, problem.threat
    if isinstance(threat, Linf):
        lo, up = threat.bounds(x)
        return lambda delta: delta.clamp(lo, up)

    def radial(delta: Tensor) -> Tensor:
        norm = threat.size(delta)
        scaled = delta * per_example(norm.clamp(max=threat.eps) / (norm + TINY), delta)
        return scaled.add_(x).clamp_(0, 1).sub_(x)

    return radial


def checkpoints(steps: int) -> list[int]:
    """Steps after which step sizes are reviewed: 22 % of the budget, each period 3 % shorter, at least 6 %.

    Example:
        >>> checkpoints(100)
        [22, 41, 57, 70, 80, 87, 93, 99]
    """
    # Periods shrink because late in the budget a step that is too large must be noticed sooner. Each number
    # is rounded down before it is used, as in the public code, so that checkpoints are at the same steps.
    period, least, shrink = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
    found, at = [], period
    while at <= steps:
        found.append(at)
        period = max(period - shrink, least)
        at += period
    return found


@dataclass
class _APGDState(ActiveExamples):
    """The examples still under attack: every field has a row for each."""

    rows: Tensor  # positions in the minibatch
    delta: Tensor  # the iterate
    before: Tensor  # the iterate before it
    grad: Tensor  # at delta
    best: Tensor  # the iterate of highest objective
    best_grad: Tensor
    best_loss: Tensor
    last_loss: Tensor
    rises: Tensor  # steps of this period at which the loss rose
    best_at_review: Tensor
    halved: Tensor  # bool, whether the step size was halved at the last review
    step: Tensor
    margin: Tensor  # lowest so far
    decided: Tensor  # bool, clearly misclassified: leaves the batch at the next look


@part
class APGD(Solver):
    """Auto-PGD: returns the misclassified iterate of lowest margin, else the iterate of highest objective.

    Attributes:
        steps: N.
        rho: the step size is halved after a period in which the loss rose in a smaller share of steps.
        samples: draws at every step, whose losses and gradients are averaged, for random models (EOT). With
            more than one, no example leaves and the result is the point of highest mean loss: one
            misclassified draw says little about the next.
        leave: whether examples that are clearly misclassified leave the batch.

    In L1 it is `SparseAPGD`, which has no momentum and no rho.

    Cost: (steps + 1) samples forwards and backwards an example at most.

    Deviation: in the public code the result is the latest misclassified iterate, and no example leaves early;
    for random models it compares iterates by their last draw alone.
    """

    steps: int = 100
    rho: float = 0.75
    samples: int = 1
    leave: bool = True

    def solve(self, problem: LowerProblem) -> Solution:
        """Solution of the lower problem; see the class."""
        if isinstance(problem.threat, L1):
            return SparseAPGD(self.steps, self.samples, self.leave).solve(problem)
        answer = sphere(problem)  # becomes the result, and is a misclassified iterate where `broken`
        kappa, spent = torch.zeros_like(problem.y), torch.zeros_like(problem.y)
        state = self._begin(problem, answer, spent)
        broken = misclassified(state.margin, self.samples)
        reviews = set(checkpoints(self.steps))
        project, since_review = cheap_projection(problem), 0
        for i in range(self.steps):
            # many examples leave at once: copying the batch for each one would cost more than it saves
            if self.leave and time_to_look(i, problem.x) and worth_shrinking(state.decided):
                kept = (~state.decided).nonzero()[:, 0]
                self._settle(state, answer, broken)
                state, problem = state.select(kept), narrow(problem, kept)
                project = cheap_projection(problem)
            if len(state.rows) == 0:
                break
            kappa[state.rows] += state.margin >= 0
            self._move(state, problem, project, first=i == 0)
            self._evaluate(state, problem, answer, broken, spent)
            since_review += 1
            if i + 1 in reviews:
                self._review(state, since_review)
                since_review = 0
        self._settle(state, answer, broken)
        return Solution(answer, None, kappa, spent)

    def _settle(self, state: _APGDState, answer: Tensor, broken: Tensor) -> None:
        """Set the result of examples that were never misclassified to their best point."""
        assign_rows(answer, state.rows, ~broken[state.rows], state.best)

    def _begin(self, problem: LowerProblem, delta: Tensor, spent: Tensor) -> _APGDState:
        loss, margin, grad, decided = model_answer(problem, delta, self.samples)
        spent += self.samples
        count = len(delta)
        step = torch.full_like(loss, 2 * problem.threat.eps)
        rows = torch.arange(count, device=delta.device)
        return _APGDState(
            rows=rows,
            delta=delta.clone(),
            before=delta.clone(),
            grad=grad,
            best=delta.clone(),
            best_grad=grad.clone(),
            best_loss=loss.clone(),
            last_loss=torch.zeros_like(loss),  # as in the public code, whose losses begin with zeros
            rises=torch.zeros_like(loss),
            best_at_review=loss.clone(),
            halved=torch.ones(count, dtype=torch.bool, device=delta.device),
            step=step,
            margin=margin,
            decided=decided,
        )

    def _move(self, s: _APGDState, problem: LowerProblem, project: Callable, *, first: bool) -> None:
        """Step along the gradient, with momentum from the second step on."""
        direction = problem.threat.steepest(s.grad)
        stepped = project(torch.addcmul(s.delta, per_example(s.step, s.delta), direction))
        if not first:
            aim = torch.lerp(s.delta, stepped, 1 - MOMENTUM).add_(s.delta - s.before, alpha=MOMENTUM)
            stepped = project(aim)
        s.before, s.delta = s.delta, stepped

    def _evaluate(
        self, s: _APGDState, problem: LowerProblem, answer: Tensor, broken: Tensor, spent: Tensor
    ) -> None:
        """Ask the model at the iterates; keep misclassified ones and those of higher objective."""
        loss, margin, s.grad, decided = model_answer(problem, s.delta, self.samples)
        spent[s.rows] += self.samples
        lower = misclassified(margin, self.samples) & (~broken[s.rows] | (margin < s.margin))
        # an example that is clearly misclassified keeps that result while it waits to leave, so that results
        # do not depend on the other examples of the batch
        if self.leave:
            lower &= ~s.decided
        assign_rows(answer, s.rows, lower, s.delta)
        broken[s.rows] |= lower
        s.margin = torch.minimum(s.margin, margin)
        s.decided |= decided
        better = loss > s.best_loss
        mask = per_example(better, s.delta)
        s.best, s.best_grad = torch.where(mask, s.delta, s.best), torch.where(mask, s.grad, s.best_grad)
        s.best_loss = torch.where(better, loss, s.best_loss)
        s.rises += loss > s.last_loss
        s.last_loss = loss

    def _review(self, s: _APGDState, period: int) -> None:
        """Halve the step of examples that oscillate or make no progress, and restart at their best points."""
        # the second condition skips the period after a halving: a smaller step needs time to beat the best
        halve = (s.rises <= self.rho * period) | (~s.halved & (s.best_at_review >= s.best_loss))
        s.step = torch.where(halve, s.step / 2, s.step)
        mask = per_example(halve, s.delta)
        s.delta, s.grad = torch.where(mask, s.best, s.delta), torch.where(mask, s.best_grad, s.grad)
        s.halved, s.best_at_review = halve, s.best_loss.clone()
        s.rises = torch.zeros_like(s.rises)
