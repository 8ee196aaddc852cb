"""The direction of a step of gradient ascent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from bivallate.lower.problem import LowerProblem
from bivallate.parts import part

__all__ = ["Adam", "Direction", "Raw", "Steepest", "Step", "adam", "raw", "steepest"]

Step = Callable[[Tensor], Tensor]


class Direction(Protocol):
    """(problem) -> a rule for one solve: gradient (B, C, H, W) -> step direction of the same shape."""

    def __call__(self, problem: LowerProblem) -> Step: ...


@part
class Steepest:
    """Steepest ascent: sign(g) for Linf, g / ||g|| for L2, signs of the largest coordinates for L1."""

    def __call__(self, problem: LowerProblem) -> Step:
        return problem.threat.steepest


@part
class Raw:
    """The gradient itself, of the summed objective, so that steps do not depend on the minibatch's size."""

    def __call__(self, problem: LowerProblem) -> Step:
        return lambda grad: grad


@part
class Adam:
    """Adam's direction with fresh moments at every solve (DONE-Adam).

    The first direction is sign(g) wherever |g| is well above `epsilon`.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def __call__(self, problem: LowerProblem) -> Step:
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
