"""The base of all solvers of the lower level."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from torch import Tensor

from bivallate.errors import UserError
from bivallate.lower.problem import LowerProblem
from bivallate.lower.threat import ThreatModel
from bivallate.roles import Composition, Role
from bivallate.types import Evidence, Facts, Solution

__all__ = ["Gathered", "Remembering", "Solver", "require_coupling", "require_gathered"]

Gathered = Literal["class scores", "mean predictions", "helper labels", "helper logits"]


class Solver(Role, ABC):
    """Solves the lower level. A solver without state solves itself; others build one with state in `bind`.

    `gathers` declares what its solutions hold for losses and weightings that ask for it (`require_gathered`).
    """

    gathers: ClassVar[Gathered | None] = None

    @abstractmethod
    def solve(self, problem: LowerProblem) -> Solution:
        """Attack every example of the problem, and return the solution."""

    def feedback(self, problem: LowerProblem, delta: Tensor, evidence: Evidence) -> None:
        """Use the results of the outer forward and backward pass; do nothing by default.

        It may move the solver's state, and change `.grad` of parameters: the update comes after it (YOPO).

        Args:
            problem: as the loss has seen it, with class scores and start of the solution; a problem holds no
                delta, which comes beside it.
            delta: (B, C, H, W) of the solution that the coupling returned; a leaf has its gradient.
            evidence: the step's values for each example, such as the logits at the attacked points.
        """

    def bind(self, facts: Facts) -> Solver:
        """Build the solver of one run; a solver with state is an `nn.Module` named `Bound...`."""
        return self

    def fixed_steps(self) -> int | None:
        """Number of steps that every example may make; None if there is no single number."""
        return None

    def threats(self, threat: ThreatModel) -> tuple[ThreatModel, ...]:
        """All that it attacks within, the method's first; held-out data are attacked within each."""
        return (threat,)

    def check_threat(self, threat: ThreatModel) -> None:
        """Raise UserError if it cannot attack within this threat; by default it can within any."""

    def keeps_start(self) -> bool:
        """Whether it keeps the point of its first gradient in its solution (`Solution.start`)."""
        return False

    def can_be_finer(self) -> bool:
        """Whether `stepped` may change the number of steps: no schedule sets it."""
        return False


class Remembering(Solver):
    """A solver with state of one run and of its training stream; `bind` makes the solver that holds it."""

    def solve(self, problem: LowerProblem) -> Solution:
        """Raise UserError: before `bind` there is no state."""
        raise UserError(
            f"the solver {type(self).__name__} has a memory, which belongs to one run: use the solver of "
            "method.bind(facts)"
        )

    @abstractmethod
    def bind(self, facts: Facts) -> Solver:
        """Build the solver with the state of one run."""

    def check(self, method: Composition) -> None:
        """Raise UserError for weightings that attack a second stream.

        The rows of that stream would overwrite the state of the first.
        """
        if method.weighting.needs_meta:
            raise UserError(
                f"the solver {type(self).__name__} remembers the training stream and cannot also attack the "
                f"second stream of {type(method.weighting).__name__}; use the solver PGD with this weighting"
            )


def require_coupling(method: Composition, solver: Solver, gradient: str) -> None:
    """Raise UserError unless the method's coupling gives delta this `Coupling.gradient`."""
    if method.coupling.gradient != gradient:
        coupling = {"none": "Detached", "leaf": "Leaf"}[gradient]
        raise UserError(
            f"the solver {type(solver).__name__} needs the coupling {coupling}, got "
            f"{type(method.coupling).__name__}; set coupling={coupling}() first, or choose the solver PGD"
        )


def require_gathered(method: Composition, reader: str, gathered: Gathered, solver: str, advice: str) -> None:
    """Raise UserError unless the method's solver gathers what a loss or a weighting reads.

    Args:
        reader: the part that reads it.
        solver: the package's solver that gathers it.
        advice: what to do.
    """
    if method.solver.gathers != gathered:
        raise UserError(
            f"{reader} reads the {gathered} that the solver {solver} gathers, and "
            f"{type(method.solver).__name__} gathers none: {advice}"
        )
