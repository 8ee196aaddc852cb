"""When a single example's attack ends. A stop is a factory of fresh rules, so that no state outlives a
solve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from bivallate.lower.problem import LowerProblem
from bivallate.parts import part


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


never = Never()
