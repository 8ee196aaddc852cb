"""The loss of a network whose logits follow those of a second one (LBGAT)."""

from __future__ import annotations

from torch import Tensor

from bivallate.errors import check_range
from bivallate.lower.labels import label_loss
from bivallate.lower.objective import kl
from bivallate.lower.problem import LowerProblem
from bivallate.lower.solver import require_gathered
from bivallate.parts import part
from bivallate.roles import Composition
from bivallate.types import Terms
from bivallate.upper.loss import Loss

__all__ = ["BoundaryGuided"]


@part
class BoundaryGuided(Loss):
    """robust = mean_k (z_k(x_adv) - g_k(x))^2 + alpha KL(p(x) || p(x_adv)), anchor = -gamma log q_y(x).

    g are the logits and q the prediction of a second network (`HelperNetwork`). The gradient flows to both
    networks, in the squared distance too. `guide_loss` in the log is the second one's mean cross-entropy.

    Attributes:
        alpha: weight of the KL term; without it x is not forwarded through the trained network.
        gamma: weight of the second network's cross-entropy.
        smoothing: label smoothing of that cross-entropy, see `Adversarial`.

    Cost: one forward and one backward, with alpha two of each, and one backward of the second network.

    Reference: Cui et al., Learnable Boundary Guided Adversarial Training, ICCV 2021; public code
    (`lbgat_loss`).
    """

    alpha: float = 0.0
    gamma: float = 1.0
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_range("alpha", self.alpha, 0)
        check_range("gamma", self.gamma, 0)
        check_range("label smoothing", self.smoothing, 0, 1)

    def check(self, method: Composition) -> None:
        """Raise UserError for a solver beside which no second network learns."""
        advice = "use Trades, or HelperNetwork around a PGD"
        require_gathered(method, "the loss BoundaryGuided", "helper logits", "HelperNetwork", advice)

    def takes_two_labels(self) -> bool:
        """True: labels are read through `label_loss`."""
        return True

    def __call__(self, problem: LowerProblem, x_adv: Tensor) -> Terms:
        guide = problem.helper
        assert guide is not None, "the solver has been checked"
        logits = problem.logits(x_adv)
        robust = (logits - guide).square().mean(1)
        if self.alpha:
            robust = robust + self.alpha * kl(problem.logits(problem.x), logits)
        own = label_loss(problem, guide, self.smoothing)
        problem.log["guide_loss"] = own.detach().mean()
        return Terms(robust, self.gamma * own, logits)
