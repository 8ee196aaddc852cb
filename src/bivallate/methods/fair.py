"""Class-wise methods: the robustness of the weakest class."""

from __future__ import annotations

from typing import Literal

from bivallate.errors import unknown
from bivallate.lower.class_radius import ClassDistance, ClassRadius, Proportional, RobustRate
from bivallate.lower.objective import cross_entropy, kl_to_clean
from bivallate.lower.pgd import PGD
from bivallate.lower.start import gaussian, uniform
from bivallate.lower.threat import Threat
from bivallate.method import Method
from bivallate.methods.entries import register
from bivallate.methods.reweighted import RECIPE
from bivallate.upper.class_losses import ClassTrades, Reweighed
from bivallate.upper.loss import Trades, adversarial
from bivallate.weighting.class_weights import ClassBandit, ClassDRO, ClassNoRegret, ClassScored

Base = Literal["at", "trades"]


def _host(base: Base, of: str) -> bool:
    """Whether the base is AT. Raises UserError for a base that is neither AT nor TRADES."""
    if base not in ("at", "trades"):
        raise unknown(f"base of {of}", str(base), ("at", "trades"))
    return base == "at"


@register("faal", family="class-wise", paper="Zhang et al., CVPR 2024", cost="(K+1)F + (K+1)B")
def faal(
    threat: Threat,
    *,
    base: Base = "at",
    radius: float = 0.5,
    beta: float = 6.0,
    steps: int = 10,
    step_size: float = 0.25,
) -> Method:
    """FAAL: weights by the worst class distribution within a KL divergence of the uniform one.

    Minimises max_p sum_c K p_c mean loss_c subject to KL(uniform || p) <= radius; p is chosen by the margins
    of the classes at the attacked points of the minibatch.

    Meant to fine-tune a robust model for two epochs (`--init runs/at --recipe faal`). From scratch its
    weights are noisy, because a minibatch has few rows of each class and, of many classes, none of most.

    Args:
        threat: the set of perturbations.
        base: "at", or "trades" (attack on the divergence), whose two terms are weighed alike.
        radius: tau.
        beta: weight of the KL term of "trades".
        steps: K, attack steps.
        step_size: in units of eps.

    Cost: K + 1 forwards, K + 1 backwards; two forwards and a backward more with base="trades".

    Reference: Zhang et al. 2024; radius and attack of the public code (run_prn.py). The paper's text was not
    available: the equations are those of the code.
    Deviation: see `ClassDRO`.
    """
    on_at = _host(base, "faal")
    solver = PGD(steps, step_size * threat.eps, uniform if on_at else gaussian)
    return Method(
        threat,
        solver,
        objective=cross_entropy if on_at else kl_to_clean,
        weighting=ClassDRO(radius),
        loss=adversarial if on_at else Reweighed(Trades(beta)),
    )


@register("wat", family="class-wise", paper="Li and Liu, AAAI 2023", cost="(K+3)F + (K+2)B")
def wat(
    threat: Threat,
    *,
    beta: float = 6.0,
    rate: float = 0.1,
    steps: int = 10,
    step_size: float = RECIPE,
) -> Method:
    """WAT: TRADES with classes weighed by their losses so far, and the mean of all as one more class.

    Minimises sum_c q_c mean TRADES_c + q_0 mean TRADES, q = K softmax(rate sum of the epochs' losses).

    Losses of all epochs count equally: a class that was hard early keeps its weight, and over many epochs the
    softmax sharpens. Easy classes lose accuracy where hard ones gain it.

    Args:
        threat: the set of perturbations.
        beta: weight of the KL term.
        rate: eta of the no-regret dynamics.
        steps: K, attack steps.
        step_size: in units of eps.

    Cost: K + 3 forwards, K + 2 backwards (the outer backward runs through two forwards).

    Reference: Li and Liu 2023; constants of the public code. Only the abstract of the paper was available.
    Deviation: see `ClassNoRegret`: losses of the training passes instead of held-out ones.
    """
    solver = PGD(steps, step_size * threat.eps, gaussian)
    loss = Reweighed(Trades(beta))
    return Method(threat, solver, objective=kl_to_clean, weighting=ClassNoRegret(rate), loss=loss)


