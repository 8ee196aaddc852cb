"""The lower level under several threats at once: the worst one, the steepest step, or one drawn."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from bivallate import collective
from bivallate.errors import UserError, check_range
from bivallate.lower.pgd import PGD, AroundPGD
from bivallate.lower.problem import LowerProblem
from bivallate.lower.solver import Remembering, Solver, require_coupling
from bivallate.lower.threat import Threat, ThreatModel
from bivallate.noise import Noise
from bivallate.parts import part
from bivallate.roles import Composition
from bivallate.types import Evidence, Facts, Solution

__all__ = ["DrawnThreat", "SeveralThreats", "SteepestThreat", "WorstThreat"]


class SeveralThreats(AroundPGD):
    """A solver that attacks within the method's threat and within others.

    Attributes:
        inner: the attack on the method's threat; within another one its step is as large in units of eps.
        others: the other threats, each of another norm.
        unit: the radius of the method's threat. Where a training starts with a smaller one, the others are
            smaller by the same factor.
    """

    others: tuple[Threat, ...]
    unit: float

    def __post_init__(self) -> None:
        check_range("unit", self.unit, 0)
        object.__setattr__(self, "others", tuple(self.others))

    def check(self, method: Composition) -> None:
        """Raise UserError for a coupling, another unit, two threats of one norm, and radii of 0."""
        require_coupling(method, self, "none")
        if not math.isclose(self.unit, method.threat.eps, rel_tol=1e-9):
            raise UserError(
                f"the unit of {type(self).__name__} must be the radius of the method's threat, "
                f"{method.threat.eps:g}, got {self.unit:g}: the other radii grow with that one"
            )
        norms = [type(each).__name__ for each in self.threats(method.threat)]
        if len(set(norms)) < len(norms):
            raise UserError(
                f"several threats need a norm each, got {' and '.join(norms)}: of two balls of one norm the "
                "larger one holds the other"
            )
        if self.others and not (self.unit > 0 and all(each.eps > 0 for each in self.others)):
            raise UserError(
                f"several threats need radii above 0, got {', '.join(map(repr, self.threats(method.threat)))}"
            )

    def threats(self, threat: ThreatModel) -> tuple[ThreatModel, ...]:
        """The method's threat, and the others."""
        return (threat, *self.others)

    def fixed_steps(self) -> int:
        """The inner solver's."""
        return self.inner.fixed_steps()

    def keeps_start(self) -> bool:
        """False: the solution is of one of several attacks."""
        return False

    def bind(self, facts: Facts) -> Solver:
        """Build the solver of one run. Raises UserError without other threats."""
        if not self.others:
            raise UserError(
                "this method trains against several threats and was given one; name the others with their "
                "radii: others=(bv.L2(0.5), bv.L1(12)), or --set others=l2:0.5,l1:12 (in a sweep --fix)"
            )
        return self

    def within(self, problem: LowerProblem) -> Iterator[tuple[LowerProblem, PGD]]:
        """The problem and the solver within each threat, made in turn: the first may make the clean pass."""
        yield problem, self.inner
        for other in self.others:
            grown = replace(other, eps=problem.threat.eps / self.unit * other.eps)
            solver = replace(self.inner, step_size=self.inner.step_size * other.eps / self.unit)
            yield problem.but(threat=grown), solver


