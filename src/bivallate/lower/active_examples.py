"""The examples that are still under attack: the model's answers, and when examples leave the batch.

For the attacks of evaluations (APGD, SparseAPGD, FAB, Square): an example that is clearly misclassified is
decided, and leaves with its state at the next look if enough others leave too. PGD in training has no state
but delta, and its results are for the whole minibatch: there `compaction` skips the passes alone.
"""

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

LOOK = 24  # steps between two looks on a device


def time_to_look(step: int, like: Tensor) -> bool:
    """Whether to look at this step which examples are done.

    On a CPU that is every step. On a device the host has to wait for the answer, so it is every 24th.
    """
    return like.device.type == "cpu" or step % LOOK == LOOK - 1


def assign_rows(into: Tensor, rows: Tensor, chosen: Tensor, values: Tensor) -> None:
    """into[rows[chosen]] = values[chosen]; on a device without waiting for the number of chosen rows."""
    if into.device.type == "cpu":
        into[rows[chosen]] = values[chosen]
    else:
        into[rows] = torch.where(per_example(chosen, values), values, into[rows])


@dataclass
class ActiveExamples:
    """The examples still under attack: every field has a row for each."""

    def select(self, rows: Tensor) -> Self:
        """The examples of some rows."""
        return type(self)(*(getattr(self, f.name)[rows] for f in fields(self)))


class ModelAnswer(NamedTuple):
    """The model's answer at one point of each example, averaged over its draws."""

    loss: Tensor  # (B,)
    margin: Tensor  # (B,)
    grad: Tensor  # (B, C, H, W)
    decided: Tensor  # (B,) bool, clearly misclassified; never after several draws


def model_answer(problem: LowerProblem, delta: Tensor, samples: int) -> ModelAnswer:
    """The model's answer at delta. Cost: `samples` forwards and backwards."""
    seen = [_draw(problem, delta) for _ in range(samples)]
    if len(seen) == 1:
        return seen[0]
    loss, margin, grad = (torch.stack(values).mean(0) for values in list(zip(*seen, strict=True))[:3])
    return ModelAnswer(loss, margin, grad, torch.zeros_like(margin, dtype=torch.bool))


def _draw(problem: LowerProblem, delta: Tensor) -> ModelAnswer:
    logits, grad = problem.logits_and_gradient(delta)
    loss, margin = problem.objective(problem, logits), logit_margin(logits, problem.y)
    return ModelAnswer(loss, margin, grad, clearly_fooled(problem, logits, problem.y))


def misclassified(margin: Tensor, samples: int) -> Tensor:
    """(B,) bool: misclassified; never after several draws, of which one alone decides nothing."""
    return margin < 0 if samples == 1 else torch.zeros_like(margin, dtype=torch.bool)


def worth_shrinking(decided: Tensor, one_in: int = 4) -> bool:
    """Whether enough examples are done to make a smaller minibatch worth its copy: one in so many."""
    return int(decided.sum()) * one_in >= len(decided)
