"""An attacker's objective times a weight of the margin (WMMR)."""

from __future__ import annotations

from dataclasses import field

import torch
from torch import Tensor

from bivallate.lower.objective import cross_entropy
from bivallate.lower.problem import LowerProblem, Objective
from bivallate.parts import part
from bivallate.roles import Composition
from bivallate.types import probability_margin


@part
class MarginWeighted(Objective):
    """exp(-alpha m) times another objective, m the probability margin at the attacked point.

    Attributes:
        alpha: sharpness, the same as the weighting's.
        objective: what is weighted.
        detach: keep the weight constant; the sign of the gradient, and so every sign step, is then that of
            the objective alone.

    Reference: Zeng et al., WMMR, AAAI 2021, public code.
    """

    alpha: float = 0.5
    objective: Objective = field(default=cross_entropy)
    detach: bool = False

    def check(self, method: Composition) -> None:
        """What the weighted objective asks of a method."""
        self.objective.check(method)

    def __call__(self, problem: LowerProblem, logits: Tensor) -> Tensor:
        weight = torch.exp(-self.alpha * probability_margin(logits, problem.y))
        return (weight.detach() if self.detach else weight) * self.objective(problem, logits)
