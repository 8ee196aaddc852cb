"""The record of a step for the log, and the check that loss and gradients are finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from bivallate import collective
from bivallate.errors import UserError
from bivallate.gradient_sums import summed
from bivallate.lower.problem import LowerProblem
from bivallate.method import BoundMethod
from bivallate.transfer_to_cpu import to_cpu
from bivallate.types import Clock, Passes, StepRecord, Terms, probability_margin

Tell = Callable[[StepRecord], Sequence[float]]


class NonFinite(UserError):
    """The loss or a gradient is not a finite number.

    Raised before the update, so the parameters are still good.
    """


@dataclass(frozen=True)
class DeviceRecord:
    """The record of one step while its numbers are on the device that computed them.

    Attributes:
        sums: (4,) loss, correct, mean weight, effective sample size. rows: of every example. relative,
            margin: as in `StepRecord`. logged: numbers, or tensors of one.
    """

    sums: Tensor
    rows: Tensor
    relative: Tensor
    margin: Tensor
    passes: Passes
    logged: Mapping[str, float | Tensor]

    def read(self, *besides: Tensor) -> tuple[StepRecord, list[float]]:
        """The record, and the values of tensors of one number, in one transfer."""
        logged = {name: value for name, value in self.logged.items() if isinstance(value, Tensor)}
        found = to_cpu([self.sums, self.rows, self.relative, self.margin, *logged.values(), *besides])
        sums, rows, relative, margin = (value.tolist() for value in found[:4])
        (loss, correct, mean, effective), rest = sums, [float(value) for value in found[4:]]
        record = StepRecord(
            loss=loss,
            correct=int(correct),
            examples=len(rows),
            weight_mean=mean,
            effective=effective,
            rows=rows,
            relative=relative,
            margin=margin,
            passes=self.passes,
            logged={**self.logged, **dict(zip(logged, rest, strict=False))},  # pyright: ignore
        )
        return record, rest[len(logged) :]


def reduce_and_check(
    model: nn.Module, loss: Tensor, unread: DeviceRecord, clock: Clock, tell: Tell
) -> StepRecord:
    """Add up the gradients of all processes in place, check that they are finite, and read the record.

    The loss and the numbers of `tell` are summed in the same all-reduce, so that all processes see the same
    ones; the record holds the sums as `told`. `tell` is called as late as possible, just before it.

    Cost: one all-reduce of all gradients that are not under way already, none on one process; one pass over
    the gradients; one transfer from the device, two on several processes.

    Raises:
        NonFinite: the loss or a gradient is not finite.
    """
    if not collective.is_distributed():
        record, seen = unread.read(_norm(model), loss)
        _check_finite(seen[0], seen[1], clock)
        return replace(record, told=tuple(tell(record)))
    record, _ = unread.read()
    told = loss.new_tensor(tell(record))
    along = summed(model, torch.stack([loss, *told]))
    norm, value, *words = to_cpu([torch.cat([_norm(model).to(along)[None], along])])[0].tolist()
    _check_finite(norm, value, clock)
    return replace(record, told=tuple(words))


def _norm(model: nn.Module) -> Tensor:
    """The norm of all gradients together."""
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    return nn.utils.get_total_norm(grads) if grads else torch.zeros(())


def _check_finite(norm: float, loss: float, clock: Clock) -> None:
    if math.isfinite(norm) and math.isfinite(loss):
        return
    what = f"the loss is {loss:g}" if not math.isfinite(loss) else "a gradient is not finite"
    raise NonFinite(
        f"{what} at epoch {clock.epoch + 1}, minibatch {clock.step + 1}. Likely cause: a learning rate "
        "that is too high, or inputs that are not finite. The parameters were not updated"
    )


def tell_nothing(record: StepRecord) -> Sequence[float]:
    """The `tell` of a step that has nothing to sum over the processes."""
    return ()


def summarise(
    loss: Tensor, weights: Tensor, terms: Terms, problem: LowerProblem, method: BoundMethod
) -> DeviceRecord:
    """Summarise one step for the log.

    On several processes the numbers are those of this rank's share of the minibatch: the loss, which was
    divided by the size of the whole minibatch, is scaled to the mean over the share.
    """
    w, y = weights.detach(), problem.y
    loss = loss.detach() * (collective.size(problem.batch) / len(y))
    correct = (terms.logits.detach().argmax(1) == y).sum(dtype=w.dtype)
    mean = w.mean()
    effective = mean.square() / w.square().mean().clamp(min=torch.finfo(w.dtype).tiny)
    relative = w / mean.clamp(min=torch.finfo(w.dtype).tiny)
    sums = torch.stack([loss.to(w.dtype), correct, mean, effective])
    margin = _margin(terms.logits.detach(), y).to(w.dtype)
    logged = {**problem.log, **method.weighting.log()}
    return DeviceRecord(sums, problem.batch.index, relative, margin, problem.forward.passes, logged)


def _margin(logits: Tensor, y: Tensor) -> Tensor:
    """(B,) p_y - max_{k != y} p_k; empty where y are no class numbers, as in a regression."""
    if logits.shape[1] < 2 or y.is_floating_point():
        return logits.new_empty(0)
    return probability_margin(logits, y.clamp(0, logits.shape[1] - 1))
