"""The direction of a step of gradient ascent: the step rule of solvers with a field `direction`.

Chosen by the solver's field: `PGD(direction=Adam())`, or `--set solver.direction=Adam`. APGD, FAB, DeepFool
and the single-step solvers with state choose their steps themselves; a rule that also needs the objective's
values is such a solver. An evaluation takes a direction in a stage,
`bv.evaluate(..., attack=Search("pgd-adam", ScaledPGD(direction=Adam())))`; a name for it on the command line
is a `family` in evaluation/named_attacks.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from bivallate.errors import check_decays, check_range
from bivallate.lower.problem import LowerProblem
from bivallate.parts import part
from bivallate.roles import Role

__all__ = ["Adam", "Direction", "DirectionRule", "Raw", "Steepest", "adam", "raw", "steepest"]

DirectionRule = Callable[[Tensor], Tensor]  # gradient (B, C, H, W) -> step direction of the same shape


class Direction(Role, ABC):
    """(problem) -> a rule for one attack: gradient (B, C, H, W) -> step direction of the same shape.

    The rule may keep a memory for the steps of that attack, and count them. A solver's `step_size` is a
    number, no schedule: for steps of changing size, the rule scales its direction. `Role` says when it may
    declare itself `recordable`. A part in a file of its own is found as `part` says.
    """

    def takes_two_labels(self) -> bool:
        """True: it reads no label."""
        return True

    @abstractmethod
    def __call__(self, problem: LowerProblem) -> DirectionRule: ...


@part
class Steepest(Direction):
    """Steepest ascent: sign(g) for Linf, g / ||g|| for L2, signs of the largest coordinates for L1."""

    recordable: ClassVar[bool] = True

    def __call__(self, problem: LowerProblem) -> DirectionRule:
        return problem.threat.steepest


@part
class Raw(Direction):
    """The gradient itself, of the summed objective, so that steps do not depend on the minibatch's size."""

    recordable: ClassVar[bool] = True

    def __call__(self, problem: LowerProblem) -> DirectionRule:
        return lambda grad: grad


@part
class Adam(Direction):
    """Adam's direction with fresh moments at every solve (DONE-Adam).

    The first direction is sign(g) wherever |g| is well above `epsilon`.

    Raises:
        UserError: a beta is outside [0, 1), or epsilon is negative.
    """

    recordable: ClassVar[bool] = True
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        check_decays(beta1=self.beta1, beta2=self.beta2)
        check_range("epsilon", self.epsilon, 0)

    def __call__(self, problem: LowerProblem) -> DirectionRule:
        m, v = torch.zeros_like(problem.x), torch.zeros_like(problem.x)
        k = 0

        def direction(grad: Tensor) -> Tensor:
            nonlocal k
            k += 1
            m.mul_(self.beta1).add_(grad, alpha=1 - self.beta1)
            v.mul_(self.beta2).addcmul_(grad, grad, value=1 - self.beta2)
            root = (v / (1 - self.beta2**k)).sqrt_().add_(self.epsilon)
            return (m / (1 - self.beta1**k)).div_(root)

        return direction


steepest = Steepest()
raw = Raw()
adam = Adam()
