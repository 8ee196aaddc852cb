"""The stages of attacks: a solver, its objective, and its turns (restarts or targets) on each point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from bivallate.errors import UserError, check_whole
from bivallate.lower.apgd import APGD
from bivallate.lower.direction import Direction, Steepest
from bivallate.lower.fab import FAB, NearestPlane
from bivallate.lower.minimal_norm import CWL2, DeepFool
from bivallate.lower.objective import (
    CrossEntropy,
    TargetedDLR,
    TowardsTarget,
    narrow,
    runner_up,
)
from bivallate.lower.pgd import PGD
from bivallate.lower.problem import LowerProblem, Objective
from bivallate.lower.solver import Solver
from bivallate.lower.square import Square
from bivallate.lower.start import Start, Uniform
from bivallate.lower.stop import Iterate, Never, Stop, StopRule
from bivallate.parts import part
from bivallate.types import Solution

__all__ = [
    "AimedDLR",
    "AimedDifference",
    "Fooled",
    "RandomDraw",
    "Restarts",
    "ScaledPGD",
    "Search",
    "Targets",
    "at_least_one",
    "stage_bears_rounding",
]


def stage_bears_rounding(stage: object) -> bool:
    """Whether a search with rounded logits finds the same points as an exact one.

    That holds for searches by steepest ascent that go well beyond the decision boundary before they stop. It
    is not assumed for other directions, whose steps depend on the gradient's size, nor for unknown solvers.
    FAB walks along the boundary, and Square compares margins that differ by less than the rounding: in
    bfloat16 FAB left 7 more points of 100 robust, Square 1 (digits, tiny-cnn, Linf 0.1).
    """
    solver = getattr(stage, "solver", None)
    if isinstance(solver, ScaledPGD):
        return isinstance(solver.stop, Never) and isinstance(solver.direction, Steepest)
    return isinstance(solver, APGD)


def at_least_one(name: str, **counts: int) -> None:
    """Raise UserError unless every count is a whole number of at least 1."""
    for what, value in counts.items():
        check_whole(f"{name}: {what}", value)


@part
class Fooled(Stop):
    """Stops an example as soon as it is misclassified, so that any iterate may be the result.

    For pgd-best and audits; APGD and FAB let examples go by themselves (their field `leave`), and so does
    Square.
    """

    def __call__(self, problem: LowerProblem) -> StopRule:
        def rule(iterate: Iterate) -> Tensor:
            return iterate.logits.argmax(1) != problem.y

        return rule


@part
class ScaledPGD(Solver):
    """PGD with a step size in units of eps, so that one attack is defined for all radii.

    Attributes:
        step_size: in units of eps.
        stop: with `Never()` the last point of every restart counts, with `Fooled()` any iterate.
    """

    steps: int = 20
    step_size: float = 0.25
    start: Start = field(default_factory=Uniform)
    direction: Direction = field(default_factory=Steepest)
    stop: Stop = field(default_factory=Never)

    def __post_init__(self) -> None:
        if not self.step_size > 0:
            raise UserError(f"step_size must be positive (in units of eps), got {self.step_size}")

    def solve(self, problem: LowerProblem) -> Solution:
        """Solve by PGD with the step size for the problem's radius."""
        step = self.step_size * problem.threat.eps
        return PGD(self.steps, step, self.start, self.direction, self.stop).solve(problem)


@part
class RandomDraw(Solver):
    """A uniform draw from the ball, a baseline for attacks."""

    def solve(self, problem: LowerProblem) -> Solution:
        """Draw once."""
        delta = problem.project(problem.threat.random(problem.noise, problem.x))
        nothing = torch.zeros_like(problem.y)
        return Solution(delta, None, nothing, nothing)


@part
class AimedDLR:
    """target (B,) -> the targeted difference of logits ratio."""

    def __call__(self, target: Tensor) -> Objective:
        return TargetedDLR(target)


@part
class AimedDifference:
    """target t (B,) -> the objective z_t - z_y."""

    def __call__(self, target: Tensor) -> Objective:
        return TowardsTarget(target)


