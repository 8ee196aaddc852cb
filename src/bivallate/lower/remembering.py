"""What solvers with memory share: a specification that only its running part can solve with, and refusals."""

from __future__ import annotations

from typing import Any, NoReturn

from torch import Tensor

from bivallate.errors import UserError
from bivallate.lower.problem import LowerProblem


class Remembering:
    """A solver's specification whose memory belongs to a run: `bind` makes the part that solves."""

    def solve(self, problem: LowerProblem) -> NoReturn:
        """Refuses: there is no memory yet."""
        raise UserError(
            f"the solver {type(self).__name__} has a memory, which belongs to one run: use the solver of "
            "method.bind(facts)"
        )

    def feedback(self, problem: LowerProblem, delta: Tensor) -> None:
        """Nothing to move before there is a memory."""


def require_coupling(method: Any, solver: str, coupling: str) -> None:
    """Refuses a coupling that the solver cannot work with.

    Raises:
        UserError: the method has another coupling.
    """
    if type(method.coupling).__name__ != coupling:
        raise UserError(
            f"the solver {solver} needs the coupling {coupling}, got {type(method.coupling).__name__}; "
            f"set coupling={coupling}() first, or choose the solver PGD"
        )


def refuse_lookahead(method: Any, solver: str) -> None:
    """Refuses weightings that attack a second stream, whose rows would overwrite the memory of the first.

    Raises:
        UserError: the weighting needs a second stream.
    """
    if getattr(method.weighting, "needs_meta", False):
        raise UserError(
            f"the solver {solver} remembers the training stream and cannot also attack the second stream of "
            f"{type(method.weighting).__name__}; use the solver PGD with this weighting"
        )
