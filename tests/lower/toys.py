"""Lower-level problems whose solutions are known."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from bivallate.lower.problem import LowerProblem, Objective
from bivallate.types import Terms
from bivallate.upper.loss import Loss


class FirstLogit(Objective):
    """The attacker maximises the first logit."""

    def __call__(self, problem: LowerProblem, logits: Tensor) -> Tensor:
        return logits[:, 0]


class SquaredLogits(Loss):
    """A loss that is not the attacker's objective: half the squared logits."""

    reuses_forward: ClassVar[bool] = True

    def __call__(self, problem: LowerProblem, x_adv: Tensor) -> Terms:
        logits = problem.logits_at_solution(x_adv)
        robust = logits.square().sum(1) / 2
        return Terms(robust, torch.zeros_like(robust), logits)


class Hill(nn.Module):
    """Logits (h, s): h strictly concave in x with its top at a place that depends on theta, s linear.

    h = -1/2 ||W x - b||^2 - 1/4 ||W x - b||_4^4 - 1/2 ||x - c||^2; all of it in float64.
    """

    def __init__(self, pixels: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator, dtype=torch.float64))

        self.W, self.b = random(pixels, pixels), random(pixels)
        self.c, self.s = random(pixels), random(pixels)
        with torch.no_grad():
            self.W.mul_(0.5 / pixels**0.5)
            self.b.mul_(0.1)
            self.c.mul_(0.3).add_(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        residual = x @ self.W.T - self.b
        h = -residual.square().sum(1) / 2 - residual.pow(4).sum(1) / 4 - (x - self.c).square().sum(1) / 2
        return torch.stack([h, x @ self.s], 1)
