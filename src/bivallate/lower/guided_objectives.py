"""Objectives of single-step methods: guided by the clean prediction, and of smoothed labels."""

from __future__ import annotations

from torch import Tensor

from bivallate.errors import check_range
from bivallate.lower.distances import DISTANCES, DistanceName, check_distance
from bivallate.lower.labels import label_loss
from bivallate.lower.problem import LowerProblem, Objective
from bivallate.parts import part
from bivallate.schedule import Schedule, at

__all__ = ["Guiding", "Smoothed", "smoothed_targets"]


@part
class Guiding(Objective):
    """-log p_y(x + delta) and, in every other minibatch, weight times the distance from the clean prediction.

    The minibatches are those of odd number within their epoch, so that guided and plain attacks alternate.

    Attributes:
        weight: lambda, a number or a schedule. distance: "softmax" (GAT), "nuclear" (NuAT), or another.

    Cost: one forward more in guided minibatches, for the clean logits.

    Reference: Sriramanan et al., GAT, NeurIPS 2020; NuAT, NeurIPS 2021; public code.
    Deviation: the clean logits are of the attack's mode; that code takes them in train mode, and moves the
    running statistics with them.
    """

    weight: float | Schedule
    distance: DistanceName = "softmax"

    def __post_init__(self) -> None:
        check_distance(self.distance)

    def takes_mixed(self) -> bool:
        """It does."""
        return True

    def __call__(self, problem: LowerProblem, logits: Tensor) -> Tensor:
        plain = label_loss(problem, logits)
        if problem.clock.step % 2 == 0:
            return plain
        weight = at(self.weight, problem.clock)
        return plain + weight * DISTANCES[self.distance](problem.clean_logits, logits)


def smoothed_targets(problem: LowerProblem, classes: int, smoothing: float, purpose: str) -> Tensor:
    """(B, K) 1 - smoothing on the label, and the rest spread at random over the other classes.

    purpose: of the draws, which are each row's own.
    """
    y = problem.y[:, None]
    share = problem.noise.uniform(purpose, (classes,), problem.x.dtype).scatter(1, y, 0.0)
    share = smoothing * share / share.sum(1, keepdim=True).clamp(min=1e-12)
    return share.scatter(1, y, 1 - smoothing)


@part
class Smoothed(Objective):
    """Cross-entropy with a smoothed label.

    Attributes:
        smoothing: s: 1 - s on the label and s / K everywhere, or s spread at random over the other classes.
        random: which of them.
    """

    smoothing: float
    random: bool = False

    def __post_init__(self) -> None:
        check_range("label smoothing", self.smoothing, 0, 1)

    def takes_mixed(self) -> bool:
        """Not where it spreads what is not on the one label."""
        return not self.random

    def __call__(self, problem: LowerProblem, logits: Tensor) -> Tensor:
        if not self.random:
            return label_loss(problem, logits, self.smoothing)
        target = smoothed_targets(problem, logits.shape[1], self.smoothing, "smoothing")
        return -(target * logits.log_softmax(1)).sum(1)
