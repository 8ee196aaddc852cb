"""Regularisers: wrappers of a loss that add a penalty to its anchor."""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
from torch import Tensor

from bivallate import collective
from bivallate.errors import UserError, check_range
from bivallate.lower.distances import cosines
from bivallate.lower.labels import label_loss
from bivallate.lower.modes import attacking, frozen
from bivallate.lower.objective import CrossEntropy
from bivallate.lower.problem import LowerProblem
from bivallate.lower.second_order import twice_differentiable
from bivallate.lower.threat import Linf
from bivallate.parts import part
from bivallate.roles import Composition
from bivallate.types import Terms
from bivallate.upper.loss import AroundLoss, Loss


def grad_align_coefficient(eps: float) -> float:
    """The published coefficient for Linf: exp(255 eps ln(10) / 8 + ln 0.02), 0.2 at 8/255, 2 at 16/255.

    Deviation: the formula was fitted up to 16/255 and grows tenfold every 8/255; beyond that radius its last
    value is used.

    Example:
        >>> [round(grad_align_coefficient(e / 255), 3) for e in (2, 8, 16, 32)]
        [0.036, 0.2, 2.0, 2.0]
    """
    return math.exp(min(255 * eps, 16.0) * math.log(10) / 8 + math.log(0.02))


@part
class GradAlign(AroundLoss):
    """anchor + coefficient * (1 - mean_i cos(g_i(0), g_i(eta))), g_i(e) = d CE_i / dx at x_i + e.

    eta is uniform in the ball, and x + eta is not clipped to [0, 1]. The penalty keeps the loss locally
    linear inside the ball, which one-step attacks need. Examples with a zero gradient are left out of the
    mean. Both gradients are taken in the loss's own mode, usually with batch statistics; running statistics
    do not move, and dropout is off.

    Attributes:
        base: the loss to regularise.
        coefficient: weight of the penalty; None follows `grad_align_coefficient`.
        detach: hold g(0) constant.

    Cost: one forward and one double backward (three backwards) more than the base, and one forward and one
    backward for g(0), unless the attack has computed it: on the cross-entropy, from zero, in train mode.

    Reference: Andriushchenko and Flammarion, NeurIPS 2020, eq. 4-5.
    Deviation: the formula is symmetric in the two gradients; both public codes detach g(0), and so does the
    default. On a second data stream (a lookahead) the base loss is used alone.
    """

    base: Loss
    coefficient: float | None = None
    detach: bool = True

    def check(self, method: Composition) -> None:
        """Raise UserError for the default coefficient without Linf, and for one below 0."""
        if self.coefficient is None and not isinstance(method.threat, Linf):
            raise UserError(
                "the law of GradAlign's coefficient was fitted for Linf: give a coefficient, for example "
                f"0.2, with {type(method.threat).__name__}"
            )
        if self.coefficient is not None:
            check_range("GradAlign's coefficient", self.coefficient, 0)

    def takes_two_labels(self) -> bool:
        """Whether the base does: the penalty reads labels through `label_loss`."""
        return self.base.takes_two_labels()

    def __call__(self, problem: LowerProblem, x_adv: Tensor) -> Terms:
        terms = self.base(problem, x_adv)
        if not problem.regularised:
            return terms
        coefficient = self.coefficient
        if coefficient is None:
            coefficient = grad_align_coefficient(problem.threat.eps)
        cos, kept = self._alignment(problem)
        rows = collective.total(kept.to(cos.dtype).sum())
        share = collective.size(problem.batch) / rows.clamp(min=1)
        anchor = terms.anchor + coefficient * share * torch.where(kept, 1 - cos, 0)
        return Terms(terms.robust, anchor, terms.logits)

    def _alignment(self, problem: LowerProblem) -> tuple[Tensor, Tensor]:
        """(B,) cosine of the two gradients, with graph, and (B,) bool: both are non-zero."""
        x, module = problem.x, problem.forward.module
        eta = problem.threat.random(problem.noise, x, "eta")
        start = problem.start if self.detach and isinstance(problem.objective, CrossEntropy) else None
        g0 = start.gradient_at_zero if start is not None and start.training == module.training else None
        with attacking(module, "train" if module.training else "eval"):
            if g0 is None:
                with frozen(module) if self.detach else nullcontext():
                    g0 = _input_gradient(problem, x, graph=not self.detach)
            g1 = _input_gradient(problem, x + eta, graph=True)
        # second-order halves, of g1 (and g0)
        problem.forward.passes.backward += (1 if self.detach else 2) * len(x)
        return cosines(g0, g1)


def _input_gradient(problem: LowerProblem, x: Tensor, *, graph: bool) -> Tensor:
    """(B, C, H, W) d CE_i / dx_i."""
    point = x.detach().requires_grad_()
    with twice_differentiable() if graph else nullcontext():
        loss = label_loss(problem, problem.logits(point, exact=True)).sum()
    return torch.autograd.grad(loss, point, create_graph=graph)[0]


def grad_align(base: Loss, coefficient: float | None = None) -> Loss:
    """Add gradient alignment to a loss: `method.but(loss=grad_align(method.loss, 0.2))`.

    A coefficient of 0 returns the loss itself.
    """
    return base if coefficient == 0 else GradAlign(base, coefficient)
