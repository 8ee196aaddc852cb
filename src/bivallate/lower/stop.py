"""Rules for when the attack on an example ends.

A stop makes a fresh rule for each solve, so that no state outlives it.
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
from bivallate.lower.threat import Linf, ThreatModel
from bivallate.parts import part
from bivallate.roles import Role
from bivallate.schedule import Schedule, value_at

Form = Literal["ball", "box"]
FORMS = ("ball", "box")


def fosc(form: Form, threat: ThreatModel, grad: Tensor, x: Tensor, delta: Tensor) -> Tensor:
    """(B,) FOSC, the first-order stationary condition: max over d in C of <grad, d - delta>.

    In the units of the loss. Lower values mean better convergence of the inner maximisation; it is zero at a
    stationary point.

    Args:
        form: "ball": C is the ball alone, eps ||grad||_* - <delta, grad> with the dual norm. "box": C is the
            ball within [0, 1]; its value is never larger, and exact also where pixels are near 0 or 1.
        threat: defines the ball.
        grad: of the attacker's objective at x + delta; grad, x and delta are (B, C, H, W).

    Reference: Wang et al., Dynamic AT, ICML 2019, eq. 4, in the closed form that follows it.
    """
    return threat.ball_support(grad, delta) if form == "ball" else threat.support(grad, x, delta)


def mean_fosc(form: Form, threat: ThreatModel, grad: Tensor, x: Tensor, delta: Tensor) -> Tensor:
    """The mean of `fosc` over the examples, a tensor of one number."""
    launched = grad.device.type != "cpu"  # logs of a processor keep their bits
    if launched and form == "ball" and type(threat) is Linf and threat.eps > 0:
        return threat.mean_ball_support(grad, delta)
    return fosc(form, threat, grad, x, delta).mean()


@dataclass(frozen=True)
class Iterate:
    """The state of an attack before its step k, of all examples of the minibatch.

    Examples that have stopped keep the values with which they stopped.

    Attributes:
        k: number of the step, counted from 0.
        delta: (B, C, H, W) the point.
        grad: (B, C, H, W) gradient of the objective there.
        logits: (B, K) there.
    """

    k: int
    delta: Tensor
    grad: Tensor
    logits: Tensor


StopRule = Callable[[Iterate], Tensor]


class Stop(Role, ABC):
    """When an example stops: (problem) -> a rule for one solve.

    The rule is Iterate -> (B,) bool, True where the example stops before this step.
    """

    @abstractmethod
    def __call__(self, problem: LowerProblem) -> StopRule: ...


@part
class Never(Stop):
    """Every example makes every step."""

    def __call__(self, problem: LowerProblem) -> StopRule:
        return lambda iterate: torch.zeros(
            len(iterate.logits), dtype=torch.bool, device=iterate.logits.device
        )


@part
class Misclassified(Stop):
    """Stops a misclassified example that has been misclassified `tau` times before (FAT, PGD-K-tau).

    All misclassified iterates count, not only consecutive ones: flipping back does not reset the count.

    Attributes:
        tau: further steps after misclassification; a number or a schedule.

    Reference: Zhang et al., FAT, ICML 2020, algorithm 1.
    """

    tau: float | Schedule = 0

    def __post_init__(self) -> None:
        check_range("tau", self.tau, 0)

    def __call__(self, problem: LowerProblem) -> StopRule:
        left = torch.full_like(problem.y, int(value_at(self.tau, problem.clock)))

        def rule(iterate: Iterate) -> Tensor:
            nonlocal left
            wrong, spent = iterate.logits.argmax(1) != problem.y, left == 0
            left = left - (wrong & ~spent).to(left.dtype)
            return wrong & spent

        return rule


@part
class FOSCBelow(Stop):
    """Stops an example once its first-order stationary condition is at most a threshold (Dynamic AT).

    The first step is always made.

    Attributes:
        threshold: c_t in nats, summed over pixels; a number or a schedule.
        form: "ball" or "box", see `fosc`. Values of the box form are smaller, so that a threshold meant for
            the ball form stops much earlier.
        origin: the "ball" form measures delta from the "clean" image, or from the random "start", as in the
            public code, with which the value may be negative.

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

    def __call__(self, problem: LowerProblem) -> StopRule:
        threshold, threat = value_at(self.threshold, problem.clock), problem.threat
        start = torch.zeros_like(problem.x)

        def rule(iterate: Iterate) -> Tensor:
            nonlocal start
            if iterate.k == 0:
                start = iterate.delta if self.origin == "start" else start
                return torch.zeros(len(start), dtype=torch.bool, device=start.device)
            return fosc(self.form, threat, iterate.grad, problem.x, iterate.delta - start) <= threshold

        return rule


never = Never()
