"""Losses of the upper level, one value an example, in two terms.

The example weights multiply the robust term, and not the anchor.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from bivallate.errors import check_range
from bivallate.kept_constants import filled_like
from bivallate.lower.labels import label_loss
from bivallate.lower.objective import CrossEntropy, kl
from bivallate.lower.problem import LowerProblem
from bivallate.parts import part
from bivallate.roles import Role
from bivallate.types import Terms


class Loss(Role, ABC):
    """(problem, x_adv) -> Terms, x_adv (B, C, H, W) the attacked points of the problem.

    To write a loss, derive a part from this class and write `__call__` alone: logits from
    `problem.logits(points)`, labels from `problem.y`, one value an example. A part in a file of its own is
    found as `part` says. What stands below are permissions that a loss may declare; without them it works
    with every method, at the cost of a pass or of a refusal:

    - `reuses_forward = True`, if its one pass is `problem.logits_at_solution(x_adv)`. A coupling may then
      make that pass for it. A loss that declares it and does not ask is refused at its first step.
    - `follows(objective)`, if `robust` has the objective's gradient at the logits, times a number for each
      example. A coupling that shares the pass then spares a backward pass and a wait for the device. Where
      this is not so, the coupling's gradient would be wrong: a run's first step looks, and refuses it.
    - `takes_two_labels()`, if it reads labels through `label_loss` alone, so that CutMix may be used.
    - `check(method)`, if it needs something of the other parts. A loss around another one derives from
      `AroundLoss`; a method asks both.
    """

    reuses_forward: ClassVar[bool] = False

    def follows(self, objective: object) -> bool:
        """Whether d robust / d logits is, for each example, a multiple of d objective / d logits."""
        return False

    @abstractmethod
    def __call__(self, problem: LowerProblem, x_adv: Tensor) -> Terms: ...


class AroundLoss(Loss):
    """A loss that adds to another one, its field `base`.

    `AWP` and `Reweighed` are others, whose field is called `loss` in files.
    """

    base: Loss


@part
class Adversarial(Loss):
    """robust = -log p_y(x_adv), no anchor.

    Attributes:
        smoothing: label smoothing s: the target is (1 - s) on the label, plus s / K on every class.

    Cost: one forward, one backward.

    Raises:
        UserError: smoothing outside [0, 1].
    """

    smoothing: float = 0.0
    reuses_forward: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_range("label smoothing", self.smoothing, 0, 1)

    def follows(self, objective: object) -> bool:
        """True without smoothing for the cross-entropy objective."""
        return self.smoothing == 0 and isinstance(objective, CrossEntropy)

    def takes_two_labels(self) -> bool:
        """True: labels are read through `label_loss`."""
        return True

    def __call__(self, problem: LowerProblem, x_adv: Tensor) -> Terms:
        logits = problem.logits_at_solution(x_adv)
        robust = label_loss(problem, logits, self.smoothing)
        return Terms(robust, filled_like(robust, 0), logits)


@part
class Trades(Loss):
    """TRADES: anchor = -log p_y(x), robust = beta KL(p(x) || p(x_adv)).

    The gradient flows through both predictions.

    Attributes:
        beta: weight of the KL term, at least 0.
        smoothing: label smoothing of the cross-entropy, see `Adversarial`.

    Cost: two forwards, and two backwards.

    Raises:
        UserError: a negative beta, or smoothing outside [0, 1].

    Reference: Zhang et al., TRADES, ICML 2019, eq. 5; beta = 1/lambda.
    Deviation: the public code forwards x a third time.
    """

    beta: float = 6.0
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_range("beta", self.beta, 0)
        check_range("label smoothing", self.smoothing, 0, 1)

    def takes_two_labels(self) -> bool:
        """True: labels are read through `label_loss`."""
        return True

    def __call__(self, problem: LowerProblem, x_adv: Tensor) -> Terms:
        clean, logits = problem.logits(problem.x), problem.logits(x_adv)
        anchor = label_loss(problem, clean, self.smoothing)
        return Terms(self.beta * kl(clean, logits), anchor, logits)


@part
class Mart(Loss):
    """MART: boosted cross-entropy at x_adv, and a KL term for misclassified examples.

    robust = boosted cross-entropy, anchor = beta KL(p(x) || p(x_adv)) (1 - p_y(x)).

    The boosted cross-entropy is -log p_y(x_adv) - log(1.0001 - max_{k != y} p_k(x_adv)). The gradient also
    flows through the factor 1 - p_y(x).

    Attributes:
        beta: the paper's lambda, at least 0.
        smoothing: label smoothing of the cross-entropy, see `Adversarial`.
        boosted: whether to add the margin term -log(1.0001 - max p_k); without it and with beta = 0 this is
            adversarial training.

    Cost: two forwards, and two backwards.

    Reference: Wang et al., MART, ICLR 2020, eq. 7-9, with the public code's constants.
    """

    beta: float = 5.0
    smoothing: float = 0.0
    boosted: bool = True

    def __post_init__(self) -> None:
        check_range("beta", self.beta, 0)
        check_range("label smoothing", self.smoothing, 0, 1)

    def __call__(self, problem: LowerProblem, x_adv: Tensor) -> Terms:
        clean, logits, y = problem.logits(problem.x), problem.logits(x_adv), problem.y
        log_p, q = clean.log_softmax(1), logits.softmax(1)
        robust = F.cross_entropy(logits, y, reduction="none", label_smoothing=self.smoothing)
        if self.boosted:
            wrong = q.scatter(1, y[:, None], -1.0).amax(1)
            robust = robust - (1.0001 - wrong + 1e-12).log()
        divergence = (log_p.exp() * (log_p - (q + 1e-12).log())).sum(1)
        doubt = 1 - log_p.gather(1, y[:, None])[:, 0].exp() + 1e-7
        return Terms(robust, self.beta * divergence * doubt, logits)


adversarial = Adversarial()
