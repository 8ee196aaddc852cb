"""AutoAttack and its parts, as attacks of the catalogue."""

from __future__ import annotations

from dataclasses import field, replace

import torch
from torch import Tensor

from bivallate.evaluate.attacks import Attack, at_least_one, family
from bivallate.lower.apgd import APGD
from bivallate.lower.fab import FAB, NearestPlane
from bivallate.lower.objective import (
    DLR,
    CrossEntropy,
    Objective,
    TargetedDLR,
    Towards,
    narrow,
    runner_up,
)
from bivallate.lower.pgd import PGD
from bivallate.lower.problem import LowerProblem
from bivallate.lower.square import Square
from bivallate.parts import part

__all__ = [
    "AutoPGD",
    "BoundaryWalk",
    "MultiTargeted",
    "SquareSearch",
    "TargetedAutoPGD",
    "TargetedBoundaryWalk",
]


def several(classes: int, wanted: int) -> int:
    """Targets there are: never more than the other classes."""
    return min(wanted, classes - 1)


def aim(problem: LowerProblem, rank: Tensor) -> Tensor:
    """(B,) the target of each row: the class that stands at `rank` on the clean image."""
    return runner_up(problem.clean_logits, problem.y, rank)


@part
class AutoPGD:
    """APGD on an untargeted objective; each restart is a turn."""

    name: str
    objective: Objective = field(default_factory=CrossEntropy)
    solver: APGD = field(default_factory=APGD)
    restarts: int = 1

    def __post_init__(self) -> None:
        at_least_one(self.name, steps=self.solver.steps, restarts=self.restarts)

    def turns(self, classes: int) -> int:
        """The restarts."""
        return self.restarts

    def cost(self) -> float:
        """2 (steps + 1) times the samples."""
        return 2 * (self.solver.steps + 1) * self.solver.samples

    def search(self, problem: LowerProblem, turn: Tensor) -> Tensor:
        """A misclassified iterate, or the best point."""
        return self.solver.solve(problem.but(self.objective)).delta


@part
class TargetedAutoPGD:
    """APGD on the targeted DLR; each target is a turn, in the order of the clean logits."""

    name: str = "apgd-t"
    solver: APGD = field(default_factory=APGD)
    targets: int = 9

    def __post_init__(self) -> None:
        at_least_one(self.name, steps=self.solver.steps, targets=self.targets)

    def turns(self, classes: int) -> int:
        """The targets."""
        return several(classes, self.targets)

    def cost(self) -> float:
        """2 (steps + 1) times the samples."""
        return 2 * (self.solver.steps + 1) * self.solver.samples

    def search(self, problem: LowerProblem, turn: Tensor) -> Tensor:
        """A misclassified iterate, or the best point."""
        return self.solver.solve(problem.but(TargetedDLR(aim(problem, turn)))).delta


@part
class BoundaryWalk:
    """FAB towards the nearest class; each restart is a turn, the first begins at the clean image."""

    name: str = "fab"
    solver: FAB = field(default_factory=lambda: FAB(boundary=NearestPlane()))
    restarts: int = 5

    def __post_init__(self) -> None:
        at_least_one(self.name, steps=self.solver.steps, restarts=self.restarts)

    def turns(self, classes: int) -> int:
        """The restarts."""
        return self.restarts

    def cost(self) -> float:
        """About 12 passes a step at ten classes."""
        return 12 * self.solver.steps

    def search(self, problem: LowerProblem, turn: Tensor) -> Tensor:
        """The smallest misclassified perturbation."""
        delta = torch.zeros_like(problem.x)
        for later in (False, True):  # restarts that share a batch may start differently
            rows = ((turn > 0) == later).nonzero()[:, 0]
            if len(rows):
                delta[rows] = replace(self.solver, scatter=later).solve(narrow(problem, rows)).delta
        return delta


@part
class TargetedBoundaryWalk:
    """FAB-T: each target is a turn."""

    name: str = "fab-t"
    solver: FAB = field(default_factory=FAB)
    targets: int = 9

    def __post_init__(self) -> None:
        at_least_one(self.name, steps=self.solver.steps, targets=self.targets)

    def turns(self, classes: int) -> int:
        """The targets."""
        return several(classes, self.targets)

    def cost(self) -> float:
        """Three passes a step."""
        return 3 * self.solver.steps

    def search(self, problem: LowerProblem, turn: Tensor) -> Tensor:
        """The smallest misclassified perturbation."""
        return self.solver.solve(problem.but(Towards(aim(problem, turn)))).delta


@part
class SquareSearch:
    """Square attack; each restart is a turn."""

    name: str = "square"
    solver: Square = field(default_factory=Square)
    restarts: int = 1

    def __post_init__(self) -> None:
        at_least_one(self.name, queries=self.solver.queries, restarts=self.restarts)

    def turns(self, classes: int) -> int:
        """The restarts."""
        return self.restarts

    def cost(self) -> float:
        """One forward a query."""
        return self.solver.queries + 1

    def search(self, problem: LowerProblem, turn: Tensor) -> Tensor:
        """The point of lowest margin."""
        return self.solver.solve(problem).delta


