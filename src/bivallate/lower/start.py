"""The starting points of attacks. They need not be feasible: the solver projects them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from bivallate.errors import check_range
from bivallate.lower.objective import kl
from bivallate.lower.problem import LowerProblem, Objective
from bivallate.parts import part
from bivallate.roles import Role


class Start(Role, ABC):
    """(problem) -> delta (B, C, H, W)."""

    def takes_two_labels(self) -> bool:
        """True: it reads no label."""
        return True

    @abstractmethod
    def __call__(self, problem: LowerProblem) -> Tensor: ...


@dataclass(frozen=True)
class Given(Start):
    """A given perturbation, (B, C, H, W)."""

    delta: Tensor

    def __call__(self, problem: LowerProblem) -> Tensor:
        return self.delta


@part
class Zero(Start):
    """The clean image."""

    def __call__(self, problem: LowerProblem) -> Tensor:
        return torch.zeros_like(problem.x)


@part
class Uniform(Start):
    """Uniform in the ball of the threat model.

    Attributes:
        radius: of that ball, in units of eps (N-FGSM's k).
    """

    radius: float = 1.0

    def __post_init__(self) -> None:
        check_range("radius", self.radius, 0)

    def __call__(self, problem: LowerProblem) -> Tensor:
        drawn = problem.threat.random(problem.noise, problem.x)
        return drawn if self.radius == 1 else self.radius * drawn


@part
class Gaussian(Start):
    """scale * N(0, I), the tiny start of the TRADES family."""

    scale: float = 0.001

    def __call__(self, problem: LowerProblem) -> Tensor:
        shape = tuple(problem.x.shape[1:])
        return self.scale * problem.noise.normal("start", shape, problem.x.dtype)


@part
class Corner(Start):
    """A random corner of the ball (Fast-BAT, Table 9).

    eps * sign(U) for Linf, its radial projection for L2 and L1.
    """

    def __call__(self, problem: LowerProblem) -> Tensor:
        signs = problem.noise.sign("start", tuple(problem.x.shape[1:]), problem.x.dtype)
        return signs * (problem.threat.eps / problem.threat.size(signs)[0])


@part
class Signs(Start):
    """A random corner of a smaller or larger ball (the Bernoulli noise of GAT and NuAT).

    Attributes:
        radius: of that ball, in units of eps.
    """

    radius: float = 0.5

    def __post_init__(self) -> None:
        check_range("radius", self.radius, 0)

    def __call__(self, problem: LowerProblem) -> Tensor:
        return self.radius * corner(problem)


@part
class Towards(Objective):
    """-KL(softmax(q + psi) || softmax(logits)), which is higher nearer to the perturbed logits q + psi.

    q are the logits themselves, held fixed, so that it is defined at delta = 0 only. psi is uniform in
    [-gamma, gamma] for each class.
    """

    gamma: float

    def __call__(self, problem: LowerProblem, logits: Tensor) -> Tensor:
        u = problem.noise.uniform("psi", tuple(logits.shape[1:]), logits.dtype)
        return -kl(logits.detach() + self.gamma * (2 * u - 1), logits)


@part
class BackwardSmoothing(Start):
    """One step from the clean image that moves its logits towards randomly perturbed ones.

    Attributes:
        gamma: size of the perturbation of the logits; with 0 the gradient is zero except for rounding.
        step_size: in units of eps.

    Cost: one forward, one backward; a KL objective reuses the clean logits of that pass.

    Reference: Chen et al., Backward Smoothing, AAAI 2022, section 4.
    """

    gamma: float = 1.0
    step_size: float = 1.0

    def __post_init__(self) -> None:
        check_range("gamma", self.gamma, 0)
        check_range("step_size", self.step_size, 0)

    def stepped(self, length: float, number: float = 1.0) -> Self:
        """Scale its one step by `length`."""
        return replace(self, step_size=length * self.step_size)

    def __call__(self, problem: LowerProblem) -> Tensor:
        grad = problem.gradient_at_zero(Towards(self.gamma))
        return self.step_size * problem.threat.eps * problem.threat.steepest(grad)


zero = Zero()
uniform = Uniform()
gaussian = Gaussian()
corner = Corner()
