"""Plain training, adversarial training, TRADES."""

from __future__ import annotations

from bivallate.lower.curriculum import Then
from bivallate.lower.helper_labels import HelperLabels
from bivallate.lower.helper_network import HelperNetwork
from bivallate.lower.modes import AttackMode
from bivallate.lower.objective import kl_to_clean
from bivallate.lower.pgd import PGD
from bivallate.lower.start import gaussian, uniform, zero
from bivallate.lower.threat import Threat
from bivallate.method import Method
from bivallate.methods.entries import register
from bivallate.upper.boundary_guided import BoundaryGuided
from bivallate.upper.helper_examples import HelperExamples
from bivallate.upper.loss import Trades


@register("plain", family="standard", paper="-", cost="1F + 1B")
def plain(threat: Threat) -> Method:
    """Plain training on clean images; the threat is used for evaluation only.

    Cost: 1 forward, 1 backward.
    """
    return Method(threat, PGD(steps=0, step_size=0.0, start=zero))


@register("at", family="standard", paper="Madry et al., ICLR 2018", cost="(K+1)F + (K+1)B")
def at(
    threat: Threat,
    *,
    steps: int = 10,
    step_size: float = 0.25,
    fgsm_first: float = 0.0,
    attack_mode: AttackMode = "eval",
) -> Method:
    """Adversarial training against PGD-K from a uniform start.

    It overfits: from some epoch on, held-out robust accuracy falls while that on training images rises (Rice
    et al., ICML 2020), so that the best epoch counts, not the last. The weakest classes stay far
    below the mean.

    Args:
        threat: the set of perturbations.
        steps: K; PGD-2 AT is steps=2, step_size=0.5, attack_mode="train"; PGD-7 AT steps=7, step_size=0.25.
        step_size: in units of eps.
        fgsm_first: fraction of the epochs at the beginning that use FGSM from the clean image (one step of
            eps) instead of PGD: 1/6 is FGSM-PGD of Dynamic AT, section 3.2.
        attack_mode: BatchNorm while attacking.

    Cost: K + 1 forwards, K + 1 backwards.

    Reference: Madry et al. 2018, eq. 2.1.
    """
    solver = PGD(steps, step_size * threat.eps, uniform)
    begun = Then(PGD(1, threat.eps, zero), solver, fgsm_first) if fgsm_first else solver
    return Method(threat, begun, attack_mode=attack_mode)


@register("trades", family="standard", paper="Zhang et al., ICML 2019", cost="(K+3)F + (K+2)B")
def trades(threat: Threat, *, beta: float = 6.0, steps: int = 10, step_size: float = 0.25) -> Method:
    """TRADES: clean cross-entropy plus beta times the largest KL divergence from the clean prediction.

    Robust accuracy is bought with clean accuracy: a larger beta raises the one and lowers the other. It costs
    two forwards and a backward more than AT, without a decided gain under AutoAttack here (docs/results.md).

    Args:
        threat: the set of perturbations.
        beta: 1/lambda, weight of the robust term.
        steps: attack steps.
        step_size: in units of eps.

    Cost: K + 3 forwards, K + 2 backwards (the outer backward runs through two forwards).

    Reference: Zhang et al. 2019, eq. 5.
    """
    solver = PGD(steps, step_size * threat.eps, gaussian)
    return Method(threat, solver, objective=kl_to_clean, loss=Trades(beta))


