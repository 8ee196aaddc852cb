"""Averages of the weights along training: exponential, equal from an epoch on, or of the ends of cycles.

Which weights are taken in, and with which share, is a part of the configuration; `Average` is the copy of the
network that holds them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bivallate import collective
from bivallate.errors import UserError, check_range
from bivallate.lower.modes import in_mode
from bivallate.parts import part
from bivallate.run.cycles import ends_cycle
from bivallate.types import Batch, Clock

__all__ = ["EMA", "SWA", "Average", "Averaging", "Cyclic", "average_of", "average_setting"]

Rate = Callable[[Clock], float]


class Averaging(Protocol):
    """Which weights an average takes in."""

    def step_share(self, taken: int) -> float | None:
        """Share of the weights after an update, of which `taken` are in already; None takes none."""
        ...

    def epoch_share(self, taken: int, clock: Clock, rate: Rate) -> float | None:
        """The same of the weights at the end of an epoch."""
        ...

    def check(self, clock: Clock, rate: Rate) -> None:
        """Raise UserError for a rate that gives nothing to average."""
        ...


@part
class EMA:
    """An exponential moving average of the weights; in a configuration its decay stands for it.

    average <- decay average + (1 - decay) parameter after every update, with the decay reduced to (1 + n) /
    (10 + n) in the first updates n so that the random initialisation is forgotten. Its BatchNorm statistics
    are copies of the network's.
    """

    decay: float = 0.999

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise UserError(f"average is a decay in [0, 1), got {self.decay!r}")

    def step_share(self, taken: int) -> float | None:
        """1 - decay."""
        return 1 - min(self.decay, (1 + taken) / (10 + taken))

    def epoch_share(self, taken: int, clock: Clock, rate: Rate) -> float | None:
        """None: every update counts, and no epoch."""
        return None

    def check(self, clock: Clock, rate: Rate) -> None:
        """Any rate will do."""


@part
class SWA:
    """The mean of the weights at the ends of the epochs from the fraction `start` of training on (SWA).

    Until then it is the weights at the end of the last epoch. Its BatchNorm statistics are taken anew.

    Meant for a rate that stays high or goes through cycles in that part of training: where it falls to zero,
    the weights hardly differ.

    Reference: Izmailov et al., UAI 2018, algorithm 1 with c of an epoch; the weights that the average begins
    from count as one.
    """

    start: float = 0.75

    def __post_init__(self) -> None:
        check_range("average.start", self.start, 0, 1)

    def step_share(self, taken: int) -> float | None:
        """None: only ends of epochs count."""
        return None

    def epoch_share(self, taken: int, clock: Clock, rate: Rate) -> float | None:
        """An equal share."""
        return 1 / (taken + 1) if clock.epoch + 1 >= round(self.start * clock.epochs) else None

    def check(self, clock: Clock, rate: Rate) -> None:
        """Any rate will do."""


@part
class Cyclic:
    """The mean of the weights at the ends of the rate's cycles, from the fraction `start` of training on.

    A cycle ends with the epoch in which the rate has fallen to where it rises again, or training ends. Until
    the first end it is the weights at the end of the last epoch. Its BatchNorm statistics are taken anew.

    Reference: Izmailov et al., UAI 2018, algorithm 1 with a cyclical rate (`rate=Cycles`).
    """

    start: float = 0.0

    def __post_init__(self) -> None:
        check_range("average.start", self.start, 0, 1)

    def step_share(self, taken: int) -> float | None:
        """None: only ends of cycles count."""
        return None

    def epoch_share(self, taken: int, clock: Clock, rate: Rate) -> float | None:
        """An equal share at the end of a cycle."""
        due = clock.epoch + 1 >= round(self.start * clock.epochs) and ends_cycle(rate, clock)
        return 1 / (taken + 1) if due else None

    def check(self, clock: Clock, rate: Rate) -> None:
        """Raise UserError where fewer than two cycles end."""
        places = (replace(clock, epoch=epoch, step=0) for epoch in range(clock.epochs))
        ends = [place.epoch + 1 for place in places if self.epoch_share(0, place, rate) is not None]
        if len(ends) < 2:
            raise UserError(
                f"average=Cyclic takes the weights where a cycle of the rate ends, which {rate!r} has only "
                f"{'after epoch ' + str(ends[0]) if ends else 'nowhere'} of {clock.epochs}: use rate=Cycles "
                "with two cycles or more, or average=SWA"
            )


def average_setting(given: Any) -> float | Averaging:
    """How a configuration writes an average: an exponential one as its decay, and none as 0.

    Raises UserError for what is no average.
    """
    if given is None or isinstance(given, EMA):
        return 0.0 if given is None else given.decay
    if isinstance(given, int | float):
        EMA(given)
    elif isinstance(given, type | str) or not hasattr(given, "epoch_share"):
        raise UserError(f"average is a decay in [0, 1), SWA, Cyclic or none, got {given!r}")
    return given


class Average:
    """A copy of a model whose parameters are averages of the model's.

    Attributes:
        model: the copy. updates: how many weights it has taken in.
    """

    def __init__(self, model: nn.Module, kind: float | Averaging) -> None:
        self.kind, self.updates = EMA(kind) if isinstance(kind, int | float) else kind, 0
        self.model = copy.deepcopy(model).requires_grad_(False)

    def update(self, model: nn.Module) -> None:
        """Take in the parameters after an update, where those count; buffers are copied."""
        share = self.kind.step_share(self.updates)
        if share is not None:
            self._take(model, share)
            self.updates += 1

    def after_epoch(self, model: nn.Module, clock: Clock, rate: Rate, batches: Callable[[], Any]) -> int:
        """Take in the parameters at the end of an epoch, where those count; until some do, they are copied.

        Args:
            batches: the training minibatches that BatchNorm's statistics are taken from.

        Returns:
            Forward passes that the statistics took, in rows of this process.
        """
        share = self.kind.epoch_share(self.updates, clock, rate)
        if share is not None:
            self._take(model, share)
            self.updates += 1
            return take_statistics(self.model, batches) if self.updates > 1 else 0
        if not self.updates:
            self._take(model, 1.0)
        return 0

    @torch.no_grad()
    def _take(self, model: nn.Module, share: float) -> None:
        mine: list[Tensor] = list(self.model.parameters())
        lists: Any = torch  # its operations on lists of tensors, one kernel for many, are not among the stubs
        lists._foreach_lerp_(mine, list(model.parameters()), share)
        pairs = list(zip(self.model.buffers(), model.buffers(), strict=True))
        for dtype in {own.dtype for own, _ in pairs}:
            alike = [pair for pair in pairs if pair[0].dtype == dtype]
            lists._foreach_copy_([own for own, _ in alike], [value for _, value in alike])


def average_of(model: nn.Module, given: float | Averaging | None, clock: Clock, rate: Rate) -> Average | None:
    """The average that a configuration asks for: a number is the decay of an exponential one, and 0 none.

    Raises UserError for a rate that gives it nothing.
    """
    if not given:
        return None
    average = Average(model, given)
    average.kind.check(clock, rate)
    return average


@torch.no_grad()
def take_statistics(model: nn.Module, batches: Callable[[], Iterable[Batch]]) -> int:
    """Make BatchNorm's running statistics the mean of those of the minibatches, which nobody attacks.

    Norms of frozen layers keep theirs. Several processes take the mean over all. Dropout is off.

    Returns:
        Rows that went through the network; 0 where it has no norm.
    """
    norms = [
        norm
        for norm in model.modules()
        if isinstance(norm, nn.modules.batchnorm._NormBase)
        and norm.running_mean is not None
        and not getattr(norm, "held", False)
    ]
    if not norms:
        return 0
    found, rows = [norm.momentum for norm in norms], 0
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # torch's word for a mean of all
        with in_mode(model, training=True, track=True, dropout=False):
            for batch in batches():
                model(batch.x)
                rows += len(batch.y)
    finally:
        for norm, momentum in zip(norms, found, strict=True):
            norm.momentum = momentum
    own = [value for norm in norms for value in (norm.running_mean, norm.running_var) if value is not None]
    for value, added in zip(own, collective.totals(own), strict=True):
        value.copy_(added / collective.world_size())
    return rows
