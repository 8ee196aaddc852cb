"""How the weighting network of BiLAW descends; the classifier's optimiser has nothing to do with it."""

from __future__ import annotations

import math
from typing import ClassVar, Protocol

from torch import Tensor

from bivallate.errors import UserError
from bivallate.parts import part

__all__ = ["AdamDescent", "Descent", "DescentRule"]

BETAS, EPSILON = (0.9, 0.999), 1e-8


class DescentRule(Protocol):
    """Moves a parameter in place: (parameter, gradient, step counted from 1, *moments) -> None.

    `moments` names the running tensors of a parameter's shape that the rule is handed, zero at first.
    """

    moments: ClassVar[tuple[str, ...]]

    def __call__(self, parameter: Tensor, gradient: Tensor, step: int, *moments: Tensor) -> None: ...


@part
class Descent:
    """mu <- mu - lr gradient, with nothing else (BiLAW, Algorithm 1, line 6).

    The meta-gradient is proportional to the classifier's learning rate, so the network learns more slowly as
    that rate falls.

    Attributes:
        lr: alpha, whose value the paper does not print. The default was chosen on held-out images
            (docs/bilaw.md); from about ten on the sigmoid saturates and all weights become equal.
        weight_decay: 0 in the paper.
    """

    lr: float = 1.0
    weight_decay: float = 0.0
    moments: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        _check(self.lr, self.weight_decay)

    def __call__(self, parameter: Tensor, gradient: Tensor, step: int, *moments: Tensor) -> None:
        parameter.sub_(self.lr * (gradient + self.weight_decay * parameter))


@part
class AdamDescent:
    """Adam with L2 weight decay, as in meta-weight-net, on which BiLAW builds; betas 0.9 and 0.999.

    Its steps hardly depend on the scale of the meta-gradient. With weight decay the decay therefore dominates
    where the meta-gradient is small: at 1e-4 the weights of BiLAW become equal.

    Attributes:
        lr, weight_decay: as of torch.optim.Adam.
    """

    lr: float = 1e-3
    weight_decay: float = 0.0
    moments: ClassVar[tuple[str, ...]] = ("first", "second")

    def __post_init__(self) -> None:
        _check(self.lr, self.weight_decay)

    def __call__(self, parameter: Tensor, gradient: Tensor, step: int, *moments: Tensor) -> None:
        (first, second), g = moments, gradient + self.weight_decay * parameter
        first.mul_(BETAS[0]).add_(g, alpha=1 - BETAS[0])
        second.mul_(BETAS[1]).addcmul_(g, g, value=1 - BETAS[1])
        correction1, correction2 = 1 - BETAS[0] ** step, 1 - BETAS[1] ** step
        parameter.sub_(self.lr * (first / correction1) / ((second / correction2).sqrt() + EPSILON))


def _check(lr: float, weight_decay: float) -> None:
    if not (math.isfinite(lr) and lr > 0 and math.isfinite(weight_decay) and weight_decay >= 0):
        raise UserError(
            f"lr must be positive and weight_decay not negative, both finite, got {lr!r} and {weight_decay!r}"
        )
