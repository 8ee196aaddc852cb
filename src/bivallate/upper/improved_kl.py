"""The improved Kullback-Leibler divergence (IKL) as a loss."""

from __future__ import annotations

import torch
from torch import Tensor

from bivallate import collective
from bivallate.errors import check_range
from bivallate.lower.labels import label_loss
from bivallate.lower.problem import LowerProblem
from bivallate.lower.solver import require_gathered
from bivallate.parts import part
from bivallate.roles import Composition
from bivallate.types import Terms
from bivallate.upper.loss import Loss

__all__ = ["ImprovedKL"]


@part
class ImprovedKL(Loss):
    """anchor = CE(x), robust = alpha H(p(x), p(x_adv)) + beta / 4 sum_jk w_j w_k (n_jk - a_jk)^2.

    The KL divergence has the same gradients as the sum of two terms: the cross-entropy H with p(x) held
    fixed, and a squared distance of the logit differences n_jk = z_j(x) - z_k(x) and a_jk at x_adv, weighed
    by the prediction. IKL changes the second term. Its weights w are the mean prediction of the image's class
    to a power, instead of the image's own prediction, and the gradient flows through both n and a. The term
    is divided by the minibatch's mean of (sum_j w_j)^2, which is 1 at power 1.

    Attributes:
        alpha, beta: weights of the two terms.
        power: gamma, exponent of the class's mean prediction.
        smoothing: label smoothing of the cross-entropy, see `Adversarial`.

    Cost: two forwards, and two backwards.

    Reference: Cui et al., Decoupled Kullback-Leibler Divergence Loss, NeurIPS 2024, eq. of IKL in section
    3.3; public code (`dkl_loss`).
    """

    alpha: float = 4.0
    beta: float = 20.0
    power: float = 1.0
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        for name in ("alpha", "beta", "power"):
            check_range(name, getattr(self, name), 0)
        check_range("label smoothing", self.smoothing, 0, 1)

    def check(self, method: Composition) -> None:
        """Refuse solvers that gather no mean predictions."""
        advice = "use Trades, or ClassMeans around a PGD"
        require_gathered(method, "the loss ImprovedKL", "mean predictions", "ClassMeans", advice)

    def __call__(self, problem: LowerProblem, x_adv: Tensor) -> Terms:
        clean, logits, means = problem.logits(problem.x), problem.logits(x_adv), problem.class_score
        anchor = label_loss(problem, clean, self.smoothing)
        same = -(clean.detach().softmax(1) * logits.log_softmax(1)).sum(1)
        w = torch.full_like(clean, 1 / clean.shape[1]) if means is None else means[problem.y].to(clean.dtype)
        w, moved = w**self.power, clean - logits
        whole = w.sum(1)
        # sum_jk w_j w_k (d_j - d_k)^2 = 2 (sum w sum w d^2 - (sum w d)^2)
        apart = (whole * (w * moved.square()).sum(1) - (w * moved).sum(1).square()) / 2
        robust = self.alpha * same + self.beta * apart / collective.mean(whole.square())
        return Terms(robust, anchor, logits)
