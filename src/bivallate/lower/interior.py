"""Ascent inside the box under a log barrier: the lower problem of DONE's theory and of its Algorithm 1."""

from __future__ import annotations

import math
from dataclasses import field, replace
from typing import Self

import torch
from torch import Tensor

from bivallate.errors import UserError, check_whole
from bivallate.lower.direction import Direction, Raw, steepest
from bivallate.lower.problem import LowerProblem
from bivallate.lower.solver import Solver
from bivallate.lower.start import Start, uniform
from bivallate.lower.threat import Linf, ThreatModel
from bivallate.parts import part
from bivallate.types import Solution

CENTRE_GAIN = 0.1  # sensitivity of the implicit gradient in the middle of the box, equal to Fast-BAT's gain


def barrier_strength(threat: Linf, c: float | None) -> float:
    """c, or for None eps^2 / (2 * 0.1), with which the sensitivity in the middle of the box is 0.1."""
    return c if c is not None else max(threat.eps, 1e-12) ** 2 / (2 * CENTRE_GAIN)


def box(threat: ThreatModel) -> Linf:
    """The threat, if it is a box. Raises UserError for others, in which there is no log barrier."""
    if not isinstance(threat, Linf):
        raise UserError("the log barrier is written for boxes (Linf): choose the solver PGD")
    return threat


@part
class InteriorAscent(Solver):
    """Gradient ascent inside the box under a log barrier; delta never touches a bound.

    It maximises objective + c sum_k log slack_k by preconditioned steps. A step is divided by the barrier's
    curvature (a diagonal Newton step without the objective's Hessian) and damped, so that it converges if the
    objective's curvature is below the barrier's. For theory and tests; for training see `BarrierAscent`.

    Attributes:
        steps: number of steps.
        c: strength of the barrier; None is eps^2 / (2 * 0.1), as of `Barrier`.
        damping: fraction of the diagonal Newton step that is made.
        margin: smallest distance of delta from either bound, as a fraction of the box's width.

    Cost: `steps` forwards and backwards.
    """

    steps: int
    c: float | None = None
    damping: float = 0.5
    margin: float = 1e-3

    def check_threat(self, threat: ThreatModel) -> None:
        """Raise UserError for a threat that is not a box."""
        box(threat)

    def fixed_steps(self) -> int:
        """Return `steps`: every example makes every step."""
        return self.steps

    def solve(self, problem: LowerProblem) -> Solution:
        """Solve the barrier problem; see the class."""
        threat = box(problem.threat)
        c, (lo, up) = barrier_strength(threat, self.c), threat.bounds(problem.x)
        low, high = lo + self.margin * (up - lo), up - self.margin * (up - lo)
        before = delta = ((lo + up) / 2).clamp(min=low, max=high)
        for _ in range(self.steps):
            inverse_up, inverse_lo = _inverse(up - delta), _inverse(delta - lo)
            grad = problem.logits_and_gradient(delta)[1] + c * (inverse_lo - inverse_up)
            curvature = c * (inverse_up.square() + inverse_lo.square())
            step = self.damping * grad / torch.where(curvature > 0, curvature, 1)
            before, delta = delta, (delta + step).clamp(min=low, max=high)
        kappa = torch.zeros_like(problem.y)
        return Solution(delta, before, kappa, kappa + self.steps)


@part
class BarrierAscent(Solver):
    """Steps of Algorithm 1 of DONE on h, the objective with its log barrier, from a start inside the box.

    delta <- delta + step_size * direction(grad objective + c (1 / s_lo - 1 / s_up)), s the slacks. A step
    goes at most nine tenths of a coordinate's distance to either bound, so that delta stays strictly inside
    and the barrier finite. A raw step is divided by 1 + step_size C, with the barrier's curvature C = c (1 /
    s_up^2 + 1 / s_lo^2): it is nearly unchanged where the barrier is flat, and a Newton step where it is
    steep.

    Attributes:
        steps, step_size, direction: as of `PGD`.
        c: strength of the barrier; None is eps^2 / (2 * 0.1), as of the coupling `Barrier`.
        start: drawn as for `PGD`, and moved to at least 5 % of the box's width from its bounds.

    Cost: `steps` forwards and backwards.

    Reference: DONE (ICLR 2024), Algorithm 1 with problem (8).
    Deviation: the paper projects onto the closed box, where its barrier is infinite.
    """

    steps: int
    step_size: float
    c: float | None = None
    start: Start = field(default=uniform)
    direction: Direction = field(default=steepest)

    def __post_init__(self) -> None:
        check_whole("BarrierAscent steps", self.steps, 0)
        if not (math.isfinite(self.step_size) and self.step_size >= 0):
            raise UserError(
                f"BarrierAscent step_size must be a finite number of at least 0, got {self.step_size!r}"
            )
        if self.c is not None and not (math.isfinite(self.c) and self.c > 0):
            raise UserError(f"the barrier's strength c must be a positive number, got {self.c!r}")

    def check_threat(self, threat: ThreatModel) -> None:
        """Raise UserError for a threat that is not a box."""
        box(threat)

    def fixed_steps(self) -> int:
        """Return `steps`: every example makes every step."""
        return self.steps

    def can_be_finer(self) -> bool:
        """True: no schedule sets its number of steps."""
        return True

    def stepped(self, length: float, number: float = 1.0) -> Self:
        """Scale its own steps and those of the start."""
        steps, start = round(number * self.steps), self.start.stepped(length, number)
        return replace(self, steps=steps, step_size=length * self.step_size, start=start)

    def solve(self, problem: LowerProblem) -> Solution:
        """Make the steps; see the class."""
        threat = box(problem.threat)
        c, (lo, up) = barrier_strength(threat, self.c), threat.bounds(problem.x)
        room = 0.05 * (up - lo)
        before = delta = torch.minimum(torch.maximum(self.start(problem), lo + room), up - room)
        direction, kappa = self.direction(problem), torch.zeros_like(problem.y)
        for _ in range(self.steps):
            logits, grad = problem.logits_and_gradient(delta)
            kappa += logits.argmax(1) == problem.y
            inverse_up, inverse_lo = _inverse(up - delta), _inverse(delta - lo)
            step = self.step_size * direction(grad + c * (inverse_lo - inverse_up))
            if isinstance(self.direction, Raw):
                step = step / (1 + self.step_size * c * (inverse_up.square() + inverse_lo.square()))
            least, most = -0.9 * (delta - lo), 0.9 * (up - delta)
            before, delta = delta, delta + torch.minimum(torch.maximum(step, least), most)
        return Solution(delta, before, kappa, torch.full_like(kappa, self.steps))


def _inverse(slack: Tensor) -> Tensor:
    """1 / slack, and 0 where the box has no width."""
    return torch.where(slack > 0, 1 / torch.where(slack > 0, slack, 1), 0)
