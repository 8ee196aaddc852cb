"""When a single example's attack ends. A stop is a factory of fresh rules, so that no state outlives a
solve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from bivallate.errors import UserError, check_range, unknown
from bivallate.lower.problem import LowerProblem
from bivallate.parts import part
from bivallate.schedule import Schedule, at


@dataclass(frozen=True)
class Iterate:
    """One moment of an attack, seen before its step is taken."""

    k: int
    delta: Tensor  # (B, C, H, W)
    grad: Tensor  # (B, C, H, W)
    logits: Tensor  # (B, K)
    rows: Tensor  # (B,) int64, positions in the minibatch: rules with per-example state index it with these


Rule = Callable[[Iterate], Tensor]


class Stop(Protocol):
    """(problem) -> a rule for one solve: Iterate -> (B,) bool, True where the example stops before this
    step."""

    def __call__(self, problem: LowerProblem) -> Rule: ...


@part
class Never:
    """Every example takes every step."""

    def __call__(self, problem: LowerProblem) -> Rule:
        return lambda iterate: torch.zeros(
            len(iterate.logits), dtype=torch.bool, device=iterate.logits.device
        )


@part
class Misclassified:
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
class FOSCBelow:
    """Stops an example once its first-order stationary condition is at most a threshold (Dynamic AT).

    FOSC is max over d in C(x) of <g, d - delta>: zero at a stationary point of the constrained problem, in
    the units of the loss. The first step is always taken.

    Attributes:
        threshold: c_t in nats, summed over pixels; a number or a schedule.
        form: "box" takes the maximum over the ball within [0, 1]; "ball", eps ||g|| - <delta, g>, over the
            ball alone and is never smaller.
        origin: what the "ball" form measures delta from: the "clean" image, or the random "start", as in the
            public code, where the value may be negative.

    Reference: Wang et al., Dynamic AT, ICML 2019, eq. 8 and algorithm 1.
    Deviation: the paper prints the ball form; the box form is exact where pixels lie near 0 or 1.
    """

    threshold: float | Schedule
    form: Literal["box", "ball"] = "box"
    origin: Literal["clean", "start"] = "clean"

    def __post_init__(self) -> None:
        for value, known in ((self.form, ("box", "ball")), (self.origin, ("clean", "start"))):
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
            if self.form == "box":
                gap = threat.support(iterate.grad, problem.x[iterate.rows], iterate.delta)
            else:
                gap = threat.ball_support(iterate.grad, iterate.delta - start[iterate.rows])
            return gap <= threshold

        return rule


never = Never()
