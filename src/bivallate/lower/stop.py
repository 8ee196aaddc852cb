"""Rules for when a single example's attack ends.

A stop is a factory of fresh rules, so that no state outlives a solve.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bivallate.errors import UserError, check_range, unknown
from bivallate.lower.problem import LowerProblem
from bivallate.lower.threat import ThreatModel
from bivallate.parts import part
from bivallate.roles import Role
from bivallate.schedule import Schedule, at

Form = Literal["ball", "box"]
FORMS = ("ball", "box")


def fosc(form: Form, threat: ThreatModel, grad: Tensor, x: Tensor, delta: Tensor) -> Tensor:
    """(B,) FOSC, the first-order stationary condition: max over d in C of <grad, d - delta>.

    In the units of the loss. The lower, the better the inner maximisation has converged; zero at a stationary
    point.

    Args:
        form: "ball": C is the ball alone, eps ||grad|| - <delta, grad>. "box": C is the ball within [0, 1],
            whose value is never larger, and exact where pixels lie near 0 or 1.
        threat: whose ball.
        grad: of the attacker's objective at x + delta; all of shape (B, C, H, W).

    Reference: Wang et al., Dynamic AT, ICML 2019, eq. 4, in the closed form that follows it.
    """
    return threat.ball_support(grad, delta) if form == "ball" else threat.support(grad, x, delta)


@dataclass(frozen=True)
class Iterate:
    """One moment of an attack, seen before its step is taken."""

    k: int
    delta: Tensor  # (B, C, H, W)
    grad: Tensor  # (B, C, H, W)
    logits: Tensor  # (B, K)
    rows: Tensor  # (B,) int64, positions in the minibatch: rules with per-example state index it with these


Rule = Callable[[Iterate], Tensor]


class Stop(Role, ABC):
    """When an example stops: (problem) -> a rule for one solve.

    The rule is Iterate -> (B,) bool, True where the example stops before this step.
    """

    @abstractmethod
    def __call__(self, problem: LowerProblem) -> Rule: ...


@part
class Never(Stop):
    """Every example takes every step."""

    def __call__(self, problem: LowerProblem) -> Rule:
        return lambda iterate: torch.zeros(
            len(iterate.logits), dtype=torch.bool, device=iterate.logits.device
        )


@part
class Misclassified(Stop):
    """Stops an example that is misclassified, after it has been so `tau` times already (FAT, PGD-K-tau).

    The visits are counted in all, not in a row: an example that flips back is not forgiven the earlier ones.

    Attributes:
        tau: further steps granted after misclassification; a number or a schedule.

    Reference: Zhang et al., FAT, ICML 2020, algorithm 1.
    """

    tau: float | Schedule = 0

    def __post_init__(self) -> None:
        check_range("tau", self.tau if isinstance(self.tau, int | float) else 0, 0)

    def __call__(self, problem: LowerProblem) -> Rule:
        left = torch.full_like(problem.y, int(at(self.tau, problem.clock)))

        def rule(iterate: Iterate) -> Tensor:
            wrong = iterate.logits.argmax(1) != problem.y[iterate.rows]
            granted = left[iterate.rows]
            left[iterate.rows] = granted - (wrong & (granted > 0)).to(left.dtype)
            return wrong & (granted == 0)

        return rule


@part
class FOSCBelow(Stop):
    """Stops an example once its first-order stationary condition is at most a threshold (Dynamic AT).

    The first step is always taken.

    Attributes:
        threshold: c_t in nats, summed over pixels; a number or a schedule.
        form: "ball" or "box", see `fosc`; the box's values are smaller, so that a threshold of the ball's
            stops it much earlier.
        origin: what the "ball" form measures delta from: the "clean" image, or the random "start", as in the
            public code, where the value may be negative.

    Reference: Wang et al., Dynamic AT, ICML 2019, eq. 4 and algorithm 1.
    """

    threshold: float | Schedule
    form: Form = "ball"
    origin: Literal["clean", "start"] = "clean"

    def __post_init__(self) -> None:
        for value, known in ((self.form, FORMS), (self.origin, ("clean", "start"))):
            if value not in known:
                raise unknown("form or origin of FOSC", str(value), known)
        if self.origin == "start" and self.form == "box":
            raise UserError('FOSC measured from the random start has only the ball form: set form="ball"')

    def __call__(self, problem: LowerProblem) -> Rule:
        threshold, threat = at(self.threshold, problem.clock), problem.threat
        start = torch.zeros_like(problem.x)

        def rule(iterate: Iterate) -> Tensor:
            nonlocal start
            if iterate.k == 0:
                start = iterate.delta if self.origin == "start" else start
                return torch.zeros_like(iterate.rows, dtype=torch.bool)
            moved = iterate.delta - start[iterate.rows]
            return fosc(self.form, threat, iterate.grad, problem.x[iterate.rows], moved) <= threshold

        return rule


never = Never()
