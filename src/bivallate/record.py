"""What a step leaves behind: numbers for the log, and a stop when they are not finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from bivallate import collective
from bivallate.errors import UserError
from bivallate.lower.problem import LowerProblem
from bivallate.method import BoundMethod
from bivallate.types import Clock, StepRecord, Terms, probability_margin

Tell = Callable[[StepRecord], Sequence[float]]


class NonFinite(UserError):
    """The loss or a gradient is not a finite number; raised before the update, so the parameters are still
    good."""


def healthy(loss: Tensor, model: nn.Module, clock: Clock) -> None:
    """Raises NonFinite if the loss or any gradient is not finite. Cost: one pass over the gradients."""
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    norm = float(nn.utils.get_total_norm(grads)) if grads else 0.0
    value = float(loss)
    if math.isfinite(norm) and math.isfinite(value):
        return
    what = f"the loss is {value:g}" if not math.isfinite(value) else "a gradient is not finite"
    raise NonFinite(
        f"{what} at epoch {clock.epoch + 1}, minibatch {clock.step + 1}. Likely cause: a learning rate "
        "that is too high, or inputs that are not finite. The parameters were not updated"
    )


def silence(record: StepRecord) -> Sequence[float]:
    """Nothing to tell the other processes."""
    return ()


def over_ranks(model: nn.Module, loss: Tensor, record: StepRecord, tell: Tell) -> tuple[Tensor, StepRecord]:
    """Adds the gradients of all processes, in place. With them goes the loss, so that all see the same one,
    and what `tell` says of the step when it is asked, as late as can be: the record has the sums.

    Cost: one all-reduce of one flat bucket; none on one process.
    """
    words = tell(record)
    if not collective.together():
        return loss, replace(record, told=tuple(words))
    along = collective.sum_gradients(model.parameters(), torch.stack([loss, *loss.new_tensor(words)]))
    return along[0], replace(record, told=tuple(along[1:].tolist()))


def summarise(
    loss: Tensor, weights: Tensor, terms: Terms, problem: LowerProblem, method: BoundMethod
) -> StepRecord:
    """The record of one step; its numbers are read in one transfer from the device. On several processes it
    is that of this rank's share of the minibatch, whose loss was divided by the size of the whole."""
    w, y = weights.detach(), problem.y
    loss = loss.detach() * (collective.size(problem.batch) / len(y))
    correct = (terms.logits.detach().argmax(1) == y).sum()
    mean = w.mean()
    effective = mean.square() / w.square().mean().clamp(min=torch.finfo(w.dtype).tiny)
    relative = w / mean.clamp(min=torch.finfo(w.dtype).tiny)
    sums = torch.stack([loss.to(w.dtype), correct.to(w.dtype), mean, effective])
    numbers = torch.cat([sums, relative, _margin(terms.logits.detach(), y).to(w.dtype)]).tolist()
    logged = {**problem.log, **method.weighting.log()}
    return StepRecord(
        loss=numbers[0],
        correct=int(numbers[1]),
        examples=len(y),
        weight_mean=numbers[2],
        effective=numbers[3],
        rows=problem.batch.index.tolist(),
        relative=numbers[4 : 4 + len(y)],
        margin=numbers[4 + len(y) :],
        passes=problem.forward.passes,
        logged=logged,
    )


def _margin(logits: Tensor, y: Tensor) -> Tensor:
    """(B,) p_y - max p_k; empty where y does not number the columns of the logits, as in a regression."""
    if logits.shape[1] < 2 or y.is_floating_point():
        return logits.new_empty(0)
    return probability_margin(logits, y.clamp(0, logits.shape[1] - 1))