def _highest(candidates: Sequence[Tensor], values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Of candidates (B, ...), for each example the one of the highest value (B,), and its number (B,)."""
    best = torch.stack(list(values)).argmax(0)
    return _chosen(candidates, best), best


def _chosen(candidates: Sequence[Tensor], which: Tensor) -> Tensor:
    """(B, ...) row i of candidate number which[i]."""
    return torch.stack(list(candidates))[which, torch.arange(len(which), device=which.device)]


def _log_shares(problem: LowerProblem, solver: SeveralThreats, best: Tensor) -> None:
    """Log for each norm the share of the examples on which its attack was the strongest."""
    for k, each in enumerate(solver.threats(problem.threat)):
        problem.log[f"strongest_{type(each).__name__.lower()}"] = (best == k).double().mean()
    problem.log.pop("fosc", None)  # that of the last threat alone


@part
class WorstThreat(SeveralThreats):
    """Attacks within each threat, and keeps for each example the perturbation of the highest objective (MAX).

    Attributes:
        inner, others, unit: see `SeveralThreats`.

    Cost: with p threats, p times the inner solver's, and p forwards.

    Reference: Tramer and Boneh, Adversarial training and robustness for multiple perturbations, NeurIPS 2019,
    the strategy "max".
    """

    inner: PGD
    others: tuple[Threat, ...]
    unit: float

    def solve(self, problem: LowerProblem) -> Solution:
        """Solve within each threat, and keep the worst."""
        found = [solver.solve(one) for one, solver in self.within(problem)]
        delta, best = _highest([s.delta for s in found], [problem.value(s.delta)[1] for s in found])
        _log_shares(problem, self, best)

        def kappa() -> Tensor:
            return _chosen([s.kappa for s in found], best)

        def evaluations() -> Tensor:
            return torch.stack([s.evaluations for s in found]).sum(0)

        return Solution(delta, None, kappa, evaluations)


@part
class SteepestThreat(SeveralThreats):
    """Makes each step within every threat, and goes on from the point of the highest objective (MSD).

    delta_{k+1} = argmax over the threats p of the objective at project_p(delta_k + step_p steepest_p(g)).
    Every point lies in one of the balls. The log has the shares of the last step.

    Attributes:
        inner: its steps, step size, start and direction.
        others, unit: see `SeveralThreats`.

    Cost: with p threats, p + 1 forwards and one backward a step.

    Reference: Maini, Wong and Kolter, Adversarial robustness against the union of multiple perturbation
    models, ICML 2020, algorithm 1.
    Deviation: the last point counts, as in the algorithm; the public code keeps the best of all points, and
    on MNIST of two starts. A step in L1 moves a fixed number of coordinates (`L1.steepest`), there a random
    one.
    """

    inner: PGD
    others: tuple[Threat, ...]
    unit: float

    def check(self, method: Composition) -> None:
        """Raise UserError also for a stop or a jitter of the inner solver, which are not followed."""
        super().check(method)
        if self.inner != PGD(self.inner.steps, self.inner.step_size, self.inner.start, self.inner.direction):
            raise UserError("SteepestThreat makes every step: leave out the stop and the jitter of its PGD")

    def solve(self, problem: LowerProblem) -> Solution:
        """Make every step within the threat where it leads highest."""
        rules = [(one, solver.step_size, solver.direction(one)) for one, solver in self.within(problem)]
        before = delta = problem.project(self.inner.start(problem))
        kappa, best = torch.zeros_like(problem.y), torch.zeros_like(problem.y)
        for _ in range(self.inner.steps):
            logits, grad = problem.logits_and_gradient(delta)
            kappa += logits.argmax(1) == problem.y
            points = [one.project(delta + size * direction(grad)) for one, size, direction in rules]
            before = delta
            delta, best = _highest(points, [problem.value(point)[1] for point in points])
        _log_shares(problem, self, best)
        return Solution(delta, before, kappa, torch.full_like(problem.y, self.inner.steps))


@part
class DrawnThreat(SeveralThreats, Remembering):
    """Attacks each minibatch within one threat, drawn the more often, the more often attacks there succeed.

    A threat's chance is its error divided by the sum of all errors. The error is the share of misclassified
    attacked images since training began, on the upper level's own passes. Until every threat has been drawn,
    all have the same chance (E-AT).

    Attributes:
        inner, others, unit: see `SeveralThreats`.
        balanced: whether chances follow the errors; False: all threats have the same.

    Cost: the inner solver's.

    Reference: Croce and Hein, Adversarial robustness against multiple and single l_p-threat models via quick
    fine-tuning of robust classifiers, ICML 2022; public code (train.py). The paper's text was not available.
    Deviation: that code counts errors in the attack, with APGD and in eval mode.
    """

    inner: PGD
    others: tuple[Threat, ...]
    unit: float
    balanced: bool = True

    def check(self, method: Composition) -> None:
        """Raise UserError for what `SeveralThreats` and `Remembering` refuse."""
        SeveralThreats.check(self, method)
        Remembering.check(self, method)

    def bind(self, facts: Facts) -> Solver:
        """Build the counts for one run. Raises UserError without other threats."""
        SeveralThreats.bind(self, facts)
        return BoundDrawnThreat(self, facts)


class BoundDrawnThreat(Solver, nn.Module):
    """The solver with the numbers of correct and of all attacked images of each threat."""

    counts: Tensor

    def __init__(self, rule: DrawnThreat, facts: Facts) -> None:
        super().__init__()
        self.rule, self._drawn = rule, 0
        counts = torch.zeros(1 + len(rule.others), 2, dtype=torch.int64, device=facts.device)
        self.register_buffer("counts", counts)

    def solve(self, problem: LowerProblem) -> Solution:
        """Draw a threat, the same on all processes, and solve within it."""
        clock = problem.clock
        draw = Noise(clock.seed, torch.tensor([clock.step]), clock.epoch, clock.replay)
        chances = self._chances().cumsum(0)
        u = float(draw.uniform("threat", (), torch.float64)) * float(chances[-1])
        self._drawn = min(int((chances <= u).sum()), len(chances) - 1)
        for k, each in enumerate(self.rule.threats(problem.threat)):
            problem.log[f"drawn_{type(each).__name__.lower()}"] = float(k == self._drawn)
        one, solver = list(self.rule.within(problem))[self._drawn]
        solution = solver.solve(one)
        problem.log.pop("fosc", None)  # of one threat or another
        return solution.but(before_last=None, start=None)

    def _chances(self) -> Tensor:
        """(p,) float64 on the processor, not divided by their sum."""
        right, seen = self.counts.cpu().double().unbind(1)
        if not self.rule.balanced or bool((seen == 0).any()) or bool((right == seen).all()):
            return torch.ones_like(seen)
        return 1 - right / seen

    def feedback(self, problem: LowerProblem, delta: Tensor, evidence: Evidence) -> None:
        """Count the attacked images that the upper level's own pass classified correctly."""
        right = (evidence.logits.argmax(1) == problem.y).sum()
        self.counts[self._drawn] += collective.total(
            torch.stack([right, torch.full_like(right, len(problem.y))])
        )
