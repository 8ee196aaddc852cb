"""Robust losses, one value an example, split into the part that example weights multiply and the part they do
not."""

from __future__ import annotations

from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from bivallate.lower.objective import kl
from bivallate.lower.problem import Forward
from bivallate.parts import part
from bivallate.types import Terms


class Loss(Protocol):
    """(model, x, x_adv, y) -> Terms.

    `reuses_forward` promises to call the model exactly once, first, and on `x_adv` itself, so that a coupling
    may have made that pass already.
    """

    reuses_forward: ClassVar[bool]

    def __call__(self, model: Forward, x: Tensor, x_adv: Tensor, y: Tensor) -> Terms: ...


@part
class Adversarial:
    """robust = -log p_y(x_adv), no anchor. Cost: one forward.

    Attributes:
        smoothing: label smoothing s: the target is (1 - s) on the label and s/K everywhere.
    """

    smoothing: float = 0.0
    reuses_forward: ClassVar[bool] = True

    def __call__(self, model: Forward, x: Tensor, x_adv: Tensor, y: Tensor) -> Terms:
        logits = model(x_adv)
        robust = F.cross_entropy(logits, y, reduction="none", label_smoothing=self.smoothing)
        return Terms(robust, torch.zeros_like(robust), logits)


@part
class Trades:
    """anchor = -log p_y(x), robust = beta KL(p(x) || p(x_adv)); the gradient flows through both. Cost: two
    forwards.

    Reference: Zhang et al., TRADES, ICML 2019, eq. 5; beta = 1/lambda.
    Deviation: the public code forwards x a third time.
    """

    beta: float = 6.0
    smoothing: float = 0.0
    reuses_forward: ClassVar[bool] = False

    def __call__(self, model: Forward, x: Tensor, x_adv: Tensor, y: Tensor) -> Terms:
        clean, logits = model(x), model(x_adv)
        anchor = F.cross_entropy(clean, y, reduction="none", label_smoothing=self.smoothing)
        return Terms(self.beta * kl(clean, logits), anchor, logits)


adversarial = Adversarial()
