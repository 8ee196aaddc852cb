"""Methods that train at adversarially perturbed weights."""

from __future__ import annotations

from bivallate.lower.objective import kl_to_clean
from bivallate.lower.pgd import PGD
from bivallate.lower.start import gaussian, uniform
from bivallate.lower.threat import Threat
from bivallate.method import Method
from bivallate.methods.entries import register
from bivallate.upper.awp import AWP
from bivallate.upper.loss import Trades, adversarial


@register("at-awp", family="standard", paper="Wu et al., NeurIPS 2020", cost="(K+2)F + (K+2)B")
def at_awp(
    threat: Threat,
    *,
    gamma: float = 0.01,
    warm_up: int = 0,
    decay: float = 0.0,
    steps: int = 10,
    step_size: float = 0.25,
) -> Method:
    """AT-AWP: adversarial training at adversarially perturbed weights, which reduces robust overfitting.

    Minimises mean CE(x') at theta + v; v_l is the normalised gradient of this loss times gamma ||theta_l||.

    Early in training, or on small networks, the perturbation slows learning more than it regularises.

    Args:
        threat: the set of perturbations.
        gamma: relative size of the weight perturbation.
        warm_up: epochs without it.
        decay: the optimiser's weight decay, to apply it at theta + v as the public code does; see `AWP`.
        steps: K, attack steps.
        step_size: in units of eps.

    Cost: K + 2 forwards, K + 2 backwards.

    Reference: Wu et al. 2020, algorithm 1.
    """
    solver = PGD(steps, step_size * threat.eps, uniform)
    return Method(threat, solver, loss=AWP(adversarial, gamma, warm_up, decay), attack_mode="train")


@register("trades-awp", family="standard", paper="Wu et al., NeurIPS 2020", cost="(K+5)F + (K+4)B")
def trades_awp(
    threat: Threat,
    *,
    beta: float = 6.0,
    gamma: float = 0.005,
    warm_up: int = 10,
    decay: float = 0.0,
    steps: int = 10,
    step_size: float = 0.25,
) -> Method:
    """TRADES-AWP: TRADES at adversarially perturbed weights; parameters as `at-awp`.

    It is meant for long trainings, which overfit. At equal passes in a short one, on N-FGSM's points, it
    ended 2.5 points below TRADES, which had 13 epochs instead of its 8 (docs/contest.md, one seed).

    Args:
        threat: the set of perturbations.
        beta: weight of the KL term.
        gamma, decay: as `at-awp`.
        warm_up: epochs without perturbation, which TRADES needs at the beginning.
        steps: K, attack steps.
        step_size: in units of eps.

    Cost: K + 5 forwards, K + 4 backwards; 2 of each fewer during the warm-up.

    Reference: Wu et al. 2020, algorithm 1.
    """
    solver = PGD(steps, step_size * threat.eps, gaussian)
    return Method(threat, solver, objective=kl_to_clean, loss=AWP(Trades(beta), gamma, warm_up, decay))