@register("hat", family="standard", paper="Rade and Moosavi-Dezfooli, ICLR 2022", cost="(K+5)F + (K+3)B")
def hat(
    threat: Threat,
    *,
    beta: float = 2.5,
    gamma: float = 0.5,
    reach: float = 2.0,
    plain: float = 0.1,
    steps: int = 10,
    step_size: float = 0.25,
) -> Method:
    """HAT: TRADES with helper examples beyond the ball, labelled as a plainly trained network sees x'.

    Minimises mean CE(x) + beta KL(p(x) || p(x')) + gamma CE(x + reach (x' - x), y'), y' the class that the
    plainly trained network gives x'. It is usually a wrong class, so that the margin stops growing where the
    threat ends.

    The first part of the epochs is plain training and cheap; then the attack has its full radius at once. The
    learning rate must not have fallen by then: with half of 24 epochs plain and a single triangle, training
    does not recover on digits. Where the plain network withstands the attack, y' is the label, and the ball
    is in effect enlarged.

    Args:
        threat: the set of perturbations.
        beta: weight of the KL term.
        gamma: weight of the helper examples.
        reach: position of the helper examples along the attack, in units of x' - x.
        plain: fraction of the epochs with plain training; a half in the recipe, whose learning rate rises
            twice; 0 with `--init RUN`, a plainly trained run.
        steps: K, attack steps.
        step_size: in units of eps.

    Cost: K + 5 forwards, K + 3 backwards (the outer backward runs through three forwards); 2 and 2 in the
    plain part.

    Reference: Rade and Moosavi-Dezfooli 2022; constants of the public code (ResNet-18, 8/255). Only the
    abstract of the paper was available.
    Deviation: the plain network is an earlier state of the trained one; the public code uses another network,
    and its robust training begins with fresh weights.
    """
    solver = HelperLabels(PGD(steps, step_size * threat.eps, gaussian), plain)
    loss = HelperExamples(Trades(beta), gamma, reach)
    return Method(threat, solver, objective=kl_to_clean, loss=loss)


@register("lbgat", family="standard", paper="Cui et al., ICCV 2021", cost="(K+3)F + (K+2)B")
def lbgat(
    threat: Threat,
    *,
    alpha: float = 0.0,
    gamma: float = 1.0,
    guide_lr: float | None = None,
    guide_momentum: float = 0.9,
    guide_weight_decay: float = 5e-4,
    steps: int = 10,
    step_size: float = 0.25,
) -> Method:
    """LBGAT: the logits at attacked points follow the clean logits of a second network that learns along.

    Minimises mean (z(x') - g(x))^2 over images and classes + gamma CE(g(x)) + alpha KL(p(x) || p(x')), over
    the trained network z and the second one, g; the attack is on the divergence of z. Only z is evaluated.

    The labels reach z through g alone. The squared distance is a mean over the classes, so that its gradient
    is the weaker the more classes there are; it grows with the logits, without a bound, so that a rate which
    a cross-entropy bears may be too high for a linear network on many pixels. Both networks and the second
    one's momentum must fit in memory.

    Args:
        threat: the set of perturbations.
        alpha: weight of the KL term: 0 is LBGAT0, the authors' on CIFAR-10, 6 LBGAT6, the better defence on
            CIFAR-100, with less clean accuracy.
        gamma: weight of the second network's cross-entropy.
        guide_lr: learning rate of the second network; None is the trained one's, at every moment. Set it with
            an optimiser other than SGD, whose rates mean something else.
        guide_momentum, guide_weight_decay: of the second network's SGD; the trained one's are the run's.
        steps: K, attack steps.
        step_size: in units of eps.

    Cost: K + 3 forwards, K + 2 backwards, of which one each are the second network's; with alpha one more of
    each.

    Reference: Cui et al. 2021; public code (lbgat.py, train_lbgat_cifar100.py). Of the paper only the
    abstract was available: the equations are those of the code. Its step size (0.007 at eps = 0.031) and
    weight decay (2e-4, of both networks) are in the recipe `lbgat`.
    Deviation: the second network has the trained one's architecture and begins with its weights; the public
    code's is a ResNet-18 with its own, beside a wide ResNet. Without alpha that code still forwards x through
    z, which moves BatchNorm's statistics. One optimiser moves both networks there.
    """
    inner = PGD(steps, step_size * threat.eps, gaussian)
    solver = HelperNetwork(inner, guide_lr, guide_momentum, guide_weight_decay)
    return Method(threat, solver, objective=kl_to_clean, loss=BoundaryGuided(alpha, gamma))
