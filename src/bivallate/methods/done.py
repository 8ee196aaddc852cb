"""DONE: distributionally robust weights and the implicit gradient of a log-barrier lower level."""

from __future__ import annotations

from typing import Literal

from bivallate.coupling.barrier import Barrier, Mask
from bivallate.coupling.implicit import Coupling, detached
from bivallate.lower.pgd import PGD, Direction, adam, raw, steepest
from bivallate.lower.start import uniform
from bivallate.lower.threat import Linf
from bivallate.method import Method, register
from bivallate.weighting.dro import KLDRO

Coupled = Literal["barrier", "mask", "none"]


def _done(
    threat: Linf,
    steps: int,
    step_size: float,
    direction: Direction,
    coupling: Coupled,
    rate: float,
    guard: float,
) -> Method:
    """Distributionally robust weights on a barrier-coupled attack."""
    couplings: dict[str, Coupling] = {"barrier": Barrier(), "mask": Mask(), "none": detached}
    solver = PGD(steps, step_size, uniform, direction)
    weighting = KLDRO(rate=rate, guard=guard)
    return Method(threat, solver, coupling=couplings[coupling], weighting=weighting, attack_mode="train")


@register("done-gd", family="bilevel", paper="DONE, ICLR 2024", cost="(K+1)F + (K+3)B")
def done_gd(
    threat: Linf,
    *,
    steps: int = 10,
    step_size: float = 1250 / 255,
    coupling: Coupled = "barrier",
    rate: float = 0.9,
    guard: float = 2.0,
) -> Method:
    """DONE with raw gradient steps: KL-DRO weights and the implicit gradient of a log-barrier lower level.

    Args:
        threat: the set of perturbations (Linf).
        steps: K.
        step_size: of the raw gradient of the summed loss, in pixel units; the paper does not state it.
        coupling: the implicit gradient: "barrier", "mask" (Fast-BAT's) or "none".
        rate: eta of the running estimate; 1 is the in-batch softmax.
        guard: bound of the running estimate.

    Cost: K + 1 forwards, K + 3 backwards; the forward at delta* serves coupling and loss.

    Reference: DONE, Algorithm 1, Proposition 1.
    """
    return _done(threat, steps, step_size, raw, coupling, rate, guard)


@register("done-pgd", family="bilevel", paper="DONE, ICLR 2024", cost="(K+1)F + (K+3)B")
def done_pgd(
    threat: Linf,
    *,
    steps: int = 10,
    step_size: float = 0.25,
    coupling: Coupled = "barrier",
    rate: float = 0.9,
    guard: float = 2.0,
) -> Method:
    """DONE with sign steps; parameters as `done-gd`, with step_size in units of eps (2/255 at 8/255)."""
    return _done(threat, steps, step_size * threat.eps, steepest, coupling, rate, guard)


@register("done-adam", family="bilevel", paper="DONE, ICLR 2024", cost="(K+1)F + (K+3)B")
def done_adam(
    threat: Linf,
    *,
    steps: int = 10,
    step_size: float = 0.25,
    coupling: Coupled = "barrier",
    rate: float = 0.9,
    guard: float = 2.0,
) -> Method:
    """DONE with Adam steps; parameters as `done-gd`, with step_size in units of eps (2/255 at 8/255)."""
    return _done(threat, steps, step_size * threat.eps, adam, coupling, rate, guard)
