"""Projected gradient ascent: the only plain gradient loop, for training and for evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import field, replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from bivallate.errors import UserError, check_range, check_whole
from bivallate.lower.compaction import Compaction
from bivallate.lower.problem import LowerProblem
from bivallate.lower.solver import Remembering, Solver
from bivallate.lower.start import Gaussian, Given, Start, Zero, uniform
from bivallate.lower.stop import FOSCBelow, Iterate, Misclassified, Never, Stop, fosc, never
from bivallate.lower.threat import Linf
from bivallate.parts import part
from bivallate.roles import Composition
from bivallate.types import Solution, per_example

Step = Callable[[Tensor], Tensor]


class Direction(Protocol):
    """(problem) -> a rule for one solve: gradient (B, C, H, W) -> step direction of the same shape."""

    def __call__(self, problem: LowerProblem) -> Step: ...


@part
class Steepest:
    """The sign of the gradient for Linf, g / ||g|| for L2, the largest coordinates' signs for L1."""

    def __call__(self, problem: LowerProblem) -> Step:
        return problem.threat.steepest


@part
class Raw:
    """The gradient itself, of the summed objective: a step does not shrink with the size of the minibatch."""

    def __call__(self, problem: LowerProblem) -> Step:
        return lambda grad: grad


@part
class Adam:
    """Adam's direction with fresh moments at every solve (DONE-Adam).

    The first direction is sign(g) wherever |g| is well above `epsilon`.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def __call__(self, problem: LowerProblem) -> Step:
        m, v = torch.zeros_like(problem.x), torch.zeros_like(problem.x)
        k = 0

        def direction(grad: Tensor) -> Tensor:
            nonlocal k
            k += 1
            m.mul_(self.beta1).add_(grad, alpha=1 - self.beta1)
            v.mul_(self.beta2).addcmul_(grad, grad, value=1 - self.beta2)
            root = (v / (1 - self.beta2**k)).sqrt_().add_(self.epsilon)
            return (m / (1 - self.beta1**k)).div_(root)

        return direction


steepest = Steepest()
raw = Raw()
adam = Adam()


@part
class PGD(Solver):
    """Projected gradient ascent; the last iterate is the answer.

    delta <- project(delta + step_size * direction(gradient)), `steps` times.

    Attributes:
        steps: number of steps; 0 returns the start.
        step_size: in pixel units for `steepest` and `adam`; for `raw` it multiplies the gradient of the
            summed objective.
        start, stop, direction: parts.
        jitter: standard deviation of Gaussian noise added at every step (FAT's omega).

    Cost: `steps` forwards and backwards an example at most; examples that have stopped cost nothing once
    enough of them have to make a smaller batch worth its copy (see `Compaction`).

    Example:
        >>> PGD(steps=10, step_size=2 / 255).steps
        10
    """

    steps: int
    step_size: float
    start: Start = field(default=uniform)
    direction: Direction = field(default=steepest)
    stop: Stop = field(default=never)
    jitter: float = 0.0

    def __post_init__(self) -> None:
        check_whole("PGD steps", self.steps, 0)
        if not (math.isfinite(self.step_size) and self.step_size >= 0):
            raise UserError(f"PGD step_size must be a finite number of at least 0, got {self.step_size!r}")

    def check(self, method: Composition) -> None:
        """What start and stop ask of a method."""
        self.start.check(method)
        self.stop.check(method)

    def fixed_steps(self) -> int:
        """`steps`, fewer only where a stop ends them."""
        return self.steps

    def keeps_start(self) -> bool:
        """Where it makes a step."""
        return self.steps > 0

    def can_be_finer(self) -> bool:
        """Its steps are its own."""
        return True

    def takes_mixed(self) -> bool:
        """Where nothing stops it early."""
        return isinstance(self.stop, Never) and self.start.takes_mixed()

    def stepped(self, length: float, number: float = 1.0) -> Self:
        """Its steps, and the start's."""
        steps, start = round(number * self.steps), self.start.stepped(length, number)
        return replace(self, steps=steps, step_size=length * self.step_size, start=start)

    def _signs(self, problem: LowerProblem) -> bool:
        """Whether steps and stop use no more of the gradient than its signs."""
        linf = isinstance(problem.threat, Linf) and isinstance(self.direction, Steepest)
        return linf and isinstance(self.stop, Never | Misclassified)

    def _report(self, problem: LowerProblem, delta: Tensor, grad: Tensor, taken: Tensor) -> None:
        """Log the mean FOSC in the stop's form, and the steps taken where a stop ends them.

        FOSC is of the points of the last gradients, which are the answer where an example has stopped and one
        step short of it elsewhere.

        Gradients in mixed precision of which the signs alone were asked have no size to tell.
        """
        form = self.stop.form if isinstance(self.stop, FOSCBelow) else "ball"
        rough = self._signs(problem) and getattr(problem.forward.model, "autocast_dtype", None) is not None
        if not rough:
            value = fosc(form, problem.threat, grad.detach(), problem.x, delta).mean()
            problem.log["fosc" if form == "ball" else "fosc_in_box"] = value
        if not isinstance(self.stop, Never):
            problem.log["steps"] = taken.float().mean()

    def solve(self, problem: LowerProblem) -> Solution:
        """Solution of the lower problem; see the class."""
        delta = before = problem.project(self.start(problem))
        moving = torch.ones_like(problem.y, dtype=torch.bool)
        kappa, spent = torch.zeros_like(problem.y), torch.zeros_like(problem.y)
        rows = torch.arange(len(problem.y), device=problem.y.device)
        ends, direction = self.stop(problem), self.direction(problem)
        patient, active = isinstance(self.stop, Never), Compaction(problem)
        seen, grad, said = None, None, list[Tensor]()
        for k in range(self.steps):
            near = k == 0 and isinstance(self.start, Zero | Gaussian)  # a divergence has no slope there
            logits, grad = active.ascent(delta, signs=self._signs(problem) and not near)
            seen = delta
            if k == 0:
                problem.begin(delta, logits)
            if k == 0 and isinstance(self.start, Zero):  # a loss may use this gradient again
                problem.began_at_zero(grad)
            said.append(logits)
            if not patient:
                spent += moving
                moving = moving & ~ends(Iterate(k, delta, grad, logits, rows))
                if not problem.anywhere(active.shrink(problem, moving) > 0):
                    break
                kappa += moving & (logits.argmax(1) == problem.y)
            step = self.step_size * direction(grad)
            if self.jitter:
                noise = problem.noise.normal(f"jitter/{k}", tuple(problem.x.shape[1:]), step.dtype)
                step = torch.where(per_example(moving, step), step + self.jitter * noise, step)
            before, stepped = delta, problem.project(delta + step)
            delta = stepped if patient else torch.where(per_example(moving, delta), stepped, delta)
        if patient and said:  # all at once: fewer kernels than at every step
            spent += len(said)
            kappa += (torch.stack(said).argmax(2) == problem.y).sum(0)
        if seen is not None and grad is not None:
            self._report(problem, seen, grad, spent - (~moving).to(spent.dtype))
        return Solution(delta, before, kappa, spent)


class AroundPGD(Solver):
    """A solver that leaves the steps to a PGD, its field `inner`, and is as fine and as early as that."""

    inner: PGD

    def keeps_start(self) -> bool:
        """As the inner solver."""
        return self.inner.keeps_start()

    def takes_mixed(self) -> bool:
        """As the inner solver, where there is no memory of images."""
        return not isinstance(self, Remembering) and self.inner.takes_mixed()

    def can_be_finer(self) -> bool:
        """As the inner solver."""
        return self.inner.can_be_finer()

    def stepped(self, length: float, number: float = 1.0) -> Self:
        """The inner solver's steps."""
        own: Any = self
        return replace(own, inner=self.inner.stepped(length, number))


@part
class Warm(Start):
    """Start from another solver's result; its steps count as passes, not as steps of this attack.

    Attributes:
        solver: makes the warm-up steps.
    """

    solver: PGD

    def stepped(self, length: float, number: float = 1.0) -> Self:
        """The solver's steps."""
        return replace(self, solver=self.solver.stepped(length, number))

    def takes_mixed(self) -> bool:
        """As the solver."""
        return self.solver.takes_mixed()

    def __call__(self, problem: LowerProblem) -> Tensor:
        return self.solver.solve(problem).delta


@part
class Wider(AroundPGD):
    """Solves with a ball of radius reach * eps, from a start drawn with eps itself (N-FGSM).

    Attributes:
        inner: the solver; its start sees the method's own threat.
        reach: radius of the solver's ball in units of eps; 1 is the inner solver.

    Invariant: |delta| <= reach * eps and x + delta in [0, 1].

    Cost: the inner solver's.
    """

    inner: PGD
    reach: float

    def __post_init__(self) -> None:
        check_range("reach", self.reach, 0)

    def check(self, method: Composition) -> None:
        """What the inner solver asks of a method."""
        self.inner.check(method)

    def solve(self, problem: LowerProblem) -> Solution:
        """Solution of the wider problem."""
        start, threat = self.inner.start(problem), problem.threat
        radius = self.reach * threat.eps
        if isinstance(threat, Linf):
            radius = min(1.0, radius)  # no pixel can move further, and Linf refuses more
        wide = problem.but(threat=replace(threat, eps=radius))  # pyright: ignore[reportArgumentType, reportCallIssue]
        solution = replace(self.inner, start=Given(start)).solve(wide)
        wide.log.pop("fosc", None)  # of the wider ball it says nothing
        return solution