@register("cfol", family="class-wise", paper="Pethick et al., TMLR 2023", cost="(K+1)F + (K+1)B")
def cfol(
    threat: Threat,
    *,
    rate: float = 5e-6,
    explore: float = 0.5,
    steps: int = 7,
    step_size: float = 2.5 / 7,
) -> Method:
    """CFOL: adversarial training with class weights from a bandit algorithm that seeks the classes' errors.

    Minimises mean_i K p_y CE_i(x'), p = explore / K + (1 - explore) softmax(s), s_c the errors of class c so
    far, times rate K.

    The rate must suit the number of updates. The default is for CIFAR-10 and tens of thousands of updates; on
    a small data set it leaves the weights near 1.

    Args:
        threat: the set of perturbations.
        rate: eta.
        explore: gamma, share of the uniform distribution.
        steps: K, attack steps.
        step_size: in units of eps.

    Cost: K + 1 forwards, K + 1 backwards.

    Reference: Pethick et al. 2023; constants of the public code (cmd_generator.py). Only the abstract of the
    paper was available.
    Deviation: see `ClassBandit`: rows are weighed instead of drawn. The public attack keeps the best iterate.
    """
    solver = PGD(steps, step_size * threat.eps, uniform)
    return Method(threat, solver, weighting=ClassBandit(rate, explore))


@register("dafa", family="class-wise", paper="Lee et al., ICLR 2024", cost="(K+3)F + (K+2)B")
def dafa(
    threat: Threat,
    *,
    scale: float = 1.0,
    warm_up: float = 70 / 110,
    beta: float = 6.0,
    steps: int = 10,
    step_size: float = RECIPE,
) -> Method:
    """DAFA: TRADES that moves weight and radius from the easier of two similar classes to the harder.

    After the warm-up each class has W_c (see `ClassDistance`): the weight of its clean cross-entropy and,
    times eps, the radius of its attack and the length of its steps.

    The scores are computed once, after the warm-up, and do not follow later changes of the network. The radii
    are used in training only; evaluation is at eps.

    Args:
        threat: the set of perturbations.
        scale: lambda.
        warm_up: fraction of the epochs that train plain TRADES first (70 of 110).
        beta: weight of the KL term.
        steps: K, attack steps.
        step_size: in units of the class's radius.

    Cost: K + 3 forwards, K + 2 backwards (the outer backward runs through two forwards).

    Reference: Lee et al. 2024; public code (losses.py, utils.py). Only the abstract of the paper was
    available: the equations are those of the code.
    """
    inner = PGD(steps, step_size * threat.eps, gaussian, Proportional())
    solver = ClassRadius(inner, ClassDistance(scale, warm_up), base=0.0)
    loss = Reweighed(Trades(beta), "anchor")
    return Method(threat, solver, objective=kl_to_clean, weighting=ClassScored(), loss=loss)


@register("cfa", family="class-wise", paper="Wei et al., CVPR 2023", cost="(K+1)F + (K+1)B")
def cfa(
    threat: Threat,
    *,
    base: Base = "at",
    margin: float = 0.5,
    regularisation: float = 0.5,
    begin: float = 0.05,
    beta: float = 6.0,
    steps: int = 10,
    step_size: float = 0.25,
) -> Method:
    """CFA: each class is attacked within a radius that follows its robust accuracy in training.

    The radius of class c is (margin + r_c) eps, r_c its accuracy on the last epoch's adversarial points;
    with base="trades" its beta is (regularisation + r_c) beta too.

    Weak classes are attacked within smaller radii, so that their accuracy at eps may fall while the mean
    rises; radii of easy classes grow up to (margin + 1) eps. Evaluation is at eps.

    Args:
        threat: the set of perturbations.
        base: "at" (train mode), or "trades" (attack on the divergence in eval mode).
        margin: lambda_1.
        regularisation: lambda_2.
        begin: fraction of the epochs in which all classes have the radius eps (10 of 200).
        beta: weight of the KL term of "trades".
        steps: K, attack steps.
        step_size: in units of eps, for all classes.

    Cost: K + 1 forwards, K + 1 backwards; two forwards and a backward more with base="trades".

    Reference: Wei et al. 2023, section 4; public code (train.py).
    Deviation: the third part of CFA is left out: it averages the network's weights only while the weakest
    held-out class is good enough.
    """
    on_at = _host(base, "cfa")
    inner = PGD(steps, step_size * threat.eps, uniform if on_at else gaussian)
    return Method(
        threat,
        ClassRadius(inner, RobustRate(begin), margin),
        objective=cross_entropy if on_at else kl_to_clean,
        loss=adversarial if on_at else ClassTrades(beta, regularisation),
        attack_mode="train" if on_at else "eval",
    )
