"""Solvers that leave the threat's ball on purpose."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from bivallate.errors import check_range
from bivallate.lower.pgd import PGD
from bivallate.lower.problem import LowerProblem
from bivallate.lower.threat import Linf
from bivallate.parts import part
from bivallate.types import Facts, Solution


@part
class Wider:
    """Solves with a ball of radius reach * eps, from a start drawn with eps itself (N-FGSM).

    Attributes:
        inner: the solver; its start sees the method's own threat.
        reach: radius of the solver's ball in units of eps; 1 is the inner solver.

    Invariant: |delta| <= reach * eps and x + delta in [0, 1].

    Cost: the inner solver's.
    """

    inner: PGD
    reach: float

    def __post_init__(self) -> None:
        check_range("reach", self.reach, 0)

    def bind(self, facts: Facts) -> Wider:
        """A solver without memory is its own running part."""
        return self

    def feedback(self, problem: LowerProblem, delta: Tensor) -> None:
        """Nothing to learn from the outer backward pass."""

    def solve(self, problem: LowerProblem) -> Solution:
        """Solution of the wider problem."""
        start, threat = self.inner.start(problem), problem.threat
        radius = self.reach * threat.eps
        if isinstance(threat, Linf):
            radius = min(1.0, radius)  # no pixel can move further, and Linf refuses more
        wide = problem.but(threat=replace(threat, eps=radius))  # pyright: ignore[reportArgumentType, reportCallIssue]
        solution = replace(self.inner, start=lambda _: start).solve(wide)
        wide.log.pop("fosc", None)  # of the wider ball it says nothing
        return solution
