"""Attacks whose strength grows during training (Curriculum AT)."""

from __future__ import annotations

import math
from dataclasses import field, replace
from typing import Self

import torch
from torch import Tensor, nn

from bivallate import collective
from bivallate.errors import UserError, check_range
from bivallate.lower.pgd import PGD
from bivallate.lower.problem import LowerProblem
from bivallate.lower.solver import Remembering, Solver, require_coupling
from bivallate.lower.start import zero
from bivallate.noise import Noise
from bivallate.parts import OF_EPOCHS, part
from bivallate.roles import Composition
from bivallate.schedule import Schedule, value_at
from bivallate.types import Clock, Evidence, Facts, Solution


@part
class Levels(Schedule):
    """k(t) = min(K, floor(t (K + 1) / T')): each number of steps from 0 to K for equally many epochs.

    Attributes:
        highest: K.
        until: T' as a fraction of all epochs.

    Example:
        >>> [int(Levels(highest=2, until=0.5)(Clock(epoch=e, epochs=12))) for e in range(7)]
        [0, 0, 1, 1, 2, 2, 2]
    """

    highest: int
    until: float = 5 / 6

    def __post_init__(self) -> None:
        check_range("until", self.until, 1e-6, 1)

    def __call__(self, clock: Clock) -> float:
        length = max(1, round(self.until * clock.epochs))
        return min(self.highest, clock.epoch * (self.highest + 1) // length)

    @property
    def extremes(self) -> tuple[float, ...]:
        """Numbers between which all values lie."""
        return 0, self.highest


@part
class Curriculum(Solver):
    """The inner solver with the number of steps of the present level; level 0 is the clean image.

    Attributes:
        inner: the solver at full strength.
        level: number of steps, a schedule.

    Cost: `level` forwards and backwards.
    """

    inner: PGD
    level: float | Schedule

    def __post_init__(self) -> None:
        check_range("level", self.level, 0)

    def stepped(self, length: float, number: float = 1.0) -> Self:
        """Scale the inner solver's steps."""
        return replace(self, inner=self.inner.stepped(length, number))

    def solve(self, problem: LowerProblem) -> Solution:
        """Solve with the present level's number of steps."""
        level = int(value_at(self.level, problem.clock))
        problem.log["level"] = level
        start = self.inner.start if level else zero
        return replace(self.inner, steps=level, start=start).solve(problem)


@part
class Then(Solver):
    """One solver in the first part of training, another in the rest.

    Attributes:
        first, rest: the solvers.
        share: fraction of the epochs that use the first solver.

    Reference: FGSM in 20 of 120 epochs, then PGD-10, is FGSM-PGD of the Dynamic AT paper, section 3.2:
    `bv.methods.at(threat, fgsm_first=1 / 6)`.
    """

    first: PGD
    rest: PGD
    share: float = field(metadata=OF_EPOCHS)

    def __post_init__(self) -> None:
        check_range("share", self.share, 0, 1)

    def can_be_finer(self) -> bool:
        """Whether both solvers can."""
        return self.first.can_be_finer() and self.rest.can_be_finer()

    def takes_two_labels(self) -> bool:
        """Whether both solvers do."""
        return self.first.takes_two_labels() and self.rest.takes_two_labels()

    def stepped(self, length: float, number: float = 1.0) -> Self:
        """Scale the two solvers' steps."""
        first, rest = (solver.stepped(length, number) for solver in (self.first, self.rest))
        return replace(self, first=first, rest=rest)

    def solve(self, problem: LowerProblem) -> Solution:
        """Solve by the present epoch's solver."""
        clock = problem.clock
        return (self.first if clock.epoch < self.share * clock.epochs else self.rest).solve(problem)


@part
class BatchMixing(Remembering):
    """Cai's curriculum: parts of each minibatch attacked with 0, ..., k steps; k rises when learning stalls.

    The minibatch is shuffled and cut into k + 1 equal parts, the last one with the remainder. Part j is
    attacked with j steps of size (2 eps / j) u, u uniform between 1 and 10 / j, drawn once for each part.

    The level rises after an epoch in which the accuracy on the mixture, measured on the training passes
    themselves, is above `threshold` and has not improved for `patience` epochs. With patience 0 it rises as
    soon as the accuracy is above the threshold (the other published rule, with 0.95).

    With `held_out` the accuracy that must improve is that on held-out data under PGD with k steps, measured
    by the trainer after each epoch. The accuracy on the training passes must still be above the threshold.
    When the level rises, the best state of the last level is restored. Outside a run such a curriculum stays
    at its level.

    Attributes:
        inner: its start, direction and stop are used; each part sets steps and step size.
        highest: highest level.
        patience, threshold: of the rule.
        held_out: whether held-out data decide.

    Cost: k / 2 forwards and backwards, on average.

    Reference: Cai et al., Curriculum Adversarial Training, IJCAI 2018, section 3.
    Deviation: the public code quantises inputs to 16 levels to measure held-out accuracy, and has no highest
    level. Without `held_out` the rule uses the training passes alone, and nothing is restored.
    """

    inner: PGD = field(default=PGD(steps=1, step_size=0.0))
    highest: int = 10
    patience: int = 10
    threshold: float = 0.9
    held_out: bool = False

    def __post_init__(self) -> None:
        if self.patience < 0 or not 0 <= self.threshold < 1:
            raise UserError(
                f"the level rule needs patience >= 0 and 0 <= threshold < 1, got patience={self.patience}, "
                f"threshold={self.threshold:g}"
            )

    def check(self, method: Composition) -> None:
        """Raise UserError for a coupling other than `Detached`, and for weightings with a second stream."""
        require_coupling(method, self, "none")
        super().check(method)

    def bind(self, facts: Facts) -> BoundBatchMixing:
        """Build the level for one run."""
        return BoundBatchMixing(self, facts.device)


class BoundBatchMixing(Solver, nn.Module):
    """The solver with its level and its measurements.

    Attributes:
        counts: (2,) numbers of correct and of all examples of this epoch.
        level: k.
        epoch: being measured.
        best, best_epoch: highest accuracy at this level, and its epoch.
    """

    counts: Tensor

    def __init__(self, rule: BatchMixing, device: torch.device) -> None:
        super().__init__()
        self.rule = rule
        self.register_buffer("counts", torch.zeros(2, dtype=torch.int64, device=device))
        self.level, self.epoch, self.best, self.best_epoch = 0, 0, -math.inf, 0

    def get_extra_state(self) -> dict[str, float]:
        """Level and measurements as plain numbers; `best` is -1 if there is none yet."""
        return {
            "level": self.level,
            "epoch": self.epoch,
            "best": max(self.best, -1.0),
            "best_epoch": self.best_epoch,
        }

    def set_extra_state(self, state: dict[str, float]) -> None:
        """Restore what `get_extra_state` returned."""
        self.level, self.epoch = int(state["level"]), int(state["epoch"])
        self.best_epoch = int(state["best_epoch"])
        self.best = state["best"] if state["best"] >= 0 else -math.inf

    def advance(self, accuracy: float) -> None:
        """End the measured epoch: keep its accuracy if it is the level's best, and raise the level if due."""
        if self.outcome(accuracy, accuracy, self.epoch)[1]:
            self.rise(self.level + 1, self.epoch)

    def outcome(self, accuracy: float, trained: float, epoch: int) -> tuple[bool, bool]:
        """Judge an epoch: (whether it is the level's best so far, whether the level has to rise).

        `trained`: accuracy of the epoch's training passes, which must be above the threshold for a rise.
        """
        best = accuracy > self.best
        if best:
            self.best, self.best_epoch = accuracy, epoch
        stalled = epoch - self.best_epoch >= self.rule.patience
        return best, stalled and trained > self.rule.threshold and self.level < self.rule.highest

    def rise(self, level: int, epoch: int) -> None:
        """Go to another level after this epoch, with no best accuracy yet."""
        self.level, self.best, self.best_epoch = level, -math.inf, epoch

    def solve(self, problem: LowerProblem) -> Solution:
        """Attack each part with its own number of steps."""
        self._turn_to(problem.clock.epoch)
        if (
            problem.forward.costliest
        ):  # a level lasts for `patience` epochs after its first one, which is its best yet
            self.level = min(self.rule.highest, problem.clock.epoch // (self.rule.patience + 1))
        problem.log["level"] = self.level
        delta = torch.zeros_like(problem.x)
        kappa, spent = torch.zeros_like(problem.y), torch.zeros_like(problem.y)
        for j, rows in self._parts(problem):
            solver = replace(self.rule.inner, steps=j, step_size=self._step_size(problem, j))
            found = solver.solve(problem.select(rows))
            delta[rows], kappa[rows], spent[rows] = found.delta, found.kappa, found.evaluations
        problem.log.pop("fosc", None)  # that of the last part only
        return Solution(delta, None, kappa, spent)

    def feedback(self, problem: LowerProblem, delta: Tensor, evidence: Evidence) -> None:
        """Count the points that the training pass classified correctly."""
        correct = (evidence.logits.argmax(1) == problem.y).sum()
        self.counts += torch.stack([correct, torch.full_like(correct, len(problem.y))])

    def _turn_to(self, epoch: int) -> None:
        if epoch == self.epoch:
            return
        correct, seen = collective.total(self.counts).tolist()
        if seen and not self.rule.held_out:
            self.advance(correct / seen)
        self.counts.zero_()
        self.epoch = epoch

    def _parts(self, problem: LowerProblem) -> list[tuple[int, Tensor]]:
        """(j, rows) of the parts with at least one step, for this rank's rows."""
        drawn = problem.noise.uniform("part", (), torch.float64)
        order = collective.gather_rows(drawn, collective.size(problem.batch)).argsort(stable=True)
        size = len(order) // (self.level + 1)
        cuts = [j * size for j in range(self.level + 1)] + [len(order)]
        parts = [(j, collective.own_rows(order[cuts[j] : cuts[j + 1]])) for j in range(1, self.level + 1)]
        return [(j, rows) for j, rows in parts if len(rows)]

    def _step_size(self, problem: LowerProblem, j: int) -> float:
        """(2 eps / j) times a factor between 1 and 10 / j, the same for the whole part."""
        clock = problem.clock
        draw = Noise(clock.seed, torch.tensor([clock.step]), clock.epoch, clock.replay)
        u = float(draw.uniform(f"factor/{j}", (), torch.float64))
        return 2 * problem.threat.eps / j * (1 + u * (10 / j - 1))
