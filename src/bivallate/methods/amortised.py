"""Methods that share attack work between updates, layers or epochs."""

from __future__ import annotations

from typing import Literal

from bivallate.coupling.implicit import leaf
from bivallate.errors import unknown
from bivallate.lower.atta import PerExample
from bivallate.lower.objective import cross_entropy, kl_to_clean
from bivallate.lower.pgd import PGD
from bivallate.lower.replay import YOPO, Free
from bivallate.lower.start import uniform
from bivallate.lower.threat import Threat
from bivallate.method import Method
from bivallate.methods.entries import register
from bivallate.upper.loss import Trades


@register("free-at", family="amortised", paper="Shafahi et al., NeurIPS 2019", cost="mF + mB")
def free_at(threat: Threat, *, replays: int = 8, step_size: float = 1.0) -> Method:
    """Free-AT: every backward pass updates both parameters and perturbation, m times on each minibatch.

    Objective: that of AT; delta is carried over by position in the minibatch, from replay to replay and from
    minibatch to minibatch.

    Each epoch makes m updates a minibatch: divide the epochs by m to compare costs, and lower the rate if it
    was chosen for one update a minibatch. Weaker than AT at equal epochs. With m too large the network
    forgets the data between visits.

    Args:
        threat: the set of perturbations.
        replays: m; with 1 the perturbations of a minibatch are used on the images of the next one.
        step_size: of the perturbation's step, in units of eps.

    Cost: 1 forward and 1 backward a replay.

    Reference: Shafahi et al. 2019, algorithm 1.
    """
    return Method(threat, Free(step_size), coupling=leaf, replays=replays, attack_mode="train")


@register("yopo", family="amortised", paper="Zhang et al., NeurIPS 2019", cost="mF + mB")
def yopo(
    threat: Threat,
    *,
    m: int = 5,
    n: int = 3,
    step_size: float = 0.25,
    first_layer: Literal["hamiltonian", "both"] = "hamiltonian",
) -> Method:
    """YOPO-m-n: m full passes a minibatch, and n attack steps through the first layer alone after each.

    Objective: that of AT; the adjoint of the first layer's output is held fixed during the n steps.

    The gradients of the m passes are summed for one update, so divide the learning rate by m (the paper has
    0.2 / m and 0.4 / m). The model must name its first layer; every built-in model does. The TRADES version
    is `yopo(threat).but(loss=Trades(6.0), solver__start=Gaussian(0.001), attack_mode="eval")`.

    Args:
        threat: the set of perturbations.
        m: full passes.
        n: first-layer steps after each; YOPO-5-3 on CIFAR-10, 5-10 on MNIST.
        step_size: in units of eps: 2/255 at 8/255.
        first_layer: gradient of the first layer's parameters: "hamiltonian" (the paper) or "both" (the public
            code, which adds the gradient of the full pass).

    Cost: m forwards and m backwards, and m (n + 2) of each through the first layer alone.

    Reference: Zhang et al. 2019, algorithm 1.
    Deviation: the public code counts the first layer's gradient twice; see first_layer. On MNIST its first
    layer is the convolution with its ReLU; here it is the convolution alone, as on CIFAR-10.
    """
    solver = YOPO(n, step_size, uniform, first_layer)
    return Method(threat, solver, replays=m, accumulate=True, attack_mode="train")


@register("atta", family="amortised", paper="Zheng et al., CVPR 2020", cost="(K+1)F + (K+1)B")
def atta(
    threat: Threat,
    *,
    steps: int = 1,
    step_size: float = 15 / 31,
    reset: int | None = 10,
    half: bool = False,
) -> Method:
    """ATTA-K on AT: K attack steps from the perturbation at which the image's last attack ended.

    Objective: that of AT. The perturbations are stored on the padded images and follow each crop and flip.
    The public code pads with grey, as `--set data.augment=crop:4,flip,fill:0.5` does.

    Collapses at large eps (0.4 % robust at 16/255 in Fast-BAT's comparison). The stored perturbation makes up
    most of the attack, so each reset lowers robustness at first; with few epochs this matters.

    Args:
        threat: the set of perturbations.
        steps: K.
        step_size: in units of eps: 0.015 at 0.031 with K = 1; 0.007 / 0.031 with K = 10.
        reset: epochs between resets of the stored perturbations, counted from 1; None for never (MNIST).
        half: store the perturbations in half precision.

    Cost: K + 1 forwards, K + 1 backwards; memory of one padded image for each row.

    Reference: Zheng et al. 2020, algorithm 1.
    Deviation: the public code's plain loss divides the mean by the batch size once more, an error that scales
    the learning rate; here the loss is the mean.
    """
    inner = PGD(steps, step_size * threat.eps)
    return Method(threat, PerExample(inner, reset, half=half))


@register("atta-trades", family="amortised", paper="Zheng et al., CVPR 2020", cost="(K+2)F + (K+2)B")
def atta_trades(
    threat: Threat,
    *,
    beta: float = 6.0,
    steps: int = 1,
    step_size: float = 15 / 31,
    reset: int | None = 10,
    half: bool = False,
    attack_loss: Literal["ce", "kl"] = "ce",
) -> Method:
    """ATTA-K on TRADES; parameters as `atta`.

    Args:
        threat: the set of perturbations.
        beta: weight of the robust term.
        steps, step_size, reset, half: as `atta`.
        attack_loss: what the attack maximises: "ce" (the public code) or "kl" (the paper's TRADES).

    Cost: K + 2 forwards, K + 2 backwards (the outer backward runs through two forwards); "kl" one forward
    more.

    Reference: Zheng et al. 2020, section 5.
    Deviation: the paper describes an attack on TRADES' divergence; its public code attacks the cross-entropy.
    """
    if attack_loss not in ("ce", "kl"):
        raise unknown("attack loss", str(attack_loss), ("ce", "kl"))
    inner = PGD(steps, step_size * threat.eps)
    objective = kl_to_clean if attack_loss == "kl" else cross_entropy
    return Method(threat, PerExample(inner, reset, half=half), objective=objective, loss=Trades(beta))
