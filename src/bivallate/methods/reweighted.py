"""Methods that weigh the examples."""

from __future__ import annotations

import math
from typing import Literal

from bivallate.errors import UserError, unknown
from bivallate.lower.objective import MarginWeighted, cross_entropy, kl_to_clean
from bivallate.lower.pgd import PGD
from bivallate.lower.start import gaussian, uniform
from bivallate.lower.stop import Misclassified
from bivallate.lower.threat import Threat
from bivallate.method import Method
from bivallate.methods.entries import register
from bivallate.schedule import Linear, Milestones
from bivallate.upper.loss import Mart, Trades, adversarial
from bivallate.weighting.base import After
from bivallate.weighting.rules import GAIRAT, MAIL, WMMR

ShiftSchedule = Literal["fixed", "linear", "piecewise"]
Margin = Literal["adversarial", "natural", "difference"]

RECIPE = 0.007 / 0.031  # the step size of the TRADES, MART, MAIL and GAIRAT code bases, in units of eps


@register("mart", family="reweighted", paper="Wang et al., ICLR 2020", cost="(K+2)F + (K+2)B")
def mart(threat: Threat, *, beta: float = 5.0, steps: int = 10, step_size: float = RECIPE) -> Method:
    """MART: boosted cross-entropy, and a KL term that weighs misclassified examples more.

    Minimises mean BCE(x') + beta mean KL(p(x) || p(x')) (1 - p_y(x)), with x' a cross-entropy attack from a
    tiny Gaussian start.

    Robustness under PGD overstates that under AutoAttack: the margin term flattens the loss for PGD.

    Args:
        threat: the set of perturbations.
        beta: weight of the KL term; 5 for ResNet-18, 6 for wide networks.
        steps: K, attack steps.
        step_size: in units of eps.

    Cost: K + 2 forwards, K + 2 backwards (the outer backward runs through two forwards).

    Reference: Wang et al. 2020, eq. 7-9.
    """
    return Method(threat, PGD(steps, step_size * threat.eps, gaussian), loss=Mart(beta))


def _shift(kind: str, shift: float, shift_max: float) -> float | Linear | Milestones:
    """Lambda over the run."""
    if kind == "fixed":
        return shift
    if kind == "piecewise":
        return Milestones(values=(shift, shift - 1.0, shift - 1.5), at=(0.75, 11 / 12))
    if kind != "linear":
        raise unknown("schedule of the shift", kind, ("fixed", "linear", "piecewise"))
    if not math.isfinite(shift_max):
        raise UserError("the linear schedule begins at shift_max: give a finite one, such as shift_max=4")
    return Linear(start=shift_max, end=shift)


@register("gairat", family="reweighted", paper="Zhang et al., ICLR 2021", cost="(K+1)F + (K+1)B")
def gairat(
    threat: Threat,
    *,
    steps: int = 10,
    step_size: float = RECIPE,
    shift: float = -1.0,
    schedule: ShiftSchedule = "fixed",
    shift_max: float = math.inf,
    form: Literal["tanh", "sigmoid", "discrete"] = "tanh",
    burn_in: float = 0.5,
) -> Method:
    """GAIRAT: adversarial training that weighs examples by how few attack steps they survive.

    Minimises mean_i w_i CE_i(x'), w_i proportional to (1 + tanh(Lambda + 5 (1 - 2 kappa_i / K))) / 2.

    Robustness under AutoAttack is far below that under PGD: examples that PGD leaves correct get almost no
    weight, which masks gradients instead of moving the decision boundary.

    Args:
        threat: the set of perturbations.
        steps: K, attack steps, out of which kappa is counted.
        step_size: in units of eps.
        shift: Lambda; larger is closer to equal weights, infinity is adversarial training.
        schedule: of the shift after the burn-in: "fixed"; "linear" from shift_max at the first epoch to
            shift at the last; "piecewise": shift, shift - 1 from 3/4 and shift - 1.5 from 11/12 of training.
        shift_max: first value of the linear schedule.
        form: weight function: "tanh", "sigmoid" of the same argument, or "discrete" (K + 1 - kappa)/(K + 1).
        burn_in: fraction of the epochs with equal weights.

    Cost: K + 1 forwards, K + 1 backwards.

    Reference: Zhang et al. 2021, algorithm 1, eq. 6.
    Deviation: the public code never reaches the later pieces of its piecewise schedule; here they are used.
    See also `GAIRAT`.
    """
    rule = GAIRAT(steps, _shift(schedule, shift, shift_max), form)
    return Method(threat, PGD(steps, step_size * threat.eps, uniform), weighting=After(rule, burn_in))


