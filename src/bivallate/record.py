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

Summands = Callable[[StepRecord], Sequence[float]]  # numbers of this process, to be summed over all processes


class NonFinite(UserError):
    """The loss or a gradient is not a finite number.

    Raised before the update, so the parameters are still good.
    """


@dataclass(frozen=True)
class DeviceRecord:
    """The record of one step while its numbers are on the device that computed them.

    Nothing is computed there for the record alone: margins and statistics of the weights are computed on the
    processor, after the one transfer that `read` makes.

    Attributes:
        loss: of the whole minibatch; divided by `share` it is the mean over this process's rows.
        share: fraction of the whole minibatch that this process has.
        index: (B,) rows of the data set.
        y: (B,) labels.
        weights: (B,) of the examples.
        logits: (B, K) at the adversarial points.
        passes: forward and backward passes of the step.
        logged: numbers that parts report, or tensors of one number.
    """

    loss: Tensor
    share: float
    index: Tensor
    y: Tensor
    weights: Tensor
    logits: Tensor
    passes: Passes
    logged: Mapping[str, float | Tensor]

    def read(self, *others: Tensor) -> tuple[StepRecord, list[Tensor]]:
        """Move the record and other tensors to the processor, in one transfer for which it waits."""
        logged = {name: value for name, value in self.logged.items() if isinstance(value, Tensor)}
        own = [self.loss, self.index, self.y, self.weights, self.logits]
        moved = to_cpu([*own, *logged.values(), *others])
        (loss, index, y, w, logits), rest = moved[:5], moved[5:]
        mean, tiny = w.mean(), torch.finfo(w.dtype).tiny
        record = StepRecord(
            loss=float(loss) / self.share,
            correct=int((logits.argmax(1) == y).sum()),
            examples=len(index),
            weight_mean=float(mean),
            effective=float(mean.square() / w.square().mean().clamp(min=tiny)),
            rows=index.tolist(),
            relative=(w / mean.clamp(min=tiny)).tolist(),
            margin=_margin(logits, y).to(w.dtype).tolist(),
            passes=self.passes,
            logged={**self.logged, **{name: float(value) for name, value in zip(logged, rest, strict=False)}},  # pyright: ignore
        )
        return record, rest[len(logged) :]


def reduce_and_check(
    model: nn.Module, loss: Tensor, on_device: DeviceRecord, clock: Clock, summands: Summands
) -> StepRecord:
    """Add up the gradients of all processes in place, check that they are finite, and read the record.

    The loss and the numbers that `summands` returns for the record are added up in the same all-reduce, so
    that all processes have the same sums. The returned record holds them as `sums`.

    Cost: one all-reduce of all gradients that are not under way already, none on one process; one pass over
    the gradients; one transfer from the device, two on several processes.

    Raises:
        NonFinite: the loss or a gradient is not finite.
    """
    if not collective.is_distributed():
        record, (norms, value) = on_device.read(_norms(model), loss)
        _check_finite(float(norms.norm()), float(value), clock)
        return replace(record, sums=tuple(summands(record)))
    record, _ = on_device.read()
    own = torch.stack([loss, *loss.new_tensor(summands(record))])
    norms, sums = to_cpu([_norms(model), summed(model, own)])
    value, *others = sums.tolist()
    _check_finite(float(norms.norm()), value, clock)
    return replace(record, sums=tuple(others))


def _norms(model: nn.Module) -> Tensor:
    """The norm of each gradient. The norm of these numbers is finite if all gradients are."""
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    return torch.stack(torch._foreach_norm(grads)) if grads else torch.zeros(1)  # pyright: ignore


def _check_finite(norm: float, loss: float, clock: Clock) -> None:
    if math.isfinite(norm) and math.isfinite(loss):
        return
    what = f"the loss is {loss:g}" if not math.isfinite(loss) else "a gradient is not finite"
    raise NonFinite(
        f"{what} at epoch {clock.epoch + 1}, minibatch {clock.step + 1}. Likely cause: a learning rate "
        "that is too high, or inputs that are not finite. The parameters were not updated"
    )


def no_summands(record: StepRecord) -> Sequence[float]:
    """Return no numbers: the default of a step, which then sums the loss and the gradients alone."""
    return ()


def summarise(
    loss: Tensor, weights: Tensor, terms: Terms, problem: LowerProblem, method: BoundMethod
) -> DeviceRecord:
    """Collect what the log keeps of one step, without waiting for the device.

    On several processes these are the numbers of this process's rows. Its loss was divided by the size of the
    whole minibatch; the record scales it to the mean over its own rows.
    """
    share = len(problem.y) / collective.size(problem.batch)
    logged = {**problem.log, **method.weighting.log()}
    return DeviceRecord(
        loss.detach(), share, problem.batch.index, problem.y, weights.detach(), terms.logits.detach(),
        problem.forward.passes, logged,
    )  # fmt: skip


def _margin(logits: Tensor, y: Tensor) -> Tensor:
    """(B,) p_y - max_{k != y} p_k; empty where y are no class numbers, as in a regression."""
    if logits.shape[1] < 2 or y.is_floating_point():
        return logits.new_empty(0)
    return probability_margin(logits, y.clamp(0, logits.shape[1] - 1))
