"""Objectives of single-step methods: guided by the clean prediction, or with smoothed labels."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from bivallate.errors import check_range
from bivallate.lower.distances import DISTANCES, DistanceName, check_distance
from bivallate.lower.labels import label_loss
from bivallate.lower.problem import LowerProblem, Objective
from bivallate.parts import part
from bivallate.schedule import Schedule, value_at

__all__ = ["GuidedCrossEntropy", "SmoothedCrossEntropy", "smoothed_targets"]


@part
class GuidedCrossEntropy(Objective):
    """-log p_y(x + delta) and, in every other minibatch, weight times the distance from the clean prediction.

    Guided and plain attacks alternate: minibatches with an odd number within their epoch, counted from 0, are
    guided.

    Attributes:
        weight: lambda, a number or a schedule.
        distance: "softmax" (GAT), "nuclear" (NuAT), or another.

    Cost: one forward more in guided minibatches, for the clean logits.

    Reference: Sriramanan et al., GAT, NeurIPS 2020; NuAT, NeurIPS 2021; public code.
    Deviation: the clean logits are computed in the attack's mode; the public code computes them in train mode
    and so moves the running statistics.
    """

    WRITTEN_AS: ClassVar[str] = "Guiding"  # its word in configurations
    weight: float | Schedule
    distance: DistanceName = "softmax"

    def __post_init__(self) -> None:
        check_distance(self.distance)
        check_range("weight", self.weight, 0)

    def takes_two_labels(self) -> bool:
        """True: labels are read through `label_loss`."""
        return True

    def __call__(self, problem: LowerProblem, logits: Tensor) -> Tensor:
        cross_entropy = label_loss(problem, logits)
        if problem.clock.step % 2 == 0:
            return cross_entropy
        weight = value_at(self.weight, problem.clock)
        return cross_entropy + weight * DISTANCES[self.distance](problem.clean_logits, logits)


def smoothed_targets(problem: LowerProblem, classes: int, smoothing: float, purpose: str) -> Tensor:
    """(B, K) targets: 1 - smoothing on the label, the rest spread at random over the other classes.

    Args:
        problem: the labels, and the noise of their rows.
        classes: K.
        smoothing: in [0, 1].
        purpose: name of the draws.
    """
    y = problem.y[:, None]
    share = problem.noise.uniform(purpose, (classes,), problem.x.dtype).scatter(1, y, 0.0)
    share = smoothing * share / share.sum(1, keepdim=True).clamp(min=1e-12)
    return share.scatter(1, y, 1 - smoothing)


@part
class SmoothedCrossEntropy(Objective):
    """Cross-entropy with a smoothed label.

    Attributes:
        smoothing: s.
        random: whether s is spread at random over the other classes; otherwise every class, the label's too,
            has s / K more.
    """

    WRITTEN_AS: ClassVar[str] = "Smoothed"  # its word in configurations
    smoothing: float
    random: bool = False

    def __post_init__(self) -> None:
        check_range("label smoothing", self.smoothing, 0, 1)

    def takes_two_labels(self) -> bool:
        """False for random smoothing, which reads the label itself."""
        return not self.random

    def __call__(self, problem: LowerProblem, logits: Tensor) -> Tensor:
        if not self.random:
            return label_loss(problem, logits, self.smoothing)
        target = smoothed_targets(problem, logits.shape[1], self.smoothing, "smoothing")
        return -(target * logits.log_softmax(1)).sum(1)
