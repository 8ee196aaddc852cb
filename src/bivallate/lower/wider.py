"""Solvers that leave the threat's ball on purpose."""

from __future__ import annotations

from dataclasses import replace
from typing import Self

from bivallate.errors import check_range
from bivallate.lower.pgd import PGD
from bivallate.lower.problem import LowerProblem
from bivallate.lower.solver import Solver
from bivallate.lower.start import Given
from bivallate.lower.threat import Linf
from bivallate.parts import part
from bivallate.roles import Composition
from bivallate.types import Solution


@part
class Wider(Solver):
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

    def check(self, method: Composition) -> None:
        """What the inner solver asks of a method."""
        self.inner.check(method)

    def can_be_finer(self) -> bool:
        """As the inner solver."""
        return self.inner.can_be_finer()

    def stepped(self, length: float, number: float = 1.0) -> Self:
        """The inner solver's steps."""
        return replace(self, inner=self.inner.stepped(length, number))

    def solve(self, problem: LowerProblem) -> Solution:
        """Solution of the wider problem."""
        start, threat = self.inner.start(problem), problem.threat
        radius = self.reach * threat.eps
        if isinstance(threat, Linf):
            radius = min(1.0, radius)  # no pixel can move further, and Linf refuses more
        wide = problem.but(threat=replace(threat, eps=radius))  # pyright: ignore[reportArgumentType, reportCallIssue]
        solution = replace(self.inner, start=Given(start)).solve(wide)
        wide.log.pop("fosc", None)  # of the wider ball it says nothing
        return solution
