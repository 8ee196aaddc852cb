"""Examples that are still under attack: what the model says of them, and when those that are done leave."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple, Self

import torch
from torch import Tensor

from bivallate.lower.objective import clearly_fooled, logit_margin
from bivallate.lower.problem import LowerProblem
from bivallate.types import per_example

__all__ = [
    "ActiveExamples",
    "ModelAnswer",
    "assign_rows",
    "misclassified",
    "model_answer",
    "time_to_look",
    "worth_shrinking",
]

LOOK = 24  # steps


def time_to_look(step: int, like: Tensor) -> bool:
    """Whether it is time to look which examples have left.

    At every step on a processor; on a device, whose host has to wait for the answer, at every 24th.
    """
    return like.device.type == "cpu" or step % LOOK == LOOK - 1


def assign_rows(into: Tensor, rows: Tensor, chosen: Tensor, values: Tensor) -> None:
    """into[rows[chosen]] = values[chosen], on a device without asking how many are chosen."""
    if into.device.type == "cpu":
        into[rows[chosen]] = values[chosen]
    else:
        into[rows] = torch.where(per_example(chosen, values), values, into[rows])


@dataclass
class ActiveExamples:
    """The examples still under attack: every field has a row for each."""

    def select(self, rows: Tensor) -> Self:
        """Some of them."""
        return type(self)(*(getattr(self, f.name)[rows] for f in fields(self)))


class ModelAnswer(NamedTuple):
    """What the model says at one point of each example, averaged over its draws."""

    loss: Tensor  # (B,)
    margin: Tensor  # (B,)
    grad: Tensor  # (B, C, H, W)
    gone: Tensor  # (B,) bool, clearly misclassified; never after several draws


def model_answer(problem: LowerProblem, delta: Tensor, samples: int) -> ModelAnswer:
    """The model's answer at delta. Cost: `samples` forwards and backwards."""
    seen = [_draw(problem, delta) for _ in range(samples)]
    if len(seen) == 1:
        return seen[0]
    loss, margin, grad = (torch.stack(values).mean(0) for values in list(zip(*seen, strict=True))[:3])
    return ModelAnswer(loss, margin, grad, torch.zeros_like(margin, dtype=torch.bool))


def _draw(problem: LowerProblem, delta: Tensor) -> ModelAnswer:
    logits, grad = problem.ascent(delta)
    loss, margin = problem.objective(problem, logits), logit_margin(logits, problem.y)
    return ModelAnswer(loss, margin, grad, clearly_fooled(problem, logits, problem.y))


def misclassified(margin: Tensor, samples: int) -> Tensor:
    """(B,) bool: misclassified, where one look at a point decides that."""
    return margin < 0 if samples == 1 else torch.zeros_like(margin, dtype=torch.bool)


def worth_shrinking(gone: Tensor) -> bool:
    """Whether so many are done that a smaller minibatch is worth its copy."""
    return int(gone.sum()) * 4 >= len(gone)
