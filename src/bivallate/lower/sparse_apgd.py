"""Auto-PGD in L1: steps along few coordinates; their number follows the sparsity of the best point."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

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
from bivallate.lower.l1 import largest
from bivallate.lower.objective import narrow
from bivallate.lower.problem import LowerProblem
from bivallate.lower.solver import Solver
from bivallate.parts import part
from bivallate.types import Solution, per_example

__all__ = ["SparseAPGD"]

REVIEW = 0.04  # fraction of the steps between two checkpoints
FIRST_SHARE = 0.2  # fraction of the coordinates that a step moves at first, after a random start
SPARSER = 1.5  # a step moves this factor fewer coordinates than the best point has moved
SHRUNK = 0.95  # a best point became sparser if its moved coordinates fall below this fraction of before
SHORTER, SHORTEST = 1.5, 10  # step sizes are divided by the first, down to eps divided by the second


@dataclass
class _SparseState(ActiveExamples):
    """The examples still under attack: every field has a row for each."""

    rows: Tensor  # positions in the minibatch
    delta: Tensor
    grad: Tensor
    best: Tensor
    best_grad: Tensor
    best_loss: Tensor
    share: Tensor  # fraction of the coordinates that a step moves
    count: Tensor  # coordinates that the best point had moved at the last review
    step: Tensor
    margin: Tensor  # lowest so far
    decided: Tensor  # bool, clearly misclassified: leaves the batch at the next look


@part
class SparseAPGD(Solver):
    """Auto-PGD in L1: returns the misclassified iterate of lowest margin, else that of highest objective.

    A step, of L1 norm at most eps, moves the largest coordinates of the gradient and is projected on the ball
    within the box. The attack begins in larger balls; each ball starts from the best points of the one
    before.

    Attributes:
        steps: N of all radii together.
        samples, leave: as of `APGD`.
        radii: of the balls in turn, in units of eps, for 0.3, 0.3 and 0.4 of the steps; only the last one if
            there are not three, or fewer than three steps.

    Cost: (steps + number of radii) samples forwards and backwards an example at most.

    Deviation: as of `APGD`; a coordinate counts as moved if delta is not zero (in the public code: if the
    image differs after rounding).

    Reference: Croce and Hein, Mind the box: l1-APGD for sparse adversarial attacks, ICML 2021, algorithm 2
    and section 4.3, public code.
    """

    steps: int = 100
    samples: int = 1
    leave: bool = True
    radii: tuple[float, ...] = (3.0, 2.0, 1.0)

    def solve(self, problem: LowerProblem) -> Solution:
        """Solution of the lower problem; see the class."""
        eps, start = problem.threat.eps, self._start(problem)
        steps, radii = [self.steps], self.radii[-1:]
        if len(self.radii) == 3 and self.steps >= 3:
            early = math.ceil(0.3 * self.steps)
            steps, radii = [early, early, self.steps - 2 * early], self.radii
        delta, last = start, len(steps) - 1
        spent, kappa = torch.zeros_like(problem.y), torch.zeros_like(problem.y)
        for stage, (factor, count) in enumerate(zip(radii, steps, strict=True)):
            within = problem.but(threat=replace(problem.threat, eps=factor * eps))  # pyright: ignore
            delta = within.threat.project(delta, problem.x)
            delta = self._run(within, delta, count, spent, kappa, first=last == 0, last=stage == last)
        return Solution(delta, None, kappa, spent)

    def _start(self, problem: LowerProblem) -> Tensor:
        """Gaussian noise of unit variance, which the projection makes sparse."""
        return problem.noise.normal("start", tuple(problem.x.shape[1:]), problem.x.dtype)

    def _run(
        self,
        problem: LowerProblem,
        delta: Tensor,
        steps: int,
        spent: Tensor,
        kappa: Tensor,
        *,
        first: bool,
        last: bool,
    ) -> Tensor:
        """Make the steps within one ball; return its best points, in the last ball the results."""
        state = self._begin(problem, delta, first=first)
        spent += self.samples
        answer, broken = delta.clone(), misclassified(state.margin, self.samples) & last
        period, leave = max(int(REVIEW * steps), 1), self.leave and last
        for i in range(steps):
            if leave and time_to_look(i, problem.x) and worth_shrinking(state.decided):
                kept = (~state.decided).nonzero()[:, 0]
                assign_rows(answer, state.rows, ~broken[state.rows], state.best)
                state, problem = state.select(kept), narrow(problem, kept)
            if len(state.rows) == 0:
                break
            if last:
                kappa[state.rows] += state.margin >= 0
            self._move(state, problem)
            lower = self._evaluate(state, problem, broken[state.rows], leave=leave) & last
            assign_rows(answer, state.rows, lower, state.delta)
            broken[state.rows] |= lower
            spent[state.rows] += self.samples
            if (i + 1) % period == 0:
                self._review(state, problem.threat.eps)
        assign_rows(answer, state.rows, ~broken[state.rows], state.best)
        return answer

    def _begin(self, problem: LowerProblem, delta: Tensor, *, first: bool) -> _SparseState:
        loss, margin, grad, decided = model_answer(problem, delta, self.samples)
        pixels, moved = delta[0].numel(), _moved(delta)
        share = torch.full_like(moved, FIRST_SHARE) if first else moved / pixels / SPARSER
        return _SparseState(
            rows=torch.arange(len(delta), device=delta.device),
            delta=delta.clone(),
            grad=grad,
            best=delta.clone(),
            best_grad=grad.clone(),
            best_loss=loss.clone(),
            share=share,
            count=torch.full_like(moved, pixels) if first else moved,
            step=torch.full_like(loss, problem.threat.eps),
            margin=margin,
            decided=decided,
        )

    def _move(self, s: _SparseState, problem: LowerProblem) -> None:
        pixels = s.grad[0].numel()
        count = pixels - ((1 - s.share) * pixels).clamp(0, pixels - 1).long()
        step = per_example(s.step, s.delta) * largest(s.grad, count)
        s.delta = problem.threat.project(s.delta + step, problem.x)

    def _evaluate(self, s: _SparseState, problem: LowerProblem, broken: Tensor, *, leave: bool) -> Tensor:
        """Evaluate the present points and update the state; (B,) bool: misclassified with a lower margin."""
        loss, margin, s.grad, decided = model_answer(problem, s.delta, self.samples)
        lower = misclassified(margin, self.samples) & (~broken | (margin < s.margin))
        # as in `APGD`: results do not depend on the other examples of the batch
        if leave:
            lower &= ~s.decided
        s.margin = torch.minimum(s.margin, margin)
        s.decided |= decided
        better = loss > s.best_loss
        mask = per_example(better, s.delta)
        s.best, s.best_grad = torch.where(mask, s.delta, s.best), torch.where(mask, s.grad, s.best_grad)
        s.best_loss = torch.where(better, loss, s.best_loss)
        return lower

    def _review(self, s: _SparseState, eps: float) -> None:
        """Restart with full steps at best points that became sparser; shorten the steps of the others."""
        moved = _moved(s.best)
        sparser = moved / s.count < SHRUNK
        s.step = torch.where(sparser, eps, (s.step / SHORTER).clamp(min=eps / SHORTEST))
        s.share, s.count = moved / s.best[0].numel() / SPARSER, moved
        mask = per_example(sparser, s.delta)
        s.delta, s.grad = torch.where(mask, s.best, s.delta), torch.where(mask, s.best_grad, s.grad)


def _moved(delta: Tensor) -> Tensor:
    """(B,) number of coordinates that are not zero."""
    return (delta != 0).flatten(1).sum(1).to(delta.dtype)
