"""Methods whose example weights are learned from a second data stream."""

from __future__ import annotations

from typing import Literal

from bivallate.lower.objective import kl_to_clean
from bivallate.lower.pgd import PGD
from bivallate.lower.start import gaussian, uniform
from bivallate.lower.threat import Threat
from bivallate.method import Method
from bivallate.methods.entries import register
from bivallate.upper.loss import Trades
from bivallate.weighting.descent import AdamDescent, Descent, DescentRule
from bivallate.weighting.margin_net import Correlation, MarginNet

Inputs = Literal["multiclass-margin", "scalar-margin", "adversarial-loss", "loss-difference"]
Place = Literal["clean", "adversarial"]
Mover = Literal["descent", "adam"]


def _mover(kind: Mover, lr: float | None, weight_decay: float) -> DescentRule:
    """The optimiser of the weighting network, with its default learning rate if `lr` is None."""
    make = Descent if kind == "descent" else AdamDescent
    return make(weight_decay=weight_decay) if lr is None else make(lr, weight_decay)


@register("bilaw", family="learned", paper="BiLAW, 2022", cost="(2K+5)F + (2K+4)B")
def bilaw(
    threat: Threat,
    *,
    steps: int = 10,
    step_size: float = 0.25,
    hidden: tuple[int, ...] = (128,),
    inputs: Inputs = "multiclass-margin",
    margins_from: Place = "clean",
    net_optimizer: Mover = "descent",
    net_lr: float | None = None,
    net_weight_decay: float = 0.0,
    second_order: bool = False,
) -> Method:
    """BiLAW: a small network learns the example weights from the loss on a second data stream.

    Minimises sum_i w_i CE_i(x'), w_i = omega_mu(margins_i) / sum_j omega_mu(margins_j), and mu descends the
    unweighted adversarial loss of the second stream at theta - lr grad of that sum.

    With margin weights robustness under AutoAttack is lower than under PGD, and the rows of the second stream
    are missing from training. How far the weights differ depends on net_lr: at 1 several-fold on digits,
    hardly at all where nearly all margins are large, as on MNIST, and at no rate in
    short trainings on CIFAR-10 (docs/bilaw.md). The logs hold the meta-gradient's norm.

    Args:
        threat: the set of perturbations.
        steps: K, attack steps on either stream.
        step_size: in units of eps.
        hidden: widths of the network's hidden layers.
        inputs: of the network, see `MarginNet`.
        margins_from: margins of "clean" points (eval mode) or of the "adversarial" ones.
        net_optimizer: of the network: "descent", plain gradient steps as in Algorithm 1, or "adam".
        net_lr: learning rate alpha of the network, which the paper does not print; None is the optimiser's
            default (`Descent`).
        net_weight_decay: weight decay of the network; the paper has none.
        second_order: compute the meta-gradient by the full second-order graph, as a check.

    Cost: 2K + 5 forwards, 2K + 4 backwards, with a second stream of the same batch size; beyond the two
    attacks and the outer step these are 4 forwards and 3 backwards.

    Reference: BiLAW, Algorithm 1, eq. 5-7.
    Deviation: eq. 6 has a minus sign where descent gives a plus; see `MarginNet` and `Lookahead`.
    """
    mover = _mover(net_optimizer, net_lr, net_weight_decay)
    rule = MarginNet(hidden, inputs, margins_from, mover, second_order)
    return Method(threat, PGD(steps, step_size * threat.eps, uniform), weighting=rule)


@register("bilaw-trades", family="learned", paper="BiLAW, 2022", cost="(2K+11)F + (2K+8)B")
def bilaw_trades(
    threat: Threat,
    *,
    beta: float = 6.0,
    steps: int = 10,
    step_size: float = 0.25,
    hidden: tuple[int, ...] = (128,),
    inputs: Inputs = "multiclass-margin",
    margins_from: Place = "clean",
    net_optimizer: Mover = "descent",
    net_lr: float | None = None,
    net_weight_decay: float = 0.0,
    second_order: bool = False,
) -> Method:
    """BiLAW-TRADES: TRADES with KL terms weighed by a network that learns from a second data stream.

    Minimises mean CE(x) + beta sum_i w_i KL_i, with sum w = 1; the second stream's loss is TRADES unweighted.

    On digits its weights stayed nearly equal at every learning rate that was tried (docs/bilaw.md).

    Args:
        threat: the set of perturbations.
        beta: 1/lambda; 6, and 1 as well for CIFAR-100.
        steps, step_size, hidden, inputs, margins_from, second_order: as `bilaw`.
        net_optimizer, net_lr, net_weight_decay: as `bilaw`.

    Cost: 2K + 11 forwards, 2K + 8 backwards, with a second stream of the same batch size.

    Reference: BiLAW, eq. 8.
    Deviation: eq. 8 as printed sums the clean cross-entropy; here it is the mean, with which equal weights
    give TRADES.
    """
    mover = _mover(net_optimizer, net_lr, net_weight_decay)
    rule = MarginNet(hidden, inputs, margins_from, mover, second_order)
    solver = PGD(steps, step_size * threat.eps, gaussian)
    return Method(threat, solver, objective=kl_to_clean, weighting=rule, loss=Trades(beta))


@register("non-parametric", family="learned", paper="BiLAW, 2022", cost="(2K+4)F + (2K+4)B")
def non_parametric(
    threat: Threat, *, steps: int = 10, step_size: float = 0.25, second_order: bool = False
) -> Method:
    """Non-parametric reweighting: weights by how far an example's gradient helps a second data stream.

    Minimises sum_i w_i CE_i(x'), w_i proportional to max(0, <grad CE_i, grad of the second stream's loss>).

    Few examples carry most of the weight, so the effective batch is small and AutoAttack robustness low.

    Args:
        threat: the set of perturbations.
        steps: K, attack steps on either stream.
        step_size: in units of eps.
        second_order: compute the correlations by the full second-order graph, as a check.

    Cost: 2K + 4 forwards, 2K + 4 backwards, with a second stream of the same batch size.

    Reference: BiLAW, section 4.
    """
    solver = PGD(steps, step_size * threat.eps, uniform)
    return Method(threat, solver, weighting=Correlation(second_order))
