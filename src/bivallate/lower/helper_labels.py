"""An attack whose points a plainly trained network labels, for the helper examples of HAT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bivallate.errors import check_range
from bivallate.lower.modes import evaluating
from bivallate.lower.pgd import PGD, AroundPGD
from bivallate.lower.problem import LowerProblem
from bivallate.lower.solver import Remembering, Solver
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


class BoundHelperLabels(Solver, nn.Module):
    """The solver with the plain network's parameters and buffers, kept from the first attack on."""

    def __init__(self, rule: HelperLabels) -> None:
        nn.Module.__init__(self)
        self.rule = rule
        self.names: list[str] = []

    def solve(self, problem: LowerProblem) -> Solution:
        """Return delta = 0 in the first part; then solve, and label the points by the plain network."""
        clock, none = problem.clock, torch.zeros_like(problem.y)
        if clock.epoch < round(self.rule.plain * clock.epochs):
            return Solution(torch.zeros_like(problem.x), None, none, none)
        if not self.names:
            self._keep(problem.forward.module)
        solution = self.rule.inner.solve(problem)
        plain = problem.at(dict(zip(self.names, self._values(), strict=True)))
        with torch.no_grad(), evaluating(problem.forward.module):
            helper = plain.forward(problem.x + solution.delta).argmax(1)
        return solution.but(helper=helper)

    def _keep(self, module: nn.Module) -> None:
        state = dict(module.named_parameters()) | dict(module.named_buffers())
        self._set({name: value.detach().clone() for name, value in state.items()})

    def _set(self, state: Mapping[str, Tensor]) -> None:
        for k in range(len(self.names)):
            delattr(self, f"plain{k}")
        self.names = list(state)
        for k, value in enumerate(state.values()):
            self.register_buffer(f"plain{k}", value)

    def _values(self) -> list[Tensor]:
        return [getattr(self, f"plain{k}") for k in range(len(self.names))]

    def get_extra_state(self) -> dict[str, Any]:
        """The names of the kept tensors."""
        return {"names": self.names}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Do nothing: `load_state_dict` restores the names."""

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Restore kept weights, also into a solver that has kept others or none."""
        names = state_dict["_extra_state"]["names"]
        self._set({name: state_dict[f"plain{k}"].clone() for k, name in enumerate(names)})
