"""DONE: distributionally robust weights and the implicit gradient of a log-barrier lower level."""

from __future__ import annotations

from typing import Any, Literal

from bivallate.coupling.barrier import Barrier, Mask
from bivallate.coupling.implicit import Coupling, detached
from bivallate.lower.direction import Direction, adam, raw, steepest
from bivallate.lower.interior import BarrierAscent, InteriorAscent
from bivallate.lower.pgd import PGD
from bivallate.lower.start import uniform
from bivallate.lower.threat import Linf
from bivallate.method import Method
from bivallate.methods.entries import register
from bivallate.weighting.dro import DONE_TEMPERATURE, KLDRO

Coupled = Literal["barrier", "mask", "none"]
Inner = Literal["projected", "barrier", "exact"]


def dro(temperature: float | None, rate: float, guard: float) -> KLDRO:
    """The weights at one temperature, or with the paper's schedule."""
    return KLDRO(DONE_TEMPERATURE if temperature is None else temperature, rate, guard)


def _done(
    threat: Linf,
    steps: int,
    step_size: float,
    direction: Direction,
    inner: Inner,
    coupling: Coupled,
    c: float | None,
    weighting: KLDRO,
) -> Method:
    """KL-DRO weights with an attack of the kind `inner` and a coupling of the kind `coupling`."""
    couplings: dict[str, Coupling] = {"barrier": Barrier(c), "mask": Mask(), "none": detached}
    solver: Any = PGD(steps, step_size, uniform, direction)
    if inner == "exact":
        solver = InteriorAscent(steps, c)
        couplings["barrier"] = Barrier(c, curvature_steps=steps, tolerance=1e-10)
    if inner == "barrier":
        solver = BarrierAscent(steps, step_size, c, uniform, direction)
    return Method(threat, solver, coupling=couplings[coupling], weighting=weighting, attack_mode="train")


@register("done-gd", family="bilevel", paper="DONE, ICLR 2024", cost="(K+1)F + (K+3)B")
def done_gd(
    threat: Linf,
    *,
    steps: int = 10,
    step_size: float = 1250 / 255,
    inner: Inner = "projected",
    coupling: Coupled = "barrier",
    c: float | None = None,
    temperature: float | None = None,
    rate: float = 0.9,
    guard: float = 2.0,
) -> Method:
    """DONE with raw gradient steps: KL-DRO weights and the implicit gradient of a log-barrier lower level.

    The paper's last temperature of 0.1 makes the weights nearly one-hot, although those of its Fig. 5 are far
    less unequal (docs/barrier.md); on small networks robustness is then lost. Training without a recipe
    therefore uses the temperatures 10 and 3, unless one is given (`bivallate.run.defaults`).

    Args:
        threat: the set of perturbations (Linf).
        steps: K.
        step_size: of the raw gradient of the summed loss, in pixel units; the paper does not state it.
        inner: "projected": steps on the loss, projected onto the box, without the barrier. "barrier": steps
            on the loss with the barrier from a start inside the box, as h in Algorithm 1 (`BarrierAscent`).
            "exact": Proposition 1 itself, for theory: K steps that converge on the barrier problem
            (`InteriorAscent`, which sets its own step size), and the full system with the Hessian by K
            conjugate-gradient steps. With 60 steps, and a c that the loss's curvature does not exceed, it
            agrees with finite differences.
        coupling: the implicit gradient: "barrier", "mask" (Fast-BAT's) or "none".
        c: strength of the barrier; None is eps^2 / 0.2, with which the sensitivity in the middle of the box
            is 0.1.
        temperature: r, constant; None is the paper's 10, 1 and 0.1 from epochs 0, 40 and 50 of 60.
        rate: eta of the running estimate; 1 is the softmax over the minibatch.
        guard: bound of the running estimate, see `KLDRO`.

    Cost: K + 1 forwards, K + 3 backwards; the forward at delta* serves coupling and loss.

    Reference: DONE, Algorithm 1, Proposition 1.
    """
    return _done(threat, steps, step_size, raw, inner, coupling, c, dro(temperature, rate, guard))


@register("done-pgd", family="bilevel", paper="DONE, ICLR 2024", cost="(K+1)F + (K+3)B")
def done_pgd(
    threat: Linf,
    *,
    steps: int = 10,
    step_size: float = 0.25,
    inner: Inner = "projected",
    coupling: Coupled = "barrier",
    c: float | None = None,
    temperature: float | None = None,
    rate: float = 0.9,
    guard: float = 2.0,
) -> Method:
    """DONE with sign steps; parameters as `done-gd`, with step_size in units of eps (2/255 at 8/255)."""
    weighting = dro(temperature, rate, guard)
    return _done(threat, steps, step_size * threat.eps, steepest, inner, coupling, c, weighting)


@register("done-adam", family="bilevel", paper="DONE, ICLR 2024", cost="(K+1)F + (K+3)B")
def done_adam(
    threat: Linf,
    *,
    steps: int = 10,
    step_size: float = 0.25,
    inner: Inner = "projected",
    coupling: Coupled = "barrier",
    c: float | None = None,
    temperature: float | None = None,
    rate: float = 0.9,
    guard: float = 2.0,
) -> Method:
    """DONE with Adam steps; parameters as `done-gd`, with step_size in units of eps (2/255 at 8/255)."""
    weighting = dro(temperature, rate, guard)
    return _done(threat, steps, step_size * threat.eps, adam, inner, coupling, c, weighting)
