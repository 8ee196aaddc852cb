"""An attack whose points a plainly trained network labels, for the helper examples of HAT."""

from __future__ import annotations

from dataclasses import field
from typing import ClassVar

import torch

from bivallate.errors import check_range
from bivallate.lower.modes import evaluating
from bivallate.lower.pgd import PGD, AroundPGD
from bivallate.lower.problem import LowerProblem
from bivallate.lower.second_network import WithSecondNetwork, tensors_of
from bivallate.lower.solver import Remembering
from bivallate.parts import OF_EPOCHS, part
from bivallate.types import Facts, Solution

__all__ = ["BoundHelperLabels", "HelperLabels"]


@part
class HelperLabels(AroundPGD, Remembering):
    """No attack in the first part of training; then the inner solver's attack, and labels of a plain network.

    A copy of the network is kept at the end of the first part. In eval mode it labels the attacked points;
    the labels are the solution's `helper` (B,).

    Attributes:
        inner: the solver.
        plain: fraction of the epochs without attack; 0 keeps the initial weights of the run (`--init`).

    Cost: the inner solver's and one forward; nothing in the first part. Memory of the network's weights.

    Reference: Rade and Moosavi-Dezfooli, HAT, ICLR 2022; public code.
    Deviation: in the public code the plain network is another one, trained before, and robust training begins
    with fresh weights.
    """

    gathers: ClassVar = "helper labels"
    inner: PGD
    plain: float = field(default=0.1, metadata=OF_EPOCHS)

    def __post_init__(self) -> None:
        check_range("plain", self.plain, 0, 1)

    def bind(self, facts: Facts) -> BoundHelperLabels:
        """Build the solver that keeps the plain weights of one run."""
        return BoundHelperLabels(self)


class BoundHelperLabels(WithSecondNetwork):
    """The solver with the plain network, kept from the first attack on."""

    def __init__(self, rule: HelperLabels) -> None:
        super().__init__()
        self.rule = rule

    def solve(self, problem: LowerProblem) -> Solution:
        """Return delta = 0 in the first part; then solve, and label the points by the plain network."""
        clock, none = problem.clock, torch.zeros_like(problem.y)
        if clock.epoch < round(self.rule.plain * clock.epochs):
            return Solution(torch.zeros_like(problem.x), None, none, none)
        module = problem.forward.module
        if not self.names:
            self.keep({name: value.detach().clone() for name, value in tensors_of(module).items()})
        solution = self.rule.inner.solve(problem)
        plain = problem.at(self.kept(module))
        with torch.no_grad(), evaluating(module):
            helper = plain.forward(problem.x + solution.delta).argmax(1)
        return solution.but(helper=helper)
