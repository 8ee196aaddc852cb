"""Attacks with a radius for each class, from the class's results in an earlier epoch (CFA, DAFA)."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import field
from typing import ClassVar

import torch
from torch import Tensor, nn

from bivallate import collective
from bivallate.errors import check_range
from bivallate.lower.direction import Direction, DirectionRule
from bivallate.lower.pgd import PGD, AroundPGD
from bivallate.lower.problem import LowerProblem
from bivallate.lower.radii import Radii
from bivallate.lower.solver import Remembering, Solver, require_coupling
from bivallate.parts import OF_EPOCHS, part
from bivallate.roles import Composition, Role
from bivallate.types import Clock, Evidence, Facts, Solution, per_example

__all__ = [
    "BoundClassRadius",
    "ClassDistance",
    "ClassRadius",
    "ClassScore",
    "ClassSums",
    "Proportional",
    "RobustRate",
]


class ClassScore(Role):
    """One number for each class, from the predictions for an epoch's adversarial training points."""

    @abstractmethod
    def due(self, clock: Clock, known: bool) -> bool:
        """Whether to compute the scores of the clock's epoch from the epoch that has just ended.

        known: whether there are scores already.
        """

    @abstractmethod
    def __call__(self, counts: Tensor, right: Tensor, mean: Tensor) -> Tensor:
        """(K,) scores from rows (K,) and correct rows (K,) of each class and its mean prediction (K, K)."""


@part
class RobustRate(ClassScore):
    """The share of each class's adversarial points that were classified correctly in the last epoch (CFA).

    Attributes:
        begin: fraction of the epochs before the first scores; 10 of 200 in the paper's setting.

    Reference: Wei et al., CFA, CVPR 2023, section 4; public code.
    """

    begin: float = field(default=0.05, metadata=OF_EPOCHS)

    def __post_init__(self) -> None:
        check_range("begin", self.begin, 0, 1)

    def due(self, clock: Clock, known: bool) -> bool:
        """True after every epoch, from the fraction `begin` on."""
        return clock.epoch >= max(1, round(self.begin * clock.epochs))

    def __call__(self, counts: Tensor, right: Tensor, mean: Tensor) -> Tensor:
        return right / counts.clamp(min=1)


@part
class ClassDistance(ClassScore):
    """W_c = 1 + scale sum_{j != c} s_cj p_c(j) p_j(j), p_c the mean prediction of class c's attacked points.

    s_cj is 1 where p_c(c) < p_j(j), so that class c is the harder one, and -1 otherwise: of two similar
    classes the harder one gains and the easier one loses. Computed once, from the last epoch of the warm-up.

    Attributes:
        scale: lambda; 0 leaves all scores at 1.
        warm_up: fraction of the epochs before the scores; 70 of 110.

    Reference: Lee et al., DAFA, ICLR 2024; public code (`calculate_class_weights`).
    """

    scale: float = 1.0
    warm_up: float = field(default=70 / 110, metadata=OF_EPOCHS)

    def __post_init__(self) -> None:
        check_range("scale", self.scale, 0)
        check_range("warm_up", self.warm_up, 0, 1)

    def due(self, clock: Clock, known: bool) -> bool:
        """True once, when the warm-up is over."""
        return not known and clock.epoch >= max(1, round(self.warm_up * clock.epochs))

    def __call__(self, counts: Tensor, right: Tensor, mean: Tensor) -> Tensor:
        own = mean.diagonal()
        sign = torch.where(own[:, None] < own[None], 1.0, -1.0).to(mean.dtype).fill_diagonal_(0)
        return 1 + self.scale * (sign * mean * own[None]).sum(1)


@part
class Proportional(Direction):
    """The steepest direction times each row's radius in units of eps; unscaled without radii."""

    def __call__(self, problem: LowerProblem) -> DirectionRule:
        threat = problem.threat
        if not isinstance(threat, Radii):
            return threat.steepest
        return lambda grad: per_example(threat.factor, grad) * threat.steepest(grad)


