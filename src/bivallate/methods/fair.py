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
    """Whether it is AT. Raises UserError for another word."""
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
    """FAAL: the worst distribution over a minibatch's classes, within a divergence of the uniform one.

    Minimises max_p sum_c K p_c mean loss_c subject to KL(uniform || p) <= radius, where p is chosen by the
    classes' margins at the attacked points.

    Made to mend a robust model in two epochs (`--init runs/at --recipe faal`). From scratch its weights
    follow the noise of a minibatch's few rows a class, and with many classes most are absent.

    Args:
        threat: the set of perturbations.
        base: "at", or "trades" (attack on the divergence), whose two terms are weighed alike.
        radius: tau.
        beta: weight of the KL term of "trades".
        steps: K, attack steps.
        step_size: in units of eps.

    Cost: K + 1 forwards, K + 1 backwards; two forwards and a backward more with base="trades".

    Reference: Zhang et al. 2024; radius and attack of the public code (run_prn.py). The paper's text
    could not be read here: equations are those of the code.
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
    """WAT: TRADES whose classes are weighed by their losses so far, with the mean of all as one more class.

    Minimises sum_c q_c mean TRADES_c + q_0 mean TRADES, q = K softmax(rate sum of the epochs' losses).

    The history never fades: a class that was hard early keeps its weight, and with many epochs the softmax
    hardens. Easy classes lose what the hard ones gain.

    Args:
        threat: the set of perturbations.
        beta: weight of the KL term.
        rate: eta of the no-regret dynamics.
        steps: K, attack steps.
        step_size: in units of eps.

    Cost: K + 3 forwards, K + 2 backwards (the outer backward runs through two forwards).

    Reference: Li and Liu 2023; constants of the public code. Of the paper's text only the abstract could be
    read here.
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
    """CFOL: adversarial training whose classes are played by a bandit that profits from their errors.

    Minimises mean_i K p_y CE_i(x'), p = explore / K + (1 - explore) softmax(s), s_c the errors of class c so
    far, times rate K.

    The rate suits the number of updates: the default is for CIFAR-10 and tens of thousands of them, and on a
    small set it leaves the weights at 1.

    Args:
        threat: the set of perturbations.
        rate: eta.
        explore: gamma, share of the uniform distribution.
        steps: K, attack steps.
        step_size: in units of eps.

    Cost: K + 1 forwards, K + 1 backwards.

    Reference: Pethick et al. 2023; constants of the public code (cmd_generator.py). Of the paper's text only
    the abstract could be read here.
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
    """DAFA: TRADES in which the harder of two similar classes takes weight and radius from the easier one.

    After the warm-up each class has W_c (see `ClassDistance`): the weight of its clean cross-entropy and,
    times eps, the radius of its attack and the length of its steps.

    The scores are of one epoch and stay: what the weights then change is not seen again. Training alone uses
    other radii; evaluation is at eps.

    Args:
        threat: the set of perturbations.
        scale: lambda.
        warm_up: fraction of the epochs of plain TRADES before (70 of 110).
        beta: weight of the KL term.
        steps: K, attack steps.
        step_size: in units of the class's radius.

    Cost: K + 3 forwards, K + 2 backwards (the outer backward runs through two forwards).

    Reference: Lee et al. 2024; public code (losses.py, utils.py). Of the paper's text only the abstract
    could be read here: equations are those of the code.
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

    Weak classes are attacked less, so that their accuracy at eps may fall while the mean rises; radii of easy
    classes grow up to (margin + 1) eps. Evaluation is at eps.

    Args:
        threat: the set of perturbations.
        base: "at" (train mode), or "trades" (attack on the divergence in eval mode).
        margin: lambda_1.
        regularisation: lambda_2.
        begin: fraction of the epochs at eps for all (10 of 200).
        beta: weight of the KL term of "trades".
        steps: K, attack steps.
        step_size: in units of eps, for all classes.

    Cost: K + 1 forwards, K + 1 backwards; two forwards and a backward more with base="trades".

    Reference: Wei et al. 2023, section 4; public code (train.py).
    Deviation: the third part of CFA, averaging weights only while the weakest held-out class is good enough,
    belongs to the run and is left out.
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
