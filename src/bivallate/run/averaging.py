"""Averages of the weights during training: exponential (EMA), per epoch (SWA) or per cycle of the rate.

A part of the configuration says which weights enter the average, and with which share. `Average` is the copy
of the network that holds the averaged weights.
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
    """A rule that says which weights enter an average.

    With the share s, the average becomes (1 - s) average + s weights.
    """

    def step_share(self, taken: int) -> float | None:
        """Share of the weights after an update; None leaves them out. `taken`: how many are in already."""
        ...

    def epoch_share(self, taken: int, clock: Clock, rate: Rate) -> float | None:
        """Share of the weights at the end of an epoch; None leaves them out."""
        ...

    def check(self, clock: Clock, rate: Rate) -> None:
        """Raise UserError if this learning rate gives nothing to average."""
        ...


@part
class EMA:
    """An exponential moving average of the weights; a configuration may give its decay in its place.

    After every update: average <- d average + (1 - d) weights, where d is the smaller of `decay` and
    (1 + n) / (10 + n) after n updates. The lower values at the beginning let the average forget the random
    initialisation. Buffers, such as BatchNorm's statistics, are copied from the network.

    Attributes:
        decay: in [0, 1).

    Raises:
        UserError: the decay is outside [0, 1).
    """

    decay: float = 0.999

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise UserError(f"average is a decay in [0, 1), got {self.decay!r}")

    def step_share(self, taken: int) -> float | None:
        """1 - d, after every update."""
        return 1 - min(self.decay, (1 + taken) / (10 + taken))

    def epoch_share(self, taken: int, clock: Clock, rate: Rate) -> float | None:
        """None: the weights enter after updates."""
        return None

    def check(self, clock: Clock, rate: Rate) -> None:
        """Accept any learning rate."""


@part
class SWA:
    """Stochastic weight averaging: the mean of the weights at the ends of epochs.

    Before `start`, the average is a copy of the latest weights. BatchNorm's statistics are computed anew, by
    one pass over the training data after each epoch that enters. Use a learning rate that stays high or goes
    through cycles after `start`: where the rate falls to zero, the weights hardly differ.

    Attributes:
        start: fraction of training after which epochs enter the mean.

    Raises:
        UserError: start is outside [0, 1].

    Reference: Izmailov et al., UAI 2018, algorithm 1 with a cycle length c of one epoch. The weights that the
    average begins with count as one epoch's.
    """

    start: float = 0.75

    def __post_init__(self) -> None:
        check_range("average.start", self.start, 0, 1)

    def step_share(self, taken: int) -> float | None:
        """None: the weights enter at the ends of epochs."""
        return None

    def epoch_share(self, taken: int, clock: Clock, rate: Rate) -> float | None:
        """An equal share for every epoch from `start` on."""
        return 1 / (taken + 1) if clock.epoch + 1 >= round(self.start * clock.epochs) else None

    def check(self, clock: Clock, rate: Rate) -> None:
        """Accept any learning rate."""


@part
class Cyclic:
    """The mean of the weights at the ends of the learning rate's cycles.

    A cycle ends with the epoch after which the rate rises again, or training ends. Until the first cycle has
    ended, the average is a copy of the latest weights. BatchNorm's statistics are computed anew, by one pass
    over the training data after each cycle that enters.

    Attributes:
        start: fraction of training after which cycles enter the mean.

    Raises:
        UserError: start is outside [0, 1], or fewer than two cycles of the run's rate end.

    Reference: Izmailov et al., UAI 2018, algorithm 1 with a cyclical rate (`rate=Cycles`).
    """

    start: float = 0.0

    def __post_init__(self) -> None:
        check_range("average.start", self.start, 0, 1)

    def step_share(self, taken: int) -> float | None:
        """None: the weights enter at the ends of cycles."""
        return None

    def epoch_share(self, taken: int, clock: Clock, rate: Rate) -> float | None:
        """An equal share for every cycle that ends from `start` on."""
        due = clock.epoch + 1 >= round(self.start * clock.epochs) and ends_cycle(rate, clock)
        return 1 / (taken + 1) if due else None

    def check(self, clock: Clock, rate: Rate) -> None:
        """Raise UserError if fewer than two cycles end."""
        places = (replace(clock, epoch=epoch, step=0) for epoch in range(clock.epochs))
        ends = [place.epoch + 1 for place in places if self.epoch_share(0, place, rate) is not None]
        if len(ends) < 2:
            raise UserError(
                f"average=Cyclic takes the weights where a cycle of the rate ends, which {rate!r} has only "
                f"{'after epoch ' + str(ends[0]) if ends else 'nowhere'} of {clock.epochs}: use rate=Cycles "
                "with two cycles or more, or average=SWA"
            )


def average_setting(given: float | Averaging | None) -> float | Averaging:
    """The form in which a configuration keeps an average: a decay in place of `EMA`, and 0 for none.

    Raises UserError for a number that is no decay.
    """
    if given is None or isinstance(given, EMA):
        return 0.0 if given is None else given.decay
    if isinstance(given, int | float):
        EMA(given)
    return given


class Average:
    """A copy of a model whose parameters are averages of the model's parameters.

    Attributes:
        kind: the rule.
        model: the copy.
        updates: how many times weights have entered the average.
    """

    def __init__(self, model: nn.Module, kind: float | Averaging) -> None:
        self.kind, self.updates = EMA(kind) if isinstance(kind, int | float) else kind, 0
        self.model = copy.deepcopy(model).requires_grad_(False)

    def update(self, model: nn.Module) -> None:
        """Average in the parameters after an update, if the rule says so; copy the buffers."""
        share = self.kind.step_share(self.updates)
        if share is not None:
            self._take(model, share)
            self.updates += 1

    def after_epoch(self, model: nn.Module, clock: Clock, rate: Rate, batches: Callable[[], Any]) -> int:
        """Average in the parameters at the end of an epoch, if the rule says so.

        Until weights have entered, copy the parameters.

        Args:
            batches: gives the training minibatches from which BatchNorm's statistics are computed.

        Returns:
            Forward passes spent on the statistics, in rows of this process.
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
        lists: Any = torch  # its _foreach operations (one kernel for many tensors) are not in the type stubs
        lists._foreach_lerp_(mine, list(model.parameters()), share)
        pairs = list(zip(self.model.buffers(), model.buffers(), strict=True))
        for dtype in {own.dtype for own, _ in pairs}:
            alike = [pair for pair in pairs if pair[0].dtype == dtype]
            lists._foreach_copy_([own for own, _ in alike], [value for _, value in alike])


def average_of(model: nn.Module, given: float | Averaging | None, clock: Clock, rate: Rate) -> Average | None:
    """Make the average that a configuration asks for; a number is the decay of an EMA, and 0 means none.

    Raises UserError if the learning rate gives it nothing to average.
    """
    if not given:
        return None
    average = Average(model, given)
    average.kind.check(clock, rate)
    return average


@torch.no_grad()
def take_statistics(model: nn.Module, batches: Callable[[], Iterable[Batch]]) -> int:
    """Set BatchNorm's running statistics to the mean of the statistics of clean minibatches.

    Frozen layers keep their statistics. Several processes take the mean over all of them. Dropout is off.

    Returns:
        Rows that went through the network; 0 if it has no BatchNorm.
    """
    norms = [
        norm
        for norm in model.modules()
        if isinstance(norm, nn.modules.batchnorm._NormBase)
        and norm.running_mean is not None
        and not getattr(norm, "frozen_norm", False)
    ]
    if not norms:
        return 0
    found, rows = [norm.momentum for norm in norms], 0
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # in torch None means an equal average of all minibatches
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
