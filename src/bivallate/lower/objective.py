"""Objectives: what the attacker maximises, one value an example."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from bivallate.lower.labels import label_loss
from bivallate.lower.problem import LowerProblem, Objective
from bivallate.parts import part
from bivallate.types import probability_margin

CLEAR = 1e-4  # negative margin, relative to the largest logit, that counts as clearly misclassified


@part
class CrossEntropy(Objective):
    """-log p_y(x + delta)."""

    recordable: ClassVar[bool] = True

    def __call__(self, problem: LowerProblem, logits: Tensor) -> Tensor:
        return label_loss(problem, logits)

    def takes_two_labels(self) -> bool:
        """True: labels are read through `label_loss`."""
        return True


@part
class KLToClean(Objective):
    """KL(p(x) || p(x + delta)), summed over classes; the clean distribution is constant (TRADES, eq. 5).

    Its gradient is exactly zero at delta = 0, so that an attack must start elsewhere.

    Cost: one more forward for each minibatch, for the clean logits.
    """

    recordable: ClassVar[bool] = True

    def __call__(self, problem: LowerProblem, logits: Tensor) -> Tensor:
        return kl(problem.clean_logits, logits)

    def takes_two_labels(self) -> bool:
        """True: it reads no label."""
        return True


@part
class Margin(Objective):
    """-max(z_y - max_{j != y} z_j + confidence, 0): the C&W objective in its customary form.

    With the customary confidence of 50 the outer maximum is practically never active.
    """

    recordable: ClassVar[bool] = True
    confidence: float = 50.0

    def __call__(self, problem: LowerProblem, logits: Tensor) -> Tensor:
        return -(logit_margin(logits, problem.y) + self.confidence).clamp(min=0)


def kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """(B,) KL(softmax(p_logits) || softmax(q_logits)), in nats."""
    return F.kl_div(q_logits.log_softmax(1), p_logits.log_softmax(1), reduction="none", log_target=True).sum(
        1
    )


def logit_margin(logits: Tensor, y: Tensor) -> Tensor:
    """(B,) z_y - max_{j != y} z_j; positive when classified correctly."""
    true = logits.gather(1, y[:, None])[:, 0]
    return true - logits.scatter(1, y[:, None], -float("inf")).amax(1)


@part
class LogitMargin(Objective):
    """-(z_y - max_{j != y} z_j), positive when misclassified."""

    recordable: ClassVar[bool] = True

    def __call__(self, problem: LowerProblem, logits: Tensor) -> Tensor:
        return -logit_margin(logits, problem.y)


@part
class DLR(Objective):
    """-(z_y - max_{j != y} z_j) / (z_(1) - z_(3) + 1e-12), invariant to the scale of the logits.

    z_(k) is the k-th largest logit. The gradient flows through the denominator. With fewer than three classes
    the numerator alone is used.
    """

    recordable: ClassVar[bool] = True

    def __call__(self, problem: LowerProblem, logits: Tensor) -> Tensor:
        top = logits.topk(min(3, logits.shape[1]), dim=1).values
        lead = -logit_margin(logits, problem.y)
        return lead / (top[:, 0] - top[:, 2] + 1e-12) if top.shape[1] == 3 else lead


@dataclass(frozen=True)
class TowardsTarget(Objective):
    """z_t - z_y for a target class t of each example, which FAB linearises.

    Attributes:
        target: (B,) int64.
    """

    target: Tensor

    def __call__(self, problem: LowerProblem, logits: Tensor) -> Tensor:
        return _pick(logits, self.target) - _pick(logits, problem.y)

    def select(self, rows: Tensor) -> TowardsTarget:
        """The objective of some examples."""
        return TowardsTarget(self.target[rows])


@dataclass(frozen=True)
class TargetedDLR(Objective):
    """-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2 + 1e-12), t a target class of each example.

    With fewer than four classes the numerator alone is used.

    Attributes:
        target: (B,) int64.
    """

    target: Tensor

    def __call__(self, problem: LowerProblem, logits: Tensor) -> Tensor:
        lead = _pick(logits, self.target) - _pick(logits, problem.y)
        if logits.shape[1] < 4:
            return lead
        top = logits.topk(4, dim=1).values
        return lead / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)

    def select(self, rows: Tensor) -> TargetedDLR:
        """The objective of some examples."""
        return TargetedDLR(self.target[rows])


def _pick(logits: Tensor, label: Tensor) -> Tensor:
    return logits.gather(1, label[:, None])[:, 0]


def runner_up(clean_logits: Tensor, y: Tensor, rank: Tensor) -> Tensor:
    """(B,) the class at position `rank` (0: the most likely) among those other than y."""
    others = clean_logits.scatter(1, y[:, None], -float("inf"))
    order = others.argsort(dim=1, descending=True, stable=True)
    return order.gather(1, rank[:, None])[:, 0]


def narrow(problem: LowerProblem, rows: Tensor) -> LowerProblem:
    """The problems of some examples, also for an objective with a value for each example."""
    chosen = problem.objective
    own = chosen.select(rows) if isinstance(chosen, TowardsTarget | TargetedDLR) else chosen
    return problem.select(rows).but(own)


def clearly_fooled(problem: LowerProblem, logits: Tensor, y: Tensor) -> Tensor:
    """(B,) bool: misclassified by more than the rounding of a faster copy of the model."""
    rounding = problem.forward.rounding
    clear = CLEAR if rounding is None else rounding
    return logit_margin(logits, y) < -clear * logits.abs().amax(1)


cross_entropy = CrossEntropy()


@part
class MarginWeighted(Objective):
    """exp(-alpha m) times another objective, m the probability margin at the attacked point.

    Attributes:
        alpha: sharpness, equal to that of the weighting.
        objective: the weighted objective.
        detach: hold the weight constant; the sign of the gradient, and so every sign step, is then that of
            the objective alone.

    Reference: Zeng et al., WMMR, AAAI 2021, public code.
    """

    alpha: float = 0.5
    objective: Objective = field(default=cross_entropy)
    detach: bool = False

    def __call__(self, problem: LowerProblem, logits: Tensor) -> Tensor:
        weight = torch.exp(-self.alpha * probability_margin(logits, problem.y))
        return (weight.detach() if self.detach else weight) * self.objective(problem, logits)


kl_to_clean = KLToClean()
margin = Margin()
dlr = DLR()
