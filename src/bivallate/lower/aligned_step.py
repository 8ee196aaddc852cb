"""A step whose length follows how linear the loss has been along earlier steps (SORA)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from bivallate import collective
from bivallate.errors import check_range
from bivallate.lower.problem import LowerProblem
from bivallate.lower.single_steps import OneStep, one_step
from bivallate.lower.solver import Solver, require_coupling
from bivallate.lower.threat import Linf
from bivallate.parts import part
from bivallate.roles import Composition
from bivallate.types import AttackStart, Evidence, Facts, Solution

__all__ = ["AlignedStep"]


@part
class AlignedStep(OneStep):
    """One step from a uniform start, which is shorter where the gradients at start and end disagree (SORA).

    delta = eta + a u sgn g, eta uniform in the ball, u uniform in (0, 1) for every pixel, and
    a = step_size eps min(1, bend / (1 - c)). c is a running mean of the agreement <sgn g, g'> / ||g||_1,
    which is 1 where the loss is linear; g' is the gradient at delta, from the outer backward pass. x + delta
    is in [0, 1], and delta up to (1 + step_size) eps long. g is the objective's gradient and g' the loss's: a
    loss that is not the objective, and weights, make c another number and the step mostly shorter.

    Attributes:
        step_size: longest step, in units of eps.
        bend: the step has its full length while 1 - c <= bend.
        memory: weight of the newest minibatch in the running mean c.
        first: c at the start.

    Cost: one forward, one backward.

    Reference: SORA, ICML 2026; public code (attacks/sora.py, training/linearity_coef.py).
    """

    step_size: float = 2.0
    bend: float = 0.02
    memory: float = 0.05
    first: float = 0.99

    def __post_init__(self) -> None:
        check_range("step_size", self.step_size, 0)
        check_range("bend", self.bend, 0)
        check_range("memory", self.memory, 0, 1)
        check_range("first", self.first, -1, 1)

    def check(self, method: Composition) -> None:
        """Raise UserError unless the coupling is `Leaf`: the solver reads d loss / d delta in `.grad`."""
        require_coupling(method, self, "leaf")
        super().check(method)

    def bind(self, facts: Facts) -> BoundAlignedStep:
        """Build the running mean for one run."""
        return BoundAlignedStep(self, facts)


class BoundAlignedStep(Solver, nn.Module):
    """The solver with its running mean c."""

    agreement: Tensor

    def __init__(self, rule: AlignedStep, facts: Facts) -> None:
        super().__init__()
        self.rule = rule
        start = torch.tensor(rule.first, dtype=facts.dtype, device=facts.device)
        self.register_buffer("agreement", start)
        self._grad: Tensor | None = None

    def solve(self, problem: LowerProblem) -> Solution:
        """Make one step, of the length that the running mean allows."""
        threat, c = problem.threat, self.agreement.double()  # stays on the device: the host need not wait
        reach = (1 + self.rule.step_size) * threat.eps
        wide = replace(threat, eps=min(1.0, reach) if isinstance(threat, Linf) else reach)  # pyright: ignore
        start = wide.project(threat.random(problem.noise, problem.x), problem.x)
        logits, self._grad = problem.logits_and_gradient(start)
        length = torch.where(c < 1, (self.rule.bend / (1 - c)).clamp(max=1), 1.0)
        problem.log["agreement"], problem.log["step"] = c, length * self.rule.step_size * threat.eps
        part = problem.noise.uniform("length", tuple(problem.x.shape[1:]), problem.x.dtype)
        step = length * self.rule.step_size * threat.eps * part * threat.steepest(self._grad)
        return one_step(problem, wide.project(start + step, problem.x), AttackStart(start, logits))

    def feedback(self, problem: LowerProblem, delta: Tensor, evidence: Evidence) -> None:
        """Move the mean by the agreement of this minibatch's two gradients."""
        assert self._grad is not None
        assert delta.grad is not None
        direction = problem.threat.steepest(self._grad)
        end = delta.grad * collective.size(problem.batch)
        along = [(direction * g).flatten(1).sum(1) for g in (end, self._grad)]
        counts = along[1] > 0  # an image without a gradient says nothing
        share = collective.mean(counts.to(along[1].dtype))
        agreeing = torch.where(counts, along[0] / along[1].masked_fill(~counts, 1), 0)
        now = (collective.mean(agreeing) / share.masked_fill(share == 0, 1)).clamp(-1, 1)
        now = torch.where(share > 0, now.to(self.agreement.dtype), self.agreement)
        self.agreement.lerp_(now, self.rule.memory)
        self._grad = None
