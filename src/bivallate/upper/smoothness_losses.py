"""Losses that keep predictions at two points close: guided, consistent, locally linear."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bivallate import collective
from bivallate.errors import UserError, check_range
from bivallate.lower.distances import DISTANCES, DistanceName, check_distance
from bivallate.lower.guided_objectives import smoothed_targets
from bivallate.lower.labels import label_loss
from bivallate.lower.problem import LowerProblem
from bivallate.lower.threat import Linf
from bivallate.parts import part
from bivallate.roles import Composition
from bivallate.schedule import Schedule, value_at
from bivallate.types import Terms, per_example
from bivallate.upper.loss import AroundLoss, Loss

__all__ = ["Abnormal", "Consistent", "Guided", "LocallyLinear", "NoisyLabels", "elle_coefficient"]


@part
class Guided(Loss):
    """A smoothness penalty: robust = weight times the distance of predictions at x and x_adv.

    anchor = -log p_y(x).

    Attributes:
        weight: lambda, a number or a schedule.
        distance: "softmax" (GAT), "nuclear" (NuAT), or another.
        smoothing: label smoothing of the cross-entropy, see `Adversarial`.

    Cost: two forwards, and two backwards.

    Reference: Sriramanan et al., GAT, NeurIPS 2020; NuAT, NeurIPS 2021.
    """

    weight: float | Schedule
    distance: DistanceName = "softmax"
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_distance(self.distance)
        check_range("weight", self.weight, 0)
        check_range("label smoothing", self.smoothing, 0, 1)

    def takes_two_labels(self) -> bool:
        """True: labels are read through `label_loss`."""
        return True

    def __call__(self, problem: LowerProblem, x_adv: Tensor) -> Terms:
        logits, clean = problem.logits(x_adv), problem.logits(problem.x)
        robust = value_at(self.weight, problem.clock) * DISTANCES[self.distance](clean, logits)
        return Terms(robust, label_loss(problem, clean, self.smoothing), logits)


@part
class NoisyLabels(Loss):
    """robust = cross-entropy at x_adv with 1 - s on the label and s spread at random over the other classes.

    Attributes:
        smoothing: s.

    Cost: one forward, one backward.
    """

    smoothing: float = 0.6

    def __post_init__(self) -> None:
        check_range("label smoothing", self.smoothing, 0, 1)

    def __call__(self, problem: LowerProblem, x_adv: Tensor) -> Terms:
        logits = problem.logits(x_adv)
        target = smoothed_targets(problem, logits.shape[1], self.smoothing, "smoothing of the loss")
        robust = -(target * logits.log_softmax(1)).sum(1)
        return Terms(robust, torch.zeros_like(robust), logits)


@part
class Consistent(AroundLoss):
    """anchor + weight times the distance between the predictions at the attack's start and at its end.

    The gradient flows through both predictions.

    Attributes:
        base: the loss at the end.
        weight: lambda, a number or a schedule.
        distance: "logits" (FGSM-PGI), "jensen-shannon" (LIET), or another.

    Cost: the base's and one backward if the solver keeps its pass, else one forward and one backward.

    Reference: Jia et al., ECCV 2022 (FGSM-PGI); LIET's public code.
    Deviation: on a second data stream (a lookahead) the base loss is used alone.
    """

    base: Loss
    weight: float | Schedule = 10.0
    distance: DistanceName = "logits"

    def __post_init__(self) -> None:
        check_distance(self.distance)
        check_range("weight", self.weight, 0)

    def check(self, method: Composition) -> None:
        """Raise UserError for a solver that does not keep its starting point."""
        _check_start(method, "Consistent")

    def takes_two_labels(self) -> bool:
        """Whether the base does: the distance reads no label."""
        return self.base.takes_two_labels()

    def __call__(self, problem: LowerProblem, x_adv: Tensor) -> Terms:
        terms = self.base(problem, x_adv)
        if not problem.regularised or problem.start is None:
            return terms
        apart = DISTANCES[self.distance](problem.logits_at_start(), terms.logits)
        return Terms(terms.robust, terms.anchor + value_at(self.weight, problem.clock) * apart, terms.logits)


def elle_coefficient(eps: float) -> float:
    """The public code's lambda for Linf on CIFAR-10: 1000 up to 8/255, 5000 up to 20/255, 10000 up to 26/255.

    Beyond 26/255, where nothing was published, it is 10: on digits at eps = 0.2 training works with 10, and
    ends in infinite losses with 1000 and more.

    Example:
        >>> [elle_coefficient(e / 255) for e in (8, 10, 20, 22, 51)]
        [1000.0, 5000.0, 5000.0, 10000.0, 10.0]
    """
    units = 255 * eps
    return 1000.0 if units < 9 else 5000.0 if units < 21 else 10000.0 if units < 27 else 10.0


@part
class LocallyLinear(AroundLoss):
    """anchor + coefficient (l(x_c) - (1 - a) l(x_a) - a l(x_b))^2, l the cross-entropy.

    x_a and x_b are uniform in the ball, not clipped to [0, 1]; x_c = (1 - a) x_a + a x_b, with a uniform in
    (0, 1) for each example. The three points are one pass, with common batch statistics.

    Attributes:
        base: the loss to regularise.
        coefficient: lambda; None follows `elle_coefficient`.

    Cost: three forwards and three backwards more than the base.

    Reference: Abad Rocamora et al., ELLE, ICLR 2024; public code.
    Deviation: on a second data stream (a lookahead) the base loss is used alone.
    """

    base: Loss
    coefficient: float | None = None

    def check(self, method: Composition) -> None:
        """Raise UserError for the default coefficient without Linf, and for one below 0."""
        if self.coefficient is None and not isinstance(method.threat, Linf):
            raise UserError(
                "the law of ELLE's coefficient is of Linf: give a coefficient, for example 1000, with "
                f"{type(method.threat).__name__}"
            )
        if self.coefficient is not None:
            check_range("ELLE's coefficient", self.coefficient, 0)

    def __call__(self, problem: LowerProblem, x_adv: Tensor) -> Terms:
        terms = self.base(problem, x_adv)
        if not problem.regularised:
            return terms
        given, x = self.coefficient, problem.x
        coefficient = elle_coefficient(problem.threat.eps) if given is None else given
        first, second = (x + problem.threat.random(problem.noise, x, f"triplet/{k}") for k in "ab")
        share = problem.noise.uniform("triplet/share", (), x.dtype)
        between = torch.lerp(first, second, per_example(share, x))
        logits = problem.logits(torch.cat([first, second, between]))
        a, b, c = F.cross_entropy(logits, problem.y.repeat(3), reduction="none").chunk(3)
        error = (c - (1 - share) * a - share * b).square()
        problem.log["linearity_error"] = error.detach().mean()
        return Terms(terms.robust, terms.anchor + coefficient * error, terms.logits)


@part
class Abnormal(AroundLoss):
    """anchor + terms for examples whose loss fell in the attack: abnormal adversarial examples (AAER).

    A is the set of examples whose cross-entropy at x_adv is lower than at the attack's start, v_i the squared
    distance of the logits at the two points, and v its mean over the examples outside of A. An example of A
    adds loss_weight (CE_i(start) - CE_i(x_adv)) + variation_weight (v_i - v); the second term only if the
    mean of v_i over A is above v. Nothing is added if A is empty or holds all examples.

    Attributes:
        base: the loss to regularise.
        loss_weight, variation_weight: lambda_1 times lambda_2, and times lambda_3.
        constant: hold the loss difference constant, as in the public code: it adds to the loss but not to the
            gradient. False lets its gradient through.

    Cost: the base's; the other pass is the attack's.

    Reference: Lin et al., AAER, NeurIPS 2023; public code, in which v and the logits at the start are
    constant too.
    Deviation: on a second data stream (a lookahead) the base loss is used alone.
    """

    base: Loss
    loss_weight: float = 4.0
    variation_weight: float = 1.5
    constant: bool = True

    def __post_init__(self) -> None:
        check_range("loss_weight", self.loss_weight, 0)
        check_range("variation_weight", self.variation_weight, 0)

    def check(self, method: Composition) -> None:
        """Raise UserError for a solver that does not keep its starting point."""
        _check_start(method, "Abnormal")

    def __call__(self, problem: LowerProblem, x_adv: Tensor) -> Terms:
        terms = self.base(problem, x_adv)
        if not problem.regularised or problem.start is None:
            return terms
        y, first = problem.y, problem.start.logits.detach()
        fall = F.cross_entropy(first, y, reduction="none") - F.cross_entropy(
            terms.logits, y, reduction="none"
        )
        moved = (first - terms.logits).square().sum(1)
        odd = (fall.detach() > 0).to(moved.dtype)
        sums = torch.stack([odd.sum(), (1 - odd).sum(), (odd * moved).sum(), ((1 - odd) * moved).sum()])
        many, few, of_odd, of_rest = collective.total(sums.detach()).unbind()
        problem.log["abnormal"] = many / (many + few)
        both = (many > 0) & (few > 0)  # stays on the device: the host need not wait
        usual = of_rest / few.clamp(min=1)
        varies = self.variation_weight * (moved - usual) * (of_odd / many.clamp(min=1) > usual)
        own = self.loss_weight * (fall.detach() if self.constant else fall) + varies
        return Terms(terms.robust, terms.anchor + torch.where(both, odd * own, 0), terms.logits)


def _check_start(method: Composition, name: str) -> None:
    if not method.solver.keeps_start():
        raise UserError(
            f"the loss {name} asks what the network said where the attack began, which the solver "
            f"{type(method.solver).__name__} does not tell: use PGD with a step or more, for example"
        )
