"""The last projected gradient step as a function of theta (Fast-BAT)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal, Self

import torch
from torch import Tensor

from bivallate.coupling.implicit import Coupling, Sensitivity, with_implicit_gradient
from bivallate.coupling.linear_solve import curvature_solve
from bivallate.errors import UserError, check_range, unknown
from bivallate.lower.problem import LowerProblem
from bivallate.parts import part
from bivallate.types import Solution, per_example


@part
class LastStep(Coupling):
    """delta*(theta) = project(z + step_size * grad objective(theta, z)), z = solution.delta held fixed.

    This is the exact minimiser of the linearised lower problem with its quadratic term, 1/lambda = step_size
    (Fast-BAT, eq. 7-8), so the solver stops one step short and the coupling takes the last step. Its
    derivative is gain * H_C d grad/d theta, H_C the strict mask of coordinates inside their bounds: the true
    derivative has gain = step_size, Fast-BAT's update has gain = rho = alpha_2 / (lambda alpha_1) = 0.1.

    Attributes:
        step_size: factor of the raw gradient of the summed objective.
        gain: factor of the implicit gradient.
        curvature_steps: 0 is Hessian-free; J > 0 replaces H_C by lambda * blockdiag(H_FF^-1, 0), with H =
            lambda I minus the objective's Hessian at delta*, by J masked conjugate-gradient steps (Fast-BAT,
            eq. 10 and 23). Examples whose first direction has negative curvature keep the Hessian-free value;
            the fraction is logged.
        tolerance: relative residual at which the conjugate gradients stop.
        cross_at: where the cross derivative is taken: "z" (eq. 8 and the public code) or "delta" (eq. 12 as
            printed).

    Raises:
        UserError: step_size is not positive, or cross_at is neither of the two.

    Cost: one forward, one backward and one double backward; "delta" one forward and backward more; J > 0 one
    forward, one backward and J products of two backwards more.

    Reference: Zhang et al., Fast-BAT, ICML 2022, section 4.
    Deviation: eq. 12 evaluates the cross derivative at delta*; the derivative of eq. 8 has it at z.
    """

    step_size: float
    gain: float = 0.1
    curvature_steps: int = 0
    tolerance: float = 1e-4
    cross_at: Literal["z", "delta"] = "z"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.step_size) and self.step_size > 0):
            raise UserError(f"LastStep step_size must be a positive number, got {self.step_size!r}")
        check_range("gain", self.gain, 0)
        if self.cross_at not in ("z", "delta"):
            raise unknown("cross_at", str(self.cross_at), ["z", "delta"])

    def stepped(self, length: float, number: float = 1.0) -> Self:
        """Return the coupling with its one step `length` times as long."""
        return replace(self, step_size=length * self.step_size)

    def __call__(self, problem: LowerProblem, solution: Solution) -> Solution:
        z, scale = solution.delta, self.gain / self.step_size
        graph = problem.graph(z)
        raw = z + self.step_size * graph.grad
        if self.curvature_steps == 0 and self.cross_at == "z":
            # the value of the step, and its derivative scaled from step_size to gain
            step = problem.threat.retract(raw, problem.x)
            delta = step.detach() + scale * (step - step.detach())
        else:
            delta = problem.project(raw.detach())
            cross = graph.grad if self.cross_at == "z" else problem.graph(delta).grad
            delta = with_implicit_gradient(delta, cross, self._sensitivity(problem, delta))
        problem.forward.passes.backward += len(z)
        problem.log["free"] = problem.threat.interior(delta.detach(), problem.x).float().mean()
        return solution.but(delta=delta)

    def _sensitivity(self, problem: LowerProblem, delta: Tensor) -> Sensitivity:
        """v -> gain * H_C v, or gain * lambda * blockdiag(H_FF^-1, 0) v."""
        free = problem.threat.interior(delta, problem.x).to(delta.dtype)
        if self.curvature_steps == 0:
            return lambda v: self.gain * free * v
        stiffness, curvature = 1 / self.step_size, problem.curvature(delta)

        def solve(v: Tensor) -> Tensor:
            def matvec(u: Tensor) -> Tensor:
                return free * (stiffness * free * u - curvature(free * u))

            steps, tolerance = self.curvature_steps, self.tolerance
            solved = curvature_solve(problem, matvec, free * v, steps=steps, tolerance=tolerance)
            return self.gain * torch.where(per_example(solved.failed, v), free * v, stiffness * solved.u)

        return solve