class Turns(Protocol):
    """The turns of a stage on each point, and how they differ."""

    def count(self, classes: int) -> int:
        """Number of turns for a model with `classes` classes."""
        ...

    def solve(self, solver: Solver, objective: Any, problem: LowerProblem, turn: Tensor) -> Tensor:
        """The perturbations (B, C, H, W) of rows at their turns (B,)."""
        ...


@part
class Restarts:
    """The same search n times, each with its own noise."""

    n: int = 1

    def count(self, classes: int) -> int:
        """n."""
        return self.n

    def solve(self, solver: Solver, objective: Any, problem: LowerProblem, turn: Tensor) -> Tensor:
        """Run the solver; the problem's noise already belongs to the turn."""
        problem = problem.but(objective)
        if not isinstance(solver, FAB):
            return solver.solve(problem).delta
        # FAB begins at the clean image, so that all restarts would be equal: later ones begin at a random
        # point. Restarts may share a batch, so rows are separated here.
        delta = torch.zeros_like(problem.x)
        for later in (False, True):
            rows = ((turn > 0) == later).nonzero()[:, 0]
            if len(rows):
                delta[rows] = replace(solver, scatter=later).solve(narrow(problem, rows)).delta
        return delta


@part
class Targets:
    """A search towards each of the n most likely wrong classes, in the order of the clean logits."""

    n: int = 9

    def count(self, classes: int) -> int:
        """n, at most the number of other classes."""
        return min(self.n, classes - 1)

    def solve(self, solver: Solver, objective: Any, problem: LowerProblem, turn: Tensor) -> Tensor:
        """Run the solver towards the class at position `turn` among the wrong ones on the clean image."""
        target = runner_up(problem.clean_logits, problem.y, turn)
        return solver.solve(problem.but(objective(target))).delta


@part
class Search:
    """One solver, run on every point in turns: restarts, or targets.

    Attributes:
        name: of the stage.
        solver: of the lower problem.
        objective: to maximise; with `Targets` a function targets (B,) -> objective, such as `AimedDLR()`.
            Square and random draws use the margin only.
        turns: `Restarts(n)` or `Targets(n)`.

    Cost: `cost()` passes a turn, and one forward for the verdict.

    Raises:
        UserError: a number is below 1, or the objective does not fit the turns.
    """

    name: str
    solver: Solver = field(default_factory=ScaledPGD)
    objective: Objective | Callable[[Tensor], Objective] = field(default_factory=CrossEntropy)
    turns: Turns = field(default_factory=Restarts)

    def __post_init__(self) -> None:
        budgets = {name: getattr(self.solver, name, 1) for name in ("steps", "queries", "searches")}
        word = "targets" if isinstance(self.turns, Targets) else "restarts"
        at_least_one(self.name, **budgets, **{word: getattr(self.turns, "n", 1)})
        got = f"got {type(self.objective).__name__}()"  # a user's function is not looked into
        if isinstance(self.turns, Restarts) and isinstance(self.objective, AimedDLR | AimedDifference):
            raise UserError(f"{self.name}: Restarts need an objective, such as CrossEntropy(), {got}")
        if isinstance(self.turns, Targets) and isinstance(self.objective, Objective):
            wanted = "a function from targets to an objective, such as AimedDLR()"
            raise UserError(f"{self.name}: Targets need {wanted}, {got}")

    def count(self, classes: int) -> int:
        """Number of turns for a model with `classes` classes."""
        return self.turns.count(classes)

    def cost(self) -> float:
        """Approximate number of forward and backward passes for each example and turn."""
        return passes_of(self.solver)

    def search(self, problem: LowerProblem, turn: Tensor) -> Tensor:
        """Run the solver on rows at their turns (B,)."""
        return self.turns.solve(self.solver, self.objective, problem, turn)


def passes_of(solver: Solver) -> float:
    """Approximate number of a solver's forward and backward passes an example, for progress and plans."""
    match solver:
        case APGD():
            return 2 * (solver.steps + 1) * solver.samples
        case FAB():
            return (12 if isinstance(solver.boundary, NearestPlane) else 3) * solver.steps  # at ten classes
        case DeepFool():
            return 11 * solver.steps  # at ten classes
        case CWL2():
            return 2 * solver.steps * solver.searches
        case Square():
            return solver.queries + 1
        case RandomDraw():
            return 1.0
        case _:
            return 2 * getattr(solver, "steps", 20) + 1
