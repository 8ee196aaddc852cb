"""Ascent inside the box under a log barrier: the consistent lower problem of DONE's theory."""

from __future__ import annotations

import torch

from bivallate.lower.problem import LowerProblem
from bivallate.lower.threat import Linf
from bivallate.parts import part
from bivallate.types import Facts, Solution


@part
class InteriorAscent:
    """Maximises objective + c sum_k log slack_k by preconditioned gradient steps; delta never touches a
    bound.

    The step is divided by the barrier's own curvature (a diagonal Newton step with the objective's Hessian
    left out) and damped, so that it converges whenever the objective's curvature is below the barrier's. For
    theory and tests: the training methods project instead (see `Barrier`).

    Attributes:
        steps, c: number of steps and strength of the barrier.
        damping: fraction of the diagonal Newton step that is taken.
        margin: delta keeps this fraction of the box's width away from either bound.

    Cost: `steps` forwards and backwards.
    """

    steps: int
    c: float
    damping: float = 0.5
    margin: float = 1e-3

    def bind(self, facts: Facts) -> InteriorAscent:
        """A solver without memory is its own running part."""
        return self

    def feedback(self, problem: LowerProblem, delta: torch.Tensor) -> None:
        """Nothing to learn from the outer backward pass."""

    def solve(self, problem: LowerProblem) -> Solution:
        """Solution of the barrier problem; see the class."""
        if not isinstance(problem.threat, Linf):
            raise TypeError("the log barrier is written for Linf")
        lo, up = problem.threat.bounds(problem.x)
        low, high = lo + self.margin * (up - lo), up - self.margin * (up - lo)
        before = delta = ((lo + up) / 2).clamp(min=low, max=high)
        for _ in range(self.steps):
            grad = problem.ascent(delta)[1] + self.c * (1 / (delta - lo) - 1 / (up - delta))
            curvature = self.c * ((up - delta) ** -2 + (delta - lo) ** -2)
            before, delta = delta, (delta + self.damping * grad / curvature).clamp(min=low, max=high)
        kappa = torch.zeros_like(problem.y)
        return Solution(delta, before, kappa, kappa + self.steps)
