"""Where an attack begins. Starts need not be feasible: the solver projects them."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from bivallate.lower.problem import LowerProblem
from bivallate.parts import part


class Start(Protocol):
    """(problem) -> delta (B, C, H, W)."""

    def __call__(self, problem: LowerProblem) -> Tensor: ...


@part
class Zero:
    """The clean image."""

    def __call__(self, problem: LowerProblem) -> Tensor:
        return torch.zeros_like(problem.x)


@part
class Uniform:
    """Uniform in the ball of the threat model."""

    def __call__(self, problem: LowerProblem) -> Tensor:
        return problem.threat.random(problem.noise, problem.x)


@part
class Gaussian:
    """scale * N(0, I), the tiny start of the TRADES family."""

    scale: float = 0.001

    def __call__(self, problem: LowerProblem) -> Tensor:
        shape = tuple(problem.x.shape[1:])
        return self.scale * problem.noise.normal("start", shape, problem.x.dtype)


@part
class Corner:
    """A random corner of the ball: eps * sign(U) for Linf, its radial projection for L2 (Fast-BAT, Table
    9)."""

    def __call__(self, problem: LowerProblem) -> Tensor:
        signs = problem.noise.sign("start", tuple(problem.x.shape[1:]), problem.x.dtype)
        return signs * (problem.threat.eps / problem.threat.size(signs)[0])


zero = Zero()
uniform = Uniform()
gaussian = Gaussian()
corner = Corner()