@part
class MultiTargeted:
    """PGD on z_t - z_y for every other class t; each target is a turn.

    Attributes:
        step_size: in units of eps.
    """

    name: str = "multitargeted"
    steps: int = 20
    step_size: float = 0.25
    targets: int = 9

    def __post_init__(self) -> None:
        at_least_one(self.name, steps=self.steps, targets=self.targets)

    def turns(self, classes: int) -> int:
        """The targets."""
        return several(classes, self.targets)

    def cost(self) -> float:
        """2 steps + 1."""
        return 2 * self.steps + 1

    def search(self, problem: LowerProblem, turn: Tensor) -> Tensor:
        """Where the gradient ascent ended."""
        solver = PGD(self.steps, self.step_size * problem.threat.eps)
        return solver.solve(problem.but(Towards(aim(problem, turn)))).delta


@family("apgd-ce", "apgd-ce[-N[-R]]", "Auto-PGD on cross-entropy: N = 100 steps, R = 1 restarts")
def _apgd_ce(steps: int = 100, restarts: int = 1) -> Attack:
    return _single(AutoPGD("apgd-ce", CrossEntropy(), APGD(steps), restarts), (steps, restarts), (100, 1))


@family("apgd-dlr", "apgd-dlr[-N[-R]]", "Auto-PGD on the difference of logits ratio")
def _apgd_dlr(steps: int = 100, restarts: int = 1) -> Attack:
    return _single(AutoPGD("apgd-dlr", DLR(), APGD(steps), restarts), (steps, restarts), (100, 1))


@family("apgd-t", "apgd-t[-N[-T]]", "Auto-PGD on the targeted difference of logits ratio, T = 9 targets")
def _apgd_t(steps: int = 100, targets: int = 9) -> Attack:
    made = TargetedAutoPGD(solver=APGD(steps), targets=targets)
    return _single(made, (steps, targets), (100, 9))


@family("fab", "fab[-N[-R]]", "fast adaptive boundary attack, N = 100 steps, R = 5 restarts")
def _fab(steps: int = 100, restarts: int = 5) -> Attack:
    made = BoundaryWalk(solver=FAB(steps, boundary=NearestPlane()), restarts=restarts)
    return _single(made, (steps, restarts), (100, 5))


@family("fab-t", "fab-t[-N[-T]]", "fast adaptive boundary attack towards T = 9 targets")
def _fab_t(steps: int = 100, targets: int = 9) -> Attack:
    return _single(TargetedBoundaryWalk(solver=FAB(steps), targets=targets), (steps, targets), (100, 9))


@family("square", "square[-Q[-R]]", "random search with square windows, without gradients, Q = 5000 queries")
def _square(queries: int = 5000, restarts: int = 1) -> Attack:
    made = SquareSearch(solver=Square(queries), restarts=restarts)
    return _single(made, (queries, restarts), (5000, 1))


@family("multitargeted", "multitargeted[-N[-T]]", "PGD on the logit difference to T = 9 targets in turn")
def _multitargeted(steps: int = 20, targets: int = 9) -> Attack:
    return _single(MultiTargeted(steps=steps, targets=targets), (steps, targets), (20, 9))


@family("autoattack", "autoattack", "the standard ensemble: apgd-ce, apgd-t, fab-t, square")
def _autoattack() -> Attack:
    return Attack(
        "autoattack", (AutoPGD("apgd-ce"), TargetedAutoPGD(), TargetedBoundaryWalk(), SquareSearch())
    )


@family("autoattack-plus", "autoattack-plus", "the longer ensemble: five restarts, and untargeted parts too")
def _autoattack_plus() -> Attack:
    ce, untargeted = AutoPGD("apgd-ce", restarts=5), AutoPGD("apgd-dlr", DLR(), restarts=5)
    targeted = TargetedAutoPGD(), TargetedBoundaryWalk()
    return Attack("autoattack-plus", (ce, untargeted, BoundaryWalk(), SquareSearch(), *targeted))


@family(
    "autoattack-rand",
    "autoattack-rand",
    "for models that are random: apgd-ce and apgd-dlr, 20 samples a step",
)
def _autoattack_rand() -> Attack:
    eot = APGD(samples=20)
    return Attack("autoattack-rand", (AutoPGD("apgd-ce", solver=eot), AutoPGD("apgd-dlr", DLR(), eot)))


def _single(made, numbers: tuple[int, ...], usual: tuple[int, ...]) -> Attack:
    """The attack that is one part; its name repeats numbers that are not the usual ones."""
    suffix = "" if numbers == usual else "".join(f"-{number}" for number in numbers)
    return Attack(made.name + suffix, (made,))
