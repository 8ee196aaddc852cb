"""Methods of two or three forward passes: Fast-AT, Fast-BAT, DONE's fast setting."""

from __future__ import annotations

from typing import Literal

from bivallate.coupling.barrier import Barrier
from bivallate.coupling.last_step import LastStep
from bivallate.lower.direction import raw, steepest
from bivallate.lower.pgd import PGD, Warm
from bivallate.lower.start import corner, uniform
from bivallate.lower.threat import Linf, Threat
from bivallate.method import Method
from bivallate.methods.done import dro
from bivallate.methods.entries import register

Linearisation = Literal["ns-pgd", "uniform", "corner", "pgd"]


@register("fast-at", family="single step", paper="Wong et al., ICLR 2020", cost="2F + 2B")
def fast_at(threat: Threat, *, step_size: float = 1.25) -> Method:
    """Fast-AT: one large sign step from a uniform start.

    Collapses at large eps (catastrophic overfitting): PGD accuracy falls to zero while FGSM accuracy rises.

    Args:
        threat: the set of perturbations.
        step_size: in units of eps.

    Cost: 2 forwards, 2 backwards.

    Reference: Wong et al. 2020, algorithm 3.
    """
    return Method(threat, PGD(1, step_size * threat.eps, uniform), attack_mode="train")


@register("fast-bat", family="bilevel", paper="Zhang et al. (Fast-BAT), ICML 2022", cost="3F + 5B")
def fast_bat(
    threat: Threat,
    *,
    step_size: float | None = None,
    rho: float = 0.1,
    linearisation: Linearisation = "ns-pgd",
    curvature_steps: int = 0,
    cross_at: Literal["z", "delta"] = "z",
) -> Method:
    """Fast-BAT: the lower level is one projected raw gradient step, and the update differentiates through it.

    Args:
        threat: the set of perturbations.
        step_size: 1/lambda, factor of the raw gradient of the summed loss. None is 5000/255 up to eps = 8/255
            and 2500/255 above, the paper's value at 16/255 (its appendix C.1 and public code have 2000/255).
            On MNIST at 0.3 that overfits catastrophically; training without a recipe uses 1000 there.
        rho: alpha_2 / (lambda alpha_1), factor of the implicit gradient.
        linearisation: where the loss is linearised: "ns-pgd" (a raw gradient step from a uniform start),
            "uniform" or "corner" (the start itself), or "pgd" (a sign step of eps/2 from a uniform start).
        curvature_steps: 0 is Hessian-free; J > 0 is the Hessian-aware variant with J conjugate-gradient
            steps.
        cross_at: point of the cross derivative, see `LastStep`.

    Cost: 3 forwards, 5 backwards (the double backward counts as two); without the warm-up step one forward
    and one backward fewer.

    Reference: Zhang et al. 2022, eq. 12-13, section 5, Tables 7 and 9.
    """
    size = step_size if step_size is not None else (5000 if threat.eps <= 8 / 255 else 2500) / 255
    warm_up = {
        "ns-pgd": PGD(1, size, uniform, raw),
        "uniform": PGD(0, 0.0, uniform),
        "corner": PGD(0, 0.0, corner),
        "pgd": PGD(1, 0.5 * threat.eps, uniform, steepest),
    }[linearisation]
    coupling = LastStep(size, rho, curvature_steps, cross_at=cross_at)
    return Method(threat, warm_up, coupling=coupling, attack_mode="train")


@register("done-fast", family="bilevel", paper="DONE, ICLR 2024", cost="3F + 5B")
def done_fast(
    threat: Linf,
    *,
    step_size: float = 5000 / 255,
    warmup_sign: bool = False,
    c: float | None = None,
    temperature: float | None = None,
    rate: float = 0.9,
    guard: float = 2.0,
) -> Method:
    """DONE in its fast setting: one gradient step from a warm-up step, KL-DRO weights, barrier coupling.

    Args:
        threat: the set of perturbations (Linf).
        step_size: of both raw gradient steps.
        warmup_sign: make the warm-up step a sign step of 1.25 eps, as in Fast-AT, instead of a raw one.
        c: strength of the barrier, as `done-gd`.
        temperature: r, constant; None is the paper's schedule, scaled to the length of the run.
        rate: eta of the running estimate.
        guard: bound of the running estimate.

    Cost: 3 forwards, 5 backwards.

    Reference: DONE, section 4.3.
    Deviation: the paper calls the warm-up step "PGD"; by default it is a raw gradient step, as in Fast-BAT
    (warmup_sign).
    """
    solver = PGD(2, step_size, uniform, raw)
    if warmup_sign:
        solver = PGD(1, step_size, Warm(PGD(1, 1.25 * threat.eps, uniform, steepest)), raw)
    weighting = dro(temperature, rate, guard)
    return Method(threat, solver, coupling=Barrier(c), weighting=weighting, attack_mode="train")
