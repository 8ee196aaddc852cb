"""Helper examples (HAT): points beyond the ball, with the class that a plain network gives the attack."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from bivallate.errors import check_range
from bivallate.lower.problem import LowerProblem
from bivallate.lower.solver import require_gathered
from bivallate.parts import part
from bivallate.roles import Composition
from bivallate.types import Terms
from bivallate.upper.loss import AroundLoss, Loss

__all__ = ["HelperExamples"]


@part
class HelperExamples(AroundLoss):
    """anchor + weight CE(x + reach (x_adv - x), y'), y' the class that a plain network gives x_adv.

    The term keeps the margin from growing beyond the ball along the attack. The point may be outside of
    [0, 1]. Without y' (no plain network yet), or with weight 0, the loss is the base.

    Attributes:
        base: the loss inside the ball.
        weight: gamma.
        reach: h.

    Cost: one forward and one backward more than the base, once there is a plain network.

    Reference: Rade and Moosavi-Dezfooli, HAT, ICLR 2022; public code.
    Deviation: on a second data stream (a lookahead) the base loss is used alone.
    """

    base: Loss
    weight: float = 0.5
    reach: float = 2.0

    def __post_init__(self) -> None:
        check_range("weight", self.weight, 0)
        check_range("reach", self.reach, 0)

    def check(self, method: Composition) -> None:
        """Raise UserError for a solver that does not label its points by a plain network."""
        advice = "use HelperLabels around a PGD, or the base alone"
        require_gathered(method, "the loss HelperExamples", "helper labels", "HelperLabels", advice)

    def __call__(self, problem: LowerProblem, x_adv: Tensor) -> Terms:
        terms = self.base(problem, x_adv)
        if self.weight == 0 or problem.helper is None or not problem.regularised:
            return terms
        beyond = problem.x + self.reach * (x_adv - problem.x)
        own = F.cross_entropy(problem.logits(beyond), problem.helper, reduction="none")
        return Terms(terms.robust, terms.anchor + self.weight * own, terms.logits)