@part
class ClassRadius(AroundPGD, Remembering):
    """Attacks each row within a radius of (base + score of its class) eps; eps before there are scores.

    The scores are computed from the upper level's own passes, at no cost. They are part of the solution,
    where loss and weighting read them. These radii are used in training only: evaluation is at eps.

    Attributes:
        inner: the solver.
        score: how scores are computed.
        base: added to the score; lambda_1 of CFA, 0 for scores that are radii themselves.

    Cost: the inner solver's; memory of (K, K + 2) numbers.

    Reference: Wei et al. 2023 (CFA), section 4; Lee et al. 2024 (DAFA).
    """

    gathers: ClassVar = "class scores"
    inner: PGD
    score: ClassScore
    base: float = 0.5

    def __post_init__(self) -> None:
        check_range("base", self.base, 0)

    def check(self, method: Composition) -> None:
        """Raise UserError for a coupling, which would not know the radii."""
        require_coupling(method, self, "none")
        super().check(method)

    def bind(self, facts: Facts) -> BoundClassRadius:
        """Build the sums for one run."""
        return BoundClassRadius(self, facts)


class ClassSums(nn.Module):
    """Sums over the present epoch of rows, correct rows and predictions of each class.

    Every rank holds the sums over all ranks.
    """

    sums: Tensor
    epoch: Tensor

    def __init__(self, facts: Facts) -> None:
        super().__init__()
        shape = (facts.classes, facts.classes + 2)
        self.register_buffer("sums", torch.zeros(shape, dtype=facts.dtype, device=facts.device))
        self.register_buffer("epoch", torch.tensor(-1))  # on the CPU, because the host reads it every step

    def turned(self, clock: Clock) -> bool:
        """Whether a new epoch has begun, for which `begin` has not been called."""
        return int(self.epoch) != clock.epoch

    def begin(self, clock: Clock) -> None:
        """Set the sums to zero for the clock's epoch."""
        self.sums.zero_()
        self.epoch.fill_(clock.epoch)

    def add(self, logits: Tensor, y: Tensor) -> None:
        """Add a minibatch: logits (B, K), labels (B,)."""
        right = (logits.argmax(1) == y).to(self.sums.dtype)
        rows = torch.cat([torch.ones_like(right)[:, None], right[:, None], logits.softmax(1)], 1)
        self.sums += collective.total(torch.zeros_like(self.sums).index_add_(0, y, rows.to(self.sums.dtype)))

    def read(self) -> tuple[Tensor, Tensor, Tensor]:
        """(rows (K,), correct rows (K,), mean prediction (K, K)) of each class."""
        counts, right, total = self.sums[:, 0], self.sums[:, 1], self.sums[:, 2:]
        return counts, right, total / counts[:, None].clamp(min=1)


class BoundClassRadius(Solver, nn.Module):
    """The solver with its sums and the present scores (K,)."""

    score: Tensor
    known: Tensor

    def __init__(self, rule: ClassRadius, facts: Facts) -> None:
        nn.Module.__init__(self)
        self.rule, self.told = rule, ClassSums(facts)
        self.register_buffer("score", torch.zeros(facts.classes, dtype=facts.dtype, device=facts.device))
        self.register_buffer("known", torch.tensor(False))  # on the CPU, because the host reads it every step

    def solve(self, problem: LowerProblem) -> Solution:
        """Solve by the inner solver within each row's radius."""
        clock = problem.clock
        if self.told.turned(clock):
            if int(self.told.epoch) >= 0 and self.rule.score.due(clock, bool(self.known)):
                self.score.copy_(self.rule.score(*self.told.read()))
                self.known.fill_(True)
            self.told.begin(clock)
        if not bool(self.known):
            return self.rule.inner.solve(problem)
        factor = (self.rule.base + self.score[problem.y]).clamp(min=0).to(problem.x.dtype)
        problem.log["mean_radius"] = factor.mean() * problem.threat.eps
        inside = problem.but(threat=Radii(problem.threat, factor))  # pyright: ignore[reportArgumentType]
        return self.rule.inner.solve(inside).but(class_score=self.score.clone())

    def feedback(self, problem: LowerProblem, delta: Tensor, evidence: Evidence) -> None:
        """Add the predictions of the upper level's own pass to the sums."""
        self.told.add(evidence.logits, problem.y)
