"""Adversarial training against several threats at once: MAX, MSD, E-AT."""

from __future__ import annotations

from typing import Any

from bivallate.lower.pgd import PGD
from bivallate.lower.several_threats import DrawnThreat, SteepestThreat, WorstThreat
from bivallate.lower.start import uniform, zero
from bivallate.lower.threat import CUSTOMARY, Threat
from bivallate.lower.threat import threat as threat_of
from bivallate.method import Method
from bivallate.methods.entries import register


def beside(threat: Threat) -> dict[str, Any]:
    """The threats of the other norms, at the radii that are customary for small colour images."""
    others = {norm: eps for norm, eps in CUSTOMARY.items() if norm != type(threat).__name__}
    return {"others": tuple(threat_of(norm, eps) for norm, eps in others.items())}


@register(
    "max-at",
    family="several threats",
    paper="Tramer and Boneh, NeurIPS 2019",
    cost="(pK+p+1)F + (pK+1)B",
    example=beside,
)
def max_at(
    threat: Threat, *, others: tuple[Threat, ...] = (), steps: int = 10, step_size: float = 0.25
) -> Method:
    """MAX: adversarial training against the worst, for each image, of several threats.

    PGD-K attacks within each threat, and the network learns from the perturbation of the highest loss. Whose
    it is stands in `metrics.jsonl` (`strongest_l1`) and in the learning curves of a report: on digits mostly
    Linf's, and there E-AT kept more under all threats together at a third of the cost (docs/threats.md).

    Args:
        threat: the set of perturbations.
        others: the threats beside it, with their radii, which cannot be guessed: (L2(0.5), L1(12)).
        steps: K.
        step_size: in units of each threat's eps.

    Cost: with p threats, p (K + 1) + 1 forwards, p K + 1 backwards.

    Reference: Tramer and Boneh 2019, the strategy "max".
    Deviation: steps and step sizes are those of `at`, the same for all threats.
    """
    return Method(threat, WorstThreat(PGD(steps, step_size * threat.eps, uniform), others, threat.eps))


@register(
    "msd",
    family="several threats",
    paper="Maini et al., ICML 2020",
    cost="(pK+K+1)F + (K+1)B",
    example=beside,
)
def msd(
    threat: Threat, *, others: tuple[Threat, ...] = (), steps: int = 10, step_size: float = 0.25
) -> Method:
    """MSD: adversarial training by an attack that chooses among several threats at every step.

    Each step is made within every threat, and the attack goes on from the point of the highest loss. On
    digits it kept 16 % under all of Linf, L2 and L1, E-AT 33 (docs/threats.md).

    Args:
        threat: the set of perturbations.
        others: the threats beside it, with their radii, which cannot be guessed: (L2(0.5), L1(12)).
        steps: K.
        step_size: in units of each threat's eps.

    Cost: with p threats, p K + K + 1 forwards, K + 1 backwards.

    Reference: Maini et al. 2020, algorithm 1. See `SteepestThreat`.
    Deviation: steps and step sizes are those of `at`, the same for all threats; the public code for CIFAR-10
    takes 50 steps, of 0.17 eps in Linf, 0.1 in L2 and 0.08 in L1.
    """
    return Method(threat, SteepestThreat(PGD(steps, step_size * threat.eps, zero), others, threat.eps))


@register(
    "e-at",
    family="several threats",
    paper="Croce and Hein, ICML 2022",
    cost="(K+1)F + (K+1)B",
    example=beside,
)
def e_at(
    threat: Threat,
    *,
    others: tuple[Threat, ...] = (),
    steps: int = 10,
    step_size: float = 0.25,
    balanced: bool = True,
) -> Method:
    """E-AT: adversarial training within one of several threats, drawn anew for each minibatch.

    It costs as much as AT. The paper draws from the extreme norms alone, Linf and L1, which give robustness
    under L2 too, and makes a robust network robust under several threats in a few epochs (the recipe `e-at`
    with `--init`; on digits three were too few). On digits it kept most under all of Linf, L2 and L1, and was
    far below AT under Linf or L1 alone (docs/threats.md).

    Args:
        threat: the set of perturbations.
        others: the threats beside it, with their radii, which cannot be guessed: (L1(12),).
        steps: K.
        step_size: in units of each threat's eps.
        balanced: draw a threat the more often, the more often its attack has succeeded.

    Cost: K + 1 forwards, K + 1 backwards.

    Reference: Croce and Hein 2022. See `DrawnThreat`.
    """
    solver = DrawnThreat(PGD(steps, step_size * threat.eps, uniform), others, threat.eps, balanced)
    return Method(threat, solver)
