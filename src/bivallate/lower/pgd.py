"""Projected gradient ascent: the only plain gradient loop, for training and for evaluation."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import field, replace
from typing import Any, Self

import torch
from torch import Tensor

from bivallate.errors import UserError, check_range, check_whole
from bivallate.lower.compaction import Compaction
from bivallate.lower.cuda_graphs import AttackSteps, make_steps
from bivallate.lower.direction import Direction, Steepest, steepest
from bivallate.lower.problem import LowerProblem
from bivallate.lower.solver import Remembering, Solver
from bivallate.lower.start import Gaussian, Given, Start, Zero, uniform
from bivallate.lower.stop import FOSCBelow, Iterate, Misclassified, Never, Stop, mean_fosc, never
from bivallate.lower.threat import Linf
from bivallate.parts import part
from bivallate.types import AttackStart, Solution, per_example


@part
class PGD(Solver):
    """Projected gradient ascent; returns the last iterate.

    delta <- project(delta + step_size * direction(gradient)), `steps` times.

    Attributes:
        steps: number of steps; 0 returns the start.
        step_size: in pixel units for `steepest` and `adam`; for `raw` it multiplies the gradient of the
            summed objective.
        start: the first point.
        direction: of a step.
        stop: when the attack on an example ends.
        jitter: standard deviation of Gaussian noise that is added at every step (FAT's omega), in pixel
            units.

    Cost: at most `steps` forwards and backwards an example. Examples that have stopped cost nothing once
    there are enough of them to make a smaller batch worth its copy (see `Compaction`).

    Raises:
        UserError: steps or step_size that are negative or not finite.

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
        check_range("jitter", self.jitter, 0)

    def fixed_steps(self) -> int:
        """Return `steps`; a stop may end the attack on an example earlier."""
        return self.steps

    def keeps_start(self) -> bool:
        """True if it makes a step."""
        return self.steps > 0

    def can_be_finer(self) -> bool:
        """True: no schedule sets its number of steps."""
        return True

    def takes_two_labels(self) -> bool:
        """True if no stop reads labels and the start does not either."""
        return isinstance(self.stop, Never) and self.start.takes_two_labels()

    def stepped(self, length: float, number: float = 1.0) -> Self:
        """Scale its own steps and those of the start."""
        steps, start = round(number * self.steps), self.start.stepped(length, number)
        return replace(self, steps=steps, step_size=length * self.step_size, start=start)

    def _signs(self, problem: LowerProblem) -> bool:
        """Whether steps and stop use only the signs of the gradient."""
        linf = isinstance(problem.threat, Linf) and isinstance(self.direction, Steepest)
        return linf and isinstance(self.stop, Never | Misclassified)

    def _report(
        self, problem: LowerProblem, delta: Tensor, grad: Tensor, taken: Tensor | None = None
    ) -> None:
        """Log the mean FOSC in the stop's form, and with a stop the mean number of steps made.

        FOSC is taken at the points of the last gradients: the result for an example that has stopped, and one
        step before the result for others. It is not logged in mixed precision if only signs are used: the
        magnitudes are then inexact.
        """
        form = self.stop.form if isinstance(self.stop, FOSCBelow) else "ball"
        rough = self._signs(problem) and getattr(problem.forward.model, "autocast_dtype", None) is not None
        if not rough:
            value = mean_fosc(form, problem.threat, grad.detach(), problem.x, delta)
            problem.log["fosc" if form == "ball" else "fosc_in_box"] = value
        if taken is not None and not isinstance(self.stop, Never):
            problem.log["steps"] = taken.float().mean()

    def solve(self, problem: LowerProblem) -> Solution:
        """Solve the lower problem; see the class."""
        start = problem.project(self.start(problem))
        if isinstance(self.stop, Never) and not self.jitter and self.steps:
            return self._all_steps(problem, start)
        return self._steps_with_stops(problem, start)

    def make_steps(self, problem: LowerProblem, start: Tensor) -> AttackSteps:
        """Make all steps, without a host wait and without side effects, so that they can be a CUDA graph."""
        assert self.steps > 0
        direction, answers = self.direction(problem), list[Tensor]()
        point = before = start
        first = grad = None
        for k in range(self.steps):
            signs = self._signs(problem) and not self._gradient_may_vanish(k)
            logits, grad = problem.logits_and_gradient(point, signs=signs)
            first = grad if first is None else first
            stepped = torch.add(point, direction(grad), alpha=self.step_size)
            before, point = point, problem.project(stepped)
            answers.append(logits)
        assert first is not None
        assert grad is not None
        return AttackSteps(point, before, grad, first, answers)

    def steps_key(self) -> Hashable:
        """The fields that `make_steps` depends on, besides the problem."""
        return self.steps, self.step_size, self.direction, self._gradient_may_vanish(0)

    def _gradient_may_vanish(self, k: int) -> bool:
        """Whether step k is at or near delta = 0, where a divergence from the clean prediction is flat.

        Its gradient is zero or tiny there, and its signs would be rounding errors of a lower precision.
        """
        return k == 0 and isinstance(self.start, Zero | Gaussian)

    def _all_steps(self, problem: LowerProblem, start: Tensor) -> Solution:
        """Solve where every example makes every step."""
        made = make_steps(self, problem, start)
        self._report(problem, made.last_point, made.last_grad)
        first = self._start_of(problem, start, made.logits[0], made.first_grad)

        def kappa() -> Tensor:
            return (torch.stack(list(made.logits)).argmax(2) == problem.y).sum(0)

        def spent() -> Tensor:
            return torch.full_like(problem.y, self.steps)

        return Solution(made.delta, made.last_point, kappa, spent, start=first)

    def _start_of(self, problem: LowerProblem, delta: Tensor, logits: Tensor, grad: Tensor) -> AttackStart:
        """The point of the first gradient; a loss may use the gradient at zero again."""
        training = bool(getattr(problem.forward.model, "training", False))
        return AttackStart(delta, logits, grad if isinstance(self.start, Zero) else None, training)

    def _steps_with_stops(self, problem: LowerProblem, start: Tensor) -> Solution:
        """Solve with a stop or with jitter."""
        delta = before = start
        moving = torch.ones_like(problem.y, dtype=torch.bool)
        kappa, spent = torch.zeros_like(problem.y), torch.zeros_like(problem.y)
        stops, direction = self.stop(problem), self.direction(problem)
        active, seen, grad, first = Compaction(problem), None, None, None
        for k in range(self.steps):
            signs = self._signs(problem) and not self._gradient_may_vanish(k)
            logits, grad = active.logits_and_gradient(delta, signs=signs)
            seen = delta
            first = self._start_of(problem, delta, logits, grad) if k == 0 else first
            spent += moving
            moving = moving & ~stops(Iterate(k, delta, grad, logits))
            if not problem.goes_on(active.shrink(problem, moving) > 0):
                break
            kappa += moving & (logits.argmax(1) == problem.y)
            step = self.step_size * direction(grad)
            if self.jitter:
                noise = problem.noise.normal(f"jitter/{k}", tuple(problem.x.shape[1:]), step.dtype)
                step = torch.where(per_example(moving, step), step + self.jitter * noise, step)
            before, stepped = delta, problem.project(delta + step)
            delta = torch.where(per_example(moving, delta), stepped, delta)
        if seen is not None and grad is not None:
            # an example that has stopped did not use its last gradient
            steps_taken = spent - (~moving).to(spent.dtype)
            self._report(problem, seen, grad, steps_taken)
        return Solution(delta, before, kappa, spent, start=first)


class AroundPGD(Solver):
    """A solver that leaves the steps to a PGD, its field `inner`, and answers as that does."""

    inner: PGD

    def keeps_start(self) -> bool:
        """Whether the inner solver keeps it."""
        return self.inner.keeps_start()

    def takes_two_labels(self) -> bool:
        """Whether the inner solver does; False with state from earlier minibatches."""
        return not isinstance(self, Remembering) and self.inner.takes_two_labels()

    def can_be_finer(self) -> bool:
        """Whether the inner solver can."""
        return self.inner.can_be_finer()

    def stepped(self, length: float, number: float = 1.0) -> Self:
        """Scale the inner solver's steps."""
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
        """Scale the solver's steps."""
        return replace(self, solver=self.solver.stepped(length, number))

    def takes_two_labels(self) -> bool:
        """Whether the solver does."""
        return self.solver.takes_two_labels()

    def __call__(self, problem: LowerProblem) -> Tensor:
        return self.solver.solve(problem).delta


@part
class Wider(AroundPGD):
    """Solves within a ball of radius reach * eps, from a start that is drawn with eps (N-FGSM).

    Attributes:
        inner: the solver; its start uses the method's own threat.
        reach: radius of the solver's ball in units of eps; 1 gives the inner solver.

    Invariant: |delta| <= reach * eps and x + delta in [0, 1].

    Cost: the inner solver's.
    """

    inner: PGD
    reach: float

    def __post_init__(self) -> None:
        check_range("reach", self.reach, 0)

    def solve(self, problem: LowerProblem) -> Solution:
        """Solve within the wider ball."""
        start, threat = self.inner.start(problem), problem.threat
        radius = self.reach * threat.eps
        if isinstance(threat, Linf):
            radius = min(1.0, radius)  # no pixel can move further, and Linf refuses a larger radius
        wide = problem.but(threat=replace(threat, eps=radius))  # pyright: ignore[reportArgumentType, reportCallIssue]
        solution = replace(self.inner, start=Given(start)).solve(wide)
        wide.log.pop("fosc", None)  # that of the wider ball, which means nothing for the threat
        return solution
