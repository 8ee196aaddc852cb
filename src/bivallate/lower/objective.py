"""What the attacker maximises, one value an example."""

from __future__ import annotations

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from bivallate.lower.problem import LowerProblem
from bivallate.parts import part


class Objective(Protocol):
    """(problem, logits (B, K)) -> (B,), differentiable in the logits."""

    def __call__(self, problem: LowerProblem, logits: Tensor) -> Tensor: ...


@part
class CrossEntropy:
    """-log p_y(x + delta)."""

    def __call__(self, problem: LowerProblem, logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, problem.y, reduction="none")


@part
class KLToClean:
    """KL(p(x) || p(x + delta)), summed over classes; the clean distribution is constant (TRADES, eq. 5).

    Its gradient is exactly zero at delta = 0: start elsewhere. Cost: one forward more, once, for the clean
    logits.
    """

    def __call__(self, problem: LowerProblem, logits: Tensor) -> Tensor:
        return kl(problem.clean_logits, logits)


@part
class Margin:
    """-max(z_y - max_{j != y} z_j + confidence, 0): the C&W objective in the form the field's code uses.

    With the customary confidence of 50 the outer maximum is practically never active (methods E4).
    """

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


cross_entropy = CrossEntropy()
kl_to_clean = KLToClean()
margin = Margin()
