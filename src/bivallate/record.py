"""The record of a step for the log, and the check that loss and gradients are finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from bivallate import collective
from bivallate.errors import UserError
from bivallate.gradient_sums import summed
from bivallate.lower.problem import LowerProblem
from bivallate.method import BoundMethod
from bivallate.transfer_to_cpu import OneTransfer
from bivallate.types import Clock, Passes, StepRecord, Terms, probability_margin

# Numbers of this process, added up over all processes with the gradients of a step (`StepRecord.sums`): the
# trainer's say whether to stop and to save, and what the step has cost (`run.epoch_sums.StepSums`).
Summands = Callable[["DeviceRecord"], Sequence[float]]
Finish = Callable[[StepRecord, list[Tensor]], StepRecord]


class NonFinite(UserError):
    """The loss or a gradient is not a finite number.

    Raised before the update, so that the parameters are still good. Where a minibatch has several updates
    (Free-AT), a device is asked for all of them together, before the last one: an earlier update may then
    have been made, and the message says so. The gradients are gone, so that a loop may go on with the next
    minibatch, unless the method keeps a state (weights of examples, stored perturbations, networks) or the
    model has BatchNorm: these have seen the minibatch. Such a loop goes on from an earlier state.
    """


@dataclass(frozen=True)
class DeviceRecord:
    """The record of one step while its numbers are on the device that computed them.

    Nothing is computed there for the record alone: margins and statistics of the weights are computed on the
    processor, after one transfer.

    Attributes:
        loss: this process's part of the minibatch's mean; divided by `share` the mean over its own rows.
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

    @staticmethod
    def of(
        loss: Tensor, weights: Tensor, terms: Terms, problem: LowerProblem, method: BoundMethod
    ) -> DeviceRecord:
        """Collect what the log keeps of one step, without waiting for the device.

        Raises UserError where a part logs a tensor of several numbers.
        """
        share = len(problem.y) / collective.size(problem.batch)
        logged = {**problem.log, **method.weighting.log()}
        for name, value in logged.items():
            if isinstance(value, Tensor) and value.numel() != 1:
                raise UserError(
                    f"a part logs {name!r} as a tensor of shape {tuple(value.shape)}: log one number, such "
                    "as its mean"
                )
        return DeviceRecord(
            loss.detach(), share, problem.batch.index, problem.y, weights.detach(), terms.logits.detach(),
            problem.forward.passes, logged,
        )  # fmt: skip

    @property
    def examples(self) -> int:
        """Rows of this process; known without asking the device, as the passes are."""
        return len(self.index)

    def numbers(self) -> list[Tensor]:
        """The tensors that are read."""
        return [self.loss, self.index, self.y, self.weights, self.logits, *self._logged().values()]

    def _logged(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.logged.items() if isinstance(value, Tensor)}

    def read(self, found: list[Tensor]) -> tuple[StepRecord, list[Tensor]]:
        """The record from `numbers` on the processor, and the tensors that come after them."""
        (loss, index, y, w, logits), rest, logged = found[:5], found[5:], self._logged()
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


class LateRecord(StepRecord):
    """A record that is read from the device when it is asked for a number other than passes and examples."""

    @classmethod
    def of(cls, get: Callable[[], StepRecord], on_device: DeviceRecord) -> LateRecord:
        """The record that `get` reads, with what is known without reading."""
        late = object.__new__(cls)
        vars(late).update(get=get, passes=on_device.passes, examples=on_device.examples)
        return late

    def __getattr__(self, name: str) -> Any:
        if name not in {field.name for field in fields(StepRecord)}:
            raise AttributeError(name)
        vars(self).update(vars(self.get()))
        return vars(self)[name]


def step_record(
    on_device: DeviceRecord,
    clock: Clock,
    method: BoundMethod,
    others: Sequence[Tensor] = (),
    finish: Finish = lambda record, others: record,
) -> StepRecord:
    """Read the record of a step; on a device, those of all replays of a minibatch with the last one's.

    Args:
        others: tensors that are read in the same transfer.
        finish: (record, others) -> the record to return; it may raise an error.

    Returns:
        The record; on a device, before the last replay, a `LateRecord`.
    """
    if clock.replay == 0:
        method.unread = OneTransfer()
    get = method.unread.later([*on_device.numbers(), *others], lambda found: finish(*on_device.read(found)))
    return LateRecord.of(get, on_device) if _is_late(on_device, clock, method) else get()


def _is_late(on_device: DeviceRecord, clock: Clock, method: BoundMethod) -> bool:
    return clock.replay < method.replays - 1 and on_device.loss.device.type != "cpu"


def sum_gradients_check_and_read(
    model: nn.Module,
    on_device: DeviceRecord,
    clock: Clock,
    method: BoundMethod,
    summands: Summands,
) -> StepRecord:
    """Add up the gradients of all processes in place, read the record, and check that all is finite.

    The loss and the numbers that `summands` returns are added up in the same all-reduce; the record holds the
    sums of these numbers. The check reads the norms in the record's own transfer.

    Cost: one all-reduce of all gradients that are not under way already, none on one process; one pass over
    the gradients; one transfer from the device, for all replays of a minibatch together.

    Raises:
        NonFinite: the loss or a gradient is not finite. It comes from this call, except on a device between
            the replays of a minibatch (Free-AT): from there it comes with the last replay's.
    """
    own = tuple(summands(on_device))
    total = loss = on_device.loss
    if collective.is_distributed():
        total = summed(model, torch.cat([loss[None], loss.new_tensor(own)]))

    def finish(record: StepRecord, others: list[Tensor]) -> StepRecord:
        norms, (value, *sums) = others[0], others[1].flatten().tolist()
        late = _is_late(on_device, clock, method)  # then this is read after the step's update
        try:
            _check_finite(float(norms.norm()), value, clock, updated=late)
        except NonFinite:
            model.zero_grad()
            raise
        return replace(record, sums=tuple(sums) if collective.is_distributed() else own)

    return step_record(on_device, clock, method, [_norms(model), total], finish)


def _norms(model: nn.Module) -> Tensor:
    """The norm of each gradient. The norm of these numbers is finite if all gradients are."""
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    return torch.stack(torch._foreach_norm(grads)) if grads else torch.zeros(1)  # pyright: ignore


def _check_finite(norm: float, loss: float, clock: Clock, *, updated: bool) -> None:
    if math.isfinite(norm) and math.isfinite(loss):
        return
    what = f"the loss is {loss:g}" if not math.isfinite(loss) else "a gradient is not finite"
    raise NonFinite(
        f"{what} at epoch {clock.epoch + 1}, minibatch {clock.step + 1}. Likely cause: a learning rate "
        "that is too high, or inputs that are not finite. The parameters were "
        + ("updated with it before it could be seen" if updated else "not updated")
    )


def no_summands(on_device: DeviceRecord) -> Sequence[float]:
    """Return no numbers: the default of a step, which then sums the loss and the gradients alone."""
    return ()


def _margin(logits: Tensor, y: Tensor) -> Tensor:
    """(B,) p_y - max_{k != y} p_k; empty where y are no class numbers, as in a regression."""
    if logits.shape[1] < 2 or y.is_floating_point():
        return logits.new_empty(0)
    return probability_margin(logits, y.clamp(0, logits.shape[1] - 1))