@register("gair-fat", family="reweighted", paper="Zhang et al., ICLR 2021", cost="<= (K+1)F + (K+1)B")
def gair_fat(
    threat: Threat,
    *,
    steps: int = 10,
    step_size: float = RECIPE,
    shift: float = 0.0,
    tau: tuple[int, int, int] = (0, 3, 6),
    burn_in: float = 0.5,
) -> Method:
    """GAIR-FAT: GAIRAT's weights on the points of FAT, whose attack stops soon after misclassification.

    Weaknesses as `gairat`.

    Args:
        threat: the set of perturbations.
        steps: K, largest number of attack steps, out of which kappa is counted.
        step_size: in units of eps.
        shift: Lambda.
        tau: steps granted after misclassification in the first third of training, until 7/12, and after.
        burn_in: fraction of the epochs with equal weights.

    Cost: at most K + 1 forwards, K + 1 backwards; examples that have stopped may cost nothing.

    Reference: Zhang et al. 2021, appendix.
    """
    stop = Misclassified(Milestones(values=tau, at=(1 / 3, 7 / 12)))
    solver = PGD(steps, step_size * threat.eps, uniform, stop=stop)
    return Method(threat, solver, weighting=After(GAIRAT(steps, shift), burn_in))


@register("wmmr", family="reweighted", paper="Zeng et al., AAAI 2021", cost="(K+1)F + (K+1)B")
def wmmr(
    threat: Threat,
    *,
    base: Literal["at", "trades"] = "at",
    alpha: float | None = None,
    beta: float = 5.0,
    steps: int = 10,
    step_size: float | None = None,
    detach: bool = False,
    weighted_attack: bool = True,
) -> Method:
    """WMMR: weights exp(-alpha margin), in the loss and in the attack.

    Minimises mean_i w_i CE_i(x'), or mean CE(x) + beta mean_i w_i KL_i with base="trades". The weights are
    part of both objectives, gradient included, as in the public code.

    Robustness under AutoAttack is below that under PGD: weights that depend on the margin reward small
    gradients of the margin.

    Args:
        threat: the set of perturbations.
        base: "at" (attack in train mode from a uniform start) or "trades" (KL attack in eval mode from a tiny
            Gaussian start).
        alpha: sharpness; None is 0.5 for "at", 2 for "trades".
        beta: weight of the KL term of "trades".
        steps: K, attack steps.
        step_size: in units of eps; None is 1/4 for "at" and 0.007/0.031 for "trades".
        detach: hold the weights constant in loss and attack.
        weighted_attack: let the attack maximise the weighted loss.

    Cost: K + 1 forwards, K + 1 backwards; two forwards and a backward more with base="trades".

    Reference: Zeng et al. 2021, eq. 6-8.
    Deviation: BiLAW's Table 1 gives alpha_test = 2 beside alpha_train = 0.1; that is the sharpness of the
    weights in Zeng et al.'s test error and no part of training. No table here reports that error, so it is
    left out. A stray `break` leaves the public TRADES script without attack steps; it is not copied.
    """
    if base not in ("at", "trades"):
        raise unknown("base of wmmr", str(base), ("at", "trades"))
    on_at = base == "at"
    sharpness = alpha if alpha is not None else (0.5 if on_at else 2.0)
    size = (step_size if step_size is not None else (0.25 if on_at else RECIPE)) * threat.eps
    objective = cross_entropy if on_at else kl_to_clean
    return Method(
        threat,
        PGD(steps, size, uniform if on_at else gaussian),
        objective=MarginWeighted(sharpness, objective, detach) if weighted_attack else objective,
        weighting=WMMR(sharpness, not detach),
        loss=adversarial if on_at else Trades(beta),
        attack_mode="train" if on_at else "eval",
    )


