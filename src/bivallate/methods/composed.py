"""The package's own composition: many cheap epochs with an attack that grows."""

from __future__ import annotations

from bivallate.lower.curriculum import Curriculum
from bivallate.lower.pgd import PGD
from bivallate.lower.start import uniform
from bivallate.lower.threat import Threat
from bivallate.method import Method
from bivallate.methods.entries import register
from bivallate.schedule import Linear
from bivallate.types import Clock
from bivallate.upper.loss import Trades


def growth(steps: int, until: float) -> Linear:
    """The number of attack steps over a run: 1 at the beginning, K from the fraction `until` of epochs on."""
    return Linear(start=1.0, end=float(steps), until=until)


@register("bastion", family="composed", paper="this package", cost="(k+2)F + (k+2)B, k to K")
def bastion(
    threat: Threat,
    *,
    beta: float = 6.0,
    steps: int = 3,
    step_size: float = 0.75,
    until: float = 2 / 3,
) -> Method:
    """Bastion: TRADES' loss on attacks of few, large steps, whose number grows, in many epochs.

    Minimises mean CE(x) + beta mean KL(p(x) || p(x')), with x' after k = 1, ..., K cross-entropy steps from a
    uniform start.

    An epoch costs less than half of one of PGD-10 AT. The method is meant to use the saving for more epochs,
    which `epochs_within` counts; at equal epochs its weaker attack trains less robust networks.

    Args:
        threat: the set of perturbations.
        beta: weight of the KL term.
        steps: K, attack steps at the end.
        step_size: in units of eps.
        until: fraction of the epochs at which K is reached.

    Cost: k + 2 forwards, k + 2 backwards (the outer backward runs through two forwards).

    Reference: none; its parts are those of TRADES (eq. 5) and of Curriculum AT (section 3).
    """
    solver = Curriculum(PGD(steps, step_size * threat.eps, uniform), growth(steps, until))
    return Method(threat, solver, loss=Trades(beta))


def epochs_within(passes: float, *, steps: int = 3, until: float = 2 / 3) -> int:
    """The largest number of epochs of bastion that cost at most `passes` passes an example.

    Forward and backward passes count alike.

    Example:
        >>> epochs_within(10 * 22)  # ten epochs of PGD-10 AT, 11 forwards and 11 backwards each
        27
    """
    level, epochs = growth(steps, until), 0
    while sum(2 * (int(level(Clock(e, epochs + 1))) + 2) for e in range(epochs + 1)) <= passes:
        epochs += 1
    return epochs
