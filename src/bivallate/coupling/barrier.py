"""The implicit gradient of a log-barrier problem (DONE)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bivallate.coupling.implicit import Coupling, Sensitivity, couple_at_solution
from bivallate.coupling.linear_solve import curvature_solve
from bivallate.errors import UserError
from bivallate.lower.interior import barrier_strength
from bivallate.lower.problem import LowerProblem
from bivallate.lower.threat import Linf
from bivallate.parts import part
from bivallate.roles import Composition
from bivallate.types import Solution, per_example


def barrier_inverse(delta: Tensor, x: Tensor, threat: Linf, c: float) -> Tensor:
    """Diagonal of C_i^-1, C_i = c diag(1/s_up^2 + 1/s_lo^2), written so that nothing is divided by zero.

    The slacks s_up and s_lo are the distances to the bounds. The result has the shape of delta; it is zero on
    a bound and at most eps^2 / (2 c), in the middle of the box.
    """
    lo, up = threat.bounds(x)
    s_up, s_lo = (up - delta).clamp(min=0), (delta - lo).clamp(min=0)
    denominator = c * (s_up.square() + s_lo.square())
    return (s_up * s_lo).square() / torch.where(denominator > 0, denominator, 1)


@part
class Barrier(Coupling):
    """d delta*/d theta = [C_i - Hessian of the objective]^-1 d grad/d theta, by default without the Hessian.

    At a bound the sensitivity is zero, as with Fast-BAT's mask: the barrier is a smooth form of that mask.

    Attributes:
        c: strength of the barrier; None means eps^2 / (2 * 0.1), with which the sensitivity in the middle of
            the box is 0.1.
        gain: factor of the implicit gradient (kappa_imp).
        curvature_steps: 0 drops the Hessian (the paper's practice); J > 0 solves the full system of
            Proposition 1 by J conjugate-gradient steps in the symmetric form (I - D^1/2 Hessian D^1/2) y =
            D^1/2 v, D = C_i^-1, which also holds on the bounds.
        tolerance: relative residual at which the conjugate gradients stop.

    Cost: one forward, one backward and one double backward at delta; the forward and half of the double
    backward are the outer loss's own when the attack runs in train mode. J > 0: one forward, one backward and
    J products more.

    Raises:
        UserError: c is not positive, or the threat is not Linf.

    Reference: DONE (ICLR 2024), Proposition 1 and section 3.2.
    Deviation: after PGD's projected steps the barrier enters in the coupling only. `BarrierAscent` adds it to
    the attacker's objective, as Algorithm 1 does; `InteriorAscent` solves that problem, for which Proposition
    1 is exact.
    """

    c: float | None = None
    gain: float = 1.0
    curvature_steps: int = 0
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        if self.c is not None and not (math.isfinite(self.c) and self.c > 0):
            raise UserError(f"the barrier's strength c must be a positive number, got {self.c!r}")

    def __call__(self, problem: LowerProblem, solution: Solution) -> Solution:
        delta = solution.delta
        threat = self._boxed(problem.threat)
        c = barrier_strength(threat, self.c)
        diagonal = barrier_inverse(delta, problem.x, threat, c)
        problem.log["sensitivity"] = diagonal.mean()
        problem.log["free"] = threat.interior(delta, problem.x).float().mean()
        return couple_at_solution(problem, solution, lambda grad: self._sensitivity(problem, delta, diagonal))

    def check(self, method: Composition) -> None:
        """Raise UserError if the threat is not a box."""
        self._boxed(method.threat)

    @staticmethod
    def _boxed(threat: object) -> Linf:
        if isinstance(threat, Linf):
            return threat
        raise UserError(
            f"the log-barrier coupling is written for boxes (Linf), got {type(threat).__name__}; "
            "use coupling=LastStep(...) or detached with this threat"
        )

    def _sensitivity(self, problem: LowerProblem, delta: Tensor, diagonal: Tensor) -> Sensitivity:
        if self.curvature_steps == 0:
            return lambda v: self.gain * diagonal * v
        root, curvature = diagonal.sqrt(), problem.curvature(delta)

        def solve(v: Tensor) -> Tensor:
            def matvec(u: Tensor) -> Tensor:
                return u - root * curvature(root * u)

            steps, tolerance = self.curvature_steps, self.tolerance
            solved = curvature_solve(problem, matvec, root * v, steps=steps, tolerance=tolerance)
            y = torch.where(per_example(solved.failed, v), root * v, solved.u)  # failed: without the Hessian
            return self.gain * root * y

        return solve


@part
class Mask(Coupling):
    """Fast-BAT's sensitivity gain * H_C at the solution itself (DONE's option `mask`).

    H_C is the 0/1 mask of the coordinates strictly inside their bounds.

    Attributes:
        gain: factor of the implicit gradient.

    Cost: as `Barrier` without the Hessian.
    """

    gain: float = 0.1

    def __call__(self, problem: LowerProblem, solution: Solution) -> Solution:
        free = problem.threat.interior(solution.delta, problem.x).to(solution.delta.dtype)
        problem.log["free"] = free.mean()
        return couple_at_solution(problem, solution, lambda grad: lambda v: self.gain * free * v)


@part
class Implicit(Coupling):
    """Implicit function theorem on the free coordinates: d delta*/d theta = -(P H P)^-1 P d grad/d theta.

    P projects on the free coordinates and H is the Hessian of the objective in delta. Exact at a strict local
    maximiser with strict complementarity, where -H is positive definite on the free coordinates.

    Attributes:
        steps: of the conjugate gradients at most.
        tolerance: relative residual at which they stop.
        damping: multiple of the identity added to -H: 0 is exact, more is safer far from a maximiser.

    Cost: as `Barrier`, and one forward, one backward and at most `steps` Hessian-vector products.

    Reference: Fast-BAT, Proposition 1, in the form of its block-diagonal identity.
    """

    steps: int = 20
    tolerance: float = 1e-6
    damping: float = 0.0

    def __call__(self, problem: LowerProblem, solution: Solution) -> Solution:
        delta = solution.delta
        free = problem.threat.interior(delta, problem.x).to(delta.dtype)
        problem.log["free"] = free.mean()
        curvature = problem.curvature(delta)

        def solve(v: Tensor) -> Tensor:
            def matvec(u: Tensor) -> Tensor:
                return free * (self.damping * u - curvature(free * u))

            return curvature_solve(problem, matvec, free * v, steps=self.steps, tolerance=self.tolerance).u

        return couple_at_solution(problem, solution, lambda grad: solve)
