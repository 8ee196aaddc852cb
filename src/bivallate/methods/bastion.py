"""The package's own composition: many cheap epochs whose attack grows."""

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
    """The number of attack steps over a run: 1 at its beginning, K from the fraction `until` on."""
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
    """Bastion: TRADES' loss on short, long-stepped attacks whose number of steps grows, in many epochs.

    Minimises mean CE(x) + beta mean KL(p(x) || p(x')), with x' after k = 1, ..., K cross-entropy steps from a
    uniform start.

    An epoch costs less than half of one of PGD-10 AT: the epochs that this pays for are the point, and
    `epochs_within` counts them. At equal epochs it is the weaker attack's method.

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
    """The most epochs of bastion that cost at most so many passes an example, forward and backward together.

    Example:
        >>> epochs_within(10 * 22)  # ten epochs of PGD-10 AT, 11 forwards and 11 backwards each
        27
    """
    level, epochs = growth(steps, until), 0
    while sum(2 * (int(level(Clock(e, epochs + 1))) + 2) for e in range(epochs + 1)) <= passes:
        epochs += 1
    return epochs
