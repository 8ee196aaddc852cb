"""The base of all solvers of the lower level."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from bivallate.errors import UserError
from bivallate.lower.problem import LowerProblem
from bivallate.roles import Composition, Role
from bivallate.types import Evidence, Facts, Solution

__all__ = ["Remembering", "Solver", "require_coupling"]


class Solver(Role, ABC):
    """Solves the lower level. A specification without memory is its own running solver."""

    @abstractmethod
    def solve(self, problem: LowerProblem) -> Solution:
        """Attack every example, and say where each attack ended."""

    def feedback(self, problem: LowerProblem, delta: Tensor, evidence: Evidence) -> None:
        """Use what the outer passes have paid for; nothing by default.

        Args:
            problem: solved. delta: (B, C, H, W) as the coupling gave it; a leaf has its gradient by now.
            evidence: what the step knows about each example, such as the logits of the attacked points.
        """

    def bind(self, facts: Facts) -> Solver:
        """The running solver of one run; one with memory is an `nn.Module` named `Bound...`."""
        return self

    def fixed_steps(self) -> int | None:
        """Steps that every example may take; None where they are not one number."""
        return None

    def keeps_start(self) -> bool:
        """Whether it tells the problem where it took its first gradient (`LowerProblem.begin`)."""
        return False

    def can_be_finer(self) -> bool:
        """Whether `stepped` may trade the length of steps for their number: no schedule sets it."""
        return False


class Remembering(Solver):
    """A solver whose memory belongs to a run and to the training stream: `bind` makes the one that solves."""

    def solve(self, problem: LowerProblem) -> Solution:
        """Refuse to solve before `bind`, as there is no memory yet."""
        raise UserError(
            f"the solver {type(self).__name__} has a memory, which belongs to one run: use the solver of "
            "method.bind(facts)"
        )

    @abstractmethod
    def bind(self, facts: Facts) -> Solver:
        """The solver with the memory of one run."""

    def check(self, method: Composition) -> None:
        """Refuse weightings that attack a second stream.

        Its rows would overwrite the memory of the first.
        """
        if method.weighting.needs_meta:
            raise UserError(
                f"the solver {type(self).__name__} remembers the training stream and cannot also attack the "
                f"second stream of {type(method.weighting).__name__}; use the solver PGD with this weighting"
            )


def require_coupling(method: Composition, solver: Solver, coupling: str) -> None:
    """Refuse a coupling that the solver cannot work with.

    Raises:
        UserError: the method has another coupling.
    """
    if type(method.coupling).__name__ != coupling:
        raise UserError(
            f"the solver {type(solver).__name__} needs the coupling {coupling}, got "
            f"{type(method.coupling).__name__}; set coupling={coupling}() first, or choose the solver PGD"
        )
