"""Weights by a fixed function of the margin (MAIL, WMMR), of the steps survived (GAIRAT) or of the loss."""

from __future__ import annotations

import math
from dataclasses import field, replace
from typing import Literal, Self

import torch
from torch import Tensor

from bivallate import collective
from bivallate.errors import UserError, unknown
from bivallate.parts import part
from bivallate.roles import Composition
from bivallate.schedule import Constant, Linear, Milestones, value_at
from bivallate.types import Evidence, probability_margin
from bivallate.weighting.base import Weighting

MARGINS = ("adversarial", "natural", "difference")
FORMS = ("tanh", "sigmoid", "discrete")


def mean_one(omega: Tensor) -> Tensor:
    """omega / mean(omega) over the whole minibatch; 1 where every omega underflows to zero."""
    mean = collective.mean(omega)
    return torch.where(mean > 0, omega / torch.where(mean > 0, mean, 1), 1)


@part
class MAIL(Weighting):
    """w_i proportional to sigmoid(slope (bias - PM_i)), PM the probability margin.

    Attributes:
        slope: gamma; 0 gives all examples the same weight.
        bias: beta, the margin at which omega is 1/2.
        margin: PM: "adversarial" p_y(x') - max_{j != y} p_j(x'), "natural" the same at x in eval mode (one
            forward more), or "difference" p_y(x') - p_y(x) (the same forward more).
        times_three: 3 omega_i instead of the normalisation to mean 1, as in the public code.

    Scale: mean 1; with `times_three` between 0 and 3.

    Reference: Wang et al., MAIL, NeurIPS 2021.
    Deviation: none by default; the public code multiplies by 3 instead of normalising (`times_three`).
    """

    slope: float = 10.0
    bias: float = -0.5
    margin: Literal["adversarial", "natural", "difference"] = "adversarial"
    times_three: bool = False

    def __post_init__(self) -> None:
        if self.margin not in MARGINS:
            raise unknown("margin", str(self.margin), MARGINS)
        if not (math.isfinite(self.slope) and math.isfinite(self.bias)):
            raise UserError(f"MAIL needs a finite slope and bias, got {self.slope!r} and {self.bias!r}")

    def weigh(self, evidence: Evidence) -> Tensor:
        """sigmoid(slope (bias - PM)), normalised."""
        omega = torch.sigmoid(self.slope * (self.bias - self._margin(evidence)))
        return 3 * omega if self.times_three else mean_one(omega)

    def _margin(self, evidence: Evidence) -> Tensor:
        if self.margin == "adversarial":
            return evidence.margin
        if self.margin == "natural":
            return probability_margin(evidence.clean_logits, evidence.y)
        adversarial, natural = evidence.logits.softmax(1), evidence.clean_logits.softmax(1)
        return (adversarial - natural).gather(1, evidence.y[:, None])[:, 0]


@part
class WMMR(Weighting):
    """w_i = exp(-alpha m_i), m_i the probability margin at the adversarial point.

    Attributes:
        alpha: sharpness; 0 gives all examples the same weight.
        differentiable: let the gradient of the loss flow through the weights too, as in the public code;
            false keeps them constant.
        normalised: divide by the mean weight, held constant (an option of the public code).

    Scale: every weight lies in [exp(-alpha), exp(alpha)] and is 1 at margin 0; mean 1 if `normalised`.

    Reference: Zeng et al., WMMR, AAAI 2021.
    """

    alpha: float = 0.5
    differentiable: bool = True  # pyright: ignore[reportIncompatibleVariableOverride]
    normalised: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.alpha) and self.alpha >= 0):
            raise UserError(f"WMMR alpha must be a finite number of at least 0, got {self.alpha!r}")

    def weigh(self, evidence: Evidence) -> Tensor:
        """exp(-alpha m)."""
        attached = evidence.attached if self.differentiable else None
        logits = attached if attached is not None else evidence.logits
        weights = torch.exp(-self.alpha * probability_margin(logits, evidence.y))
        return weights / collective.mean(weights.detach()) if self.normalised else weights


@part
class GAIRAT(Weighting):
    """w_i proportional to omega(kappa_i), kappa the number of attack iterates still classified correctly.

    With z = shift + 5 (1 - 2 kappa / steps): omega = (1 + tanh z) / 2, or sigmoid(z), or the discrete
    (steps + 1 - kappa) / (steps + 1), which ignores the shift. (1 + tanh z) / 2 is computed as the equal
    sigmoid(2 z), because in float32 1 + tanh z loses all accuracy at large negative z.

    Attributes:
        steps: K, the number of steps that the solver makes; another number raises UserError.
        shift: Lambda, a number or a schedule; infinity gives all examples the same weight.
        form: "tanh", "sigmoid" or "discrete".

    Scale: mean 1.

    Reference: Zhang et al., GAIRAT, ICLR 2021, eq. 6.
    Deviation: kappa counts all correct iterates, as the public code does (the paper's definition is the
    number of steps until the first wrong one; they differ where a prediction flips back). 5 (1 - 2 kappa / K)
    is real-valued; the public code halves K as an integer, which differs for odd K.
    """

    steps: int = 10
    shift: float | Constant | Milestones | Linear = field(default=-1.0)
    form: Literal["tanh", "sigmoid", "discrete"] = "tanh"

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise unknown("weight function of GAIRAT", str(self.form), FORMS)
        if not (isinstance(self.steps, int) and self.steps >= 1):
            raise UserError(f"GAIRAT steps must be a whole number of at least 1, got {self.steps!r}")
        if isinstance(self.shift, Linear) and not (
            math.isfinite(self.shift.start) and math.isfinite(self.shift.end)
        ):
            raise UserError("a linear shift needs finite ends: infinity times a fraction has no value")

    def stepped(self, length: float, number: float = 1.0) -> Self:
        """Return the rule that counts kappa out of `number` times as many steps."""
        return replace(self, steps=round(number * self.steps))

    def check(self, method: Composition) -> None:
        """Raise UserError unless the solver makes `steps` steps, out of which kappa is counted."""
        taken = method.solver.fixed_steps()
        if taken != self.steps:
            takes = taken if taken is not None else "no fixed number of"
            raise UserError(
                f"GAIRAT counts the steps survived out of {self.steps}, but the solver "
                f"{type(method.solver).__name__} takes {takes} steps: give both the same number, for "
                "instance by the method's own parameter `steps`"
            )

    def weigh(self, evidence: Evidence) -> Tensor:
        """omega(kappa), normalised."""
        kappa = evidence.kappa.to(evidence.robust.dtype)
        if self.form == "discrete":
            return mean_one((self.steps + 1 - kappa) / (self.steps + 1))
        shift = value_at(self.shift, evidence.clock)
        if math.isinf(shift):
            return torch.ones_like(kappa)
        z = shift + 5 * (1 - 2 * kappa / self.steps)
        return mean_one(torch.sigmoid(2 * z if self.form == "tanh" else z))


@part
class OwnLoss(Weighting):
    """w_i = robust_i, held constant: each example's loss is multiplied by its own value.

    Attributes:
        since: first epoch with these weights, counted from 0; before it all weights are 1.

    Scale: the mean weight is the mean robust loss, so the effective learning rate falls with it.

    Reference: the public code of Wang et al., ICML 2019; not in the paper.
    Deviation: that code makes another pass in inference mode for the weights; these are the training pass's.
    """

    since: int = 1

    def weigh(self, evidence: Evidence) -> Tensor:
        return evidence.robust if evidence.clock.epoch >= self.since else torch.ones_like(evidence.robust)
