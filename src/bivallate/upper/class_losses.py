"""Losses of the class-wise methods: weights on other terms, and TRADES with a beta for each class."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from bivallate.errors import check_range
from bivallate.lower.labels import label_loss
from bivallate.lower.objective import kl
from bivallate.lower.problem import LowerProblem
from bivallate.lower.solver import require_gathered
from bivallate.parts import part
from bivallate.renamed import renamed_fields
from bivallate.roles import Composition
from bivallate.types import Terms
from bivallate.upper.loss import Loss


@renamed_fields(part="weighs")
@part
class Reweighed(Loss):
    """Another loss, with weights that multiply all of it, or its anchor instead of its robust term.

    Attributes:
        loss: the host.
        weighs: "all": the weights multiply robust + anchor; "anchor": robust and anchor are exchanged, so
            that with TRADES the weights multiply the clean cross-entropy.

    Cost: the host's.
    """

    loss: Loss
    weighs: Literal["all", "anchor"] = "all"

    @staticmethod
    def read_older(fields: dict[str, Any]) -> dict[str, Any]:
        """Read `part`, the former name of `weighs`."""
        if "weighs" in fields:
            return fields  # with both names `part` is refused as any unknown one
        return {"weighs" if name == "part" else name: value for name, value in fields.items()}

    def takes_two_labels(self) -> bool:
        """Whether the host does."""
        return self.loss.takes_two_labels()

    def __call__(self, problem: LowerProblem, x_adv: Tensor) -> Terms:
        terms = self.loss(problem, x_adv)
        if self.weighs == "anchor":
            return Terms(terms.anchor, terms.robust, terms.logits)
        whole = terms.robust + terms.anchor
        return Terms(whole, torch.zeros_like(whole), terms.logits)


@part
class ClassTrades(Loss):
    """anchor = (1 - b_y) CE(x), robust = b_y KL(p(x) || p(x_adv)), b_c = beta_c / (1 + beta_c).

    beta_c = (base + score_c) beta with the class scores in the solver's solution; beta before there are
    scores.

    Attributes:
        beta: weight of the KL term.
        base: lambda_2, added to the scores.
        smoothing: label smoothing of the cross-entropy, see `Adversarial`.

    Cost: two forwards, and two backwards.

    Reference: Wei et al., CFA, CVPR 2023, section 4 (class-wise calibrated regularisation); public code.
    """

    beta: float = 6.0
    base: float = 0.5
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_range("beta", self.beta, 0)
        check_range("base", self.base, 0)
        check_range("label smoothing", self.smoothing, 0, 1)

    def check(self, method: Composition) -> None:
        """Raise UserError for a solver that gathers no scores."""
        advice = "use Trades, or ClassRadius around a PGD"
        require_gathered(method, "the loss ClassTrades", "class scores", "ClassRadius", advice)

    def __call__(self, problem: LowerProblem, x_adv: Tensor) -> Terms:
        clean, logits, y = problem.logits(problem.x), problem.logits(x_adv), problem.y
        factor = torch.ones_like(clean[:, 0])
        if problem.class_score is not None:
            factor = (self.base + problem.class_score[y]).to(clean.dtype)
        beta = factor * self.beta
        share = beta / (1 + beta)
        anchor = (1 - share) * label_loss(problem, clean, self.smoothing)
        return Terms(share * kl(clean, logits), anchor, logits)
