"""An attack beside which a second network learns, for losses that it guides (LBGAT)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from bivallate import collective
from bivallate.errors import check_range
from bivallate.lower.modes import in_train_mode
from bivallate.lower.pgd import PGD, AroundPGD
from bivallate.lower.problem import LowerProblem
from bivallate.lower.second_network import WithSecondNetwork, tensors_of
from bivallate.lower.solver import Remembering
from bivallate.parts import part
from bivallate.schedule import Schedule, value_at
from bivallate.types import Evidence, Facts, Solution

__all__ = ["BoundHelperNetwork", "HelperNetwork"]

MOMENTUM = "momentum:"  # before the name of a weight: its running gradient


@part
class HelperNetwork(AroundPGD, Remembering):
    """Adds the clean logits (B, K) of a second network to the solution, as `helper`, with graph.

    The second network has the architecture of the trained one, and its weights before the first update;
    frozen layers stay as they are. The loss's backward pass gives it its gradient, and SGD moves it before
    the trained network is moved. Its pass is in train mode always.

    Attributes:
        inner: the solver.
        lr: learning rate, or a schedule of it; None takes the trained network's, for each weight its own.
        momentum, weight_decay: as of torch.optim.SGD.

    Cost: the inner solver's and one forward, through which the loss's backward passes. Memory of the
    network's weights and momentum. On several processes one all-reduce more.

    Reference: Cui et al., Learnable Boundary Guided Adversarial Training, ICCV 2021; public code.
    """

    gathers: ClassVar = "helper logits"
    inner: PGD
    lr: float | Schedule | None = None
    momentum: float = 0.9
    weight_decay: float = 5e-4

    def __post_init__(self) -> None:
        check_range("lr", self.lr, 0)
        check_range("momentum", self.momentum, 0, 1)
        check_range("weight_decay", self.weight_decay, 0)

    def takes_two_labels(self) -> bool:
        """Whether the inner solver does: the second network belongs to no image."""
        return self.inner.takes_two_labels()

    def bind(self, facts: Facts) -> BoundHelperNetwork:
        """Build the solver that holds the second network of one run."""
        return BoundHelperNetwork(self)


class BoundHelperNetwork(WithSecondNetwork):
    """The solver with the second network and its momentum."""

    def __init__(self, rule: HelperNetwork) -> None:
        super().__init__()
        self.rule = rule
        self._learning: dict[str, Tensor] = {}  # of this minibatch, between `solve` and `feedback`

    def solve(self, problem: LowerProblem) -> Solution:
        """Solve by the inner solver, and add the second network's clean logits."""
        solution, module = self.rule.inner.solve(problem), problem.forward.module
        if not self.names:
            self._begin(module)
        kept = self.kept(module)
        weights = [name for name in kept if MOMENTUM + name in kept]
        self._learning = {name: kept[name].detach().requires_grad_() for name in weights}
        with in_train_mode(module):
            helper = problem.at(kept | self._learning).logits(problem.x)
        return solution.but(helper=helper)

    def _begin(self, module: torch.nn.Module) -> None:
        kept = {name: value.detach().clone() for name, value in tensors_of(module).items()}
        learning = [name for name, p in module.named_parameters() if p.requires_grad]
        self.keep(kept | {MOMENTUM + name: torch.zeros_like(kept[name]) for name in learning})

    @torch.no_grad()
    def feedback(self, problem: LowerProblem, delta: Tensor, evidence: Evidence) -> None:
        """Move the second network by the gradient that the loss's backward pass has given it."""
        rule, kept, learning = self.rule, self.kept(problem.forward.module), self._learning
        rates = problem.lr if rule.lr is None else value_at(rule.lr, problem.clock)
        own = [torch.zeros_like(w) if w.grad is None else w.grad for w in learning.values()]
        for name, grad in zip(learning, collective.totals(own), strict=True):
            weight, running = kept[name], kept[MOMENTUM + name]
            running.mul_(rule.momentum).add_(grad + rule.weight_decay * weight)
            weight.sub_((rates[name] if isinstance(rates, dict) else rates) * running)
        self._learning = {}