@register("mail-at", family="reweighted", paper="Wang et al., NeurIPS 2021", cost="(K+1)F + (K+1)B")
def mail_at(
    threat: Threat,
    *,
    slope: float = 10.0,
    bias: float = -0.5,
    margin: Margin = "adversarial",
    times_three: bool = False,
    burn_in: float = 0.625,
    steps: int = 10,
    step_size: float = RECIPE,
) -> Method:
    """MAIL-AT: adversarial training that weighs examples by a sigmoid of their probability margin.

    Minimises mean_i w_i CE_i(x'), w_i proportional to sigmoid(slope (bias - PM_i)).

    Robustness under AutoAttack is below that under PGD, the more so the steeper the slope.

    Args:
        threat: the set of perturbations.
        slope: gamma.
        bias: beta, the margin at which the sigmoid is 1/2.
        margin: probability margin on "adversarial" or "natural" points, or the "difference".
        times_three: 3 sigmoid(...) instead of weights of mean 1, as in the public code.
        burn_in: fraction of the epochs with equal weights (75 of 120).
        steps: K, attack steps.
        step_size: in units of eps.

    Cost: K + 1 forwards, K + 1 backwards; a forward more for the natural margin or the difference.

    Reference: Wang et al. 2021, eq. 5-7.
    Deviation: weights of mean 1 as in the paper; see `times_three`.
    """
    rule = After(MAIL(slope, bias, margin, times_three), burn_in)
    return Method(threat, PGD(steps, step_size * threat.eps, gaussian), weighting=rule)


@register("mail-trades", family="reweighted", paper="Wang et al., NeurIPS 2021", cost="(K+3)F + (K+2)B")
def mail_trades(
    threat: Threat,
    *,
    beta: float = 5.0,
    slope: float = 2.0,
    bias: float = 0.0,
    margin: Margin = "adversarial",
    times_three: bool = False,
    burn_in: float = 0.625,
    steps: int = 10,
    step_size: float = RECIPE,
) -> Method:
    """MAIL-TRADES: TRADES with KL terms weighed by the probability margin; parameters as `mail-at`.

    Minimises mean CE(x) + beta mean_i w_i KL_i.

    Args:
        threat: the set of perturbations.
        beta: weight of the KL term.
        slope, bias, margin, times_three, burn_in: as `mail-at`.
        steps: K, attack steps.
        step_size: in units of eps.

    Cost: K + 3 forwards, K + 2 backwards.

    Reference: Wang et al. 2021.
    """
    rule = After(MAIL(slope, bias, margin, times_three), burn_in)
    solver = PGD(steps, step_size * threat.eps, gaussian)
    return Method(threat, solver, objective=kl_to_clean, weighting=rule, loss=Trades(beta))


@register("mail-mart", family="reweighted", paper="Wang et al., NeurIPS 2021", cost="(K+2)F + (K+2)B")
def mail_mart(
    threat: Threat,
    *,
    beta: float = 5.0,
    slope: float = 10.0,
    bias: float = -0.5,
    margin: Margin = "adversarial",
    times_three: bool = False,
    burn_in: float = 0.625,
    steps: int = 10,
    step_size: float = RECIPE,
) -> Method:
    """MAIL-MART: MART with its boosted cross-entropy, not its KL term, weighed by the probability margin.

    Args:
        threat: the set of perturbations.
        beta: weight of the KL term.
        slope, bias, margin, times_three, burn_in: as `mail-at`.
        steps: K, attack steps.
        step_size: in units of eps.

    Cost: K + 2 forwards, K + 2 backwards.

    Reference: Wang et al. 2021.
    """
    rule = After(MAIL(slope, bias, margin, times_three), burn_in)
    return Method(threat, PGD(steps, step_size * threat.eps, gaussian), weighting=rule, loss=Mart(beta))
