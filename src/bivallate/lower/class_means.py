"""The mean prediction of each class over an epoch, for losses that use it (IKL)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from bivallate.errors import check_range
from bivallate.lower.class_radius import ClassSums
from bivallate.lower.pgd import PGD, AroundPGD
from bivallate.lower.problem import LowerProblem
from bivallate.lower.solver import Remembering, Solver
from bivallate.parts import part
from bivallate.types import Facts, Solution

__all__ = ["BoundClassMeans", "ClassMeans"]


@part
class ClassMeans(AroundPGD, Remembering):
    """Adds each class's mean prediction in the last epoch (K, K) to the solution, as `class_score`.

    The predictions are those for clean images, in the attack's mode, with logits divided by a temperature.
    They are 1 / K in the first epoch, and for a class that had no row.

    Attributes:
        inner: the solver.
        temperature: T.

    Cost: the inner solver's, and a forward for the clean logits unless the objective makes it anyway; memory
    of 2 K^2 numbers.

    Reference: Cui et al., NeurIPS 2024, section 3.3 (class-wise global information); public code.
    Deviation: in the public code the clean predictions are those of the loss's pass, in train mode.
    """

    gathers: ClassVar = "mean predictions"
    inner: PGD
    temperature: float = 4.0

    def __post_init__(self) -> None:
        check_range("temperature", self.temperature, 1e-6)

    def bind(self, facts: Facts) -> BoundClassMeans:
        """Build the sums for one run."""
        return BoundClassMeans(self, facts)


class BoundClassMeans(Solver, nn.Module):
    """The solver with its sums and the present means (K, K)."""

    means: Tensor

    def __init__(self, rule: ClassMeans, facts: Facts) -> None:
        nn.Module.__init__(self)
        self.rule, self.sums, k = rule, ClassSums(facts), facts.classes
        self.register_buffer("means", torch.full((k, k), 1 / k, dtype=facts.dtype, device=facts.device))

    def solve(self, problem: LowerProblem) -> Solution:
        """Solve by the inner solver, and add this minibatch's predictions to the sums."""
        if self.sums.turned(problem.clock):
            if int(self.sums.epoch) >= 0:
                counts, _, means = self.sums.read()
                self.means.copy_(torch.where(counts[:, None] > 0, means, 1 / len(means)))
            self.sums.begin(problem.clock)
        solution = self.rule.inner.solve(problem)
        self.sums.add(problem.clean_logits / self.rule.temperature, problem.y)
        return solution.but(class_score=self.means.clone())
