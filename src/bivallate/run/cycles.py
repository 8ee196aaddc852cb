"""A cyclical learning rate, and where the cycles of any learning rate end."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from bivallate.errors import check_range, check_whole
from bivallate.parts import part
from bivallate.types import Clock

__all__ = ["Cycles", "ends_cycle"]


@part
class Cycles:
    """A cyclical learning rate: in each cycle it falls linearly from the peak to `low` times the peak.

    Attributes:
        length: epochs of a cycle.
        low: factor of the peak rate at the end of a cycle.
        start: fraction of the epochs before the first cycle, in which the rate stays at the peak.

    Raises:
        UserError: length is not a positive whole number, or low or start is outside [0, 1].

    Reference: Izmailov et al., Averaging Weights Leads to Wider Optima and Better Generalization, UAI 2018,
    section 3.1, alpha(i).

    Example:
        >>> rate = Cycles(length=2, low=0.1, start=0.5)
        >>> [round(rate(Clock(epoch=e, epochs=8, step=1, steps=2)), 3) for e in range(8)]
        [1.0, 1.0, 1.0, 1.0, 0.55, 0.1, 0.55, 0.1]
    """

    length: int = 5
    low: float = 0.01
    start: float = 0.0

    def __post_init__(self) -> None:
        check_whole("length", self.length)
        check_range("low", self.low, 0, 1)
        check_range("start", self.start, 0, 1)

    def __call__(self, clock: Clock) -> float:
        epoch = clock.epoch - round(self.start * clock.epochs)
        if epoch < 0:
            return 1.0
        t = (epoch % self.length + (clock.step + 1) / clock.steps) / self.length
        return (1 - t) + t * self.low


def ends_cycle(rate: Callable[[Clock], float], clock: Clock) -> bool:
    """Whether a cycle ends with this epoch.

    It does if the rate ends no higher than it ended the epoch before (in the first epoch: than it began), and
    then rises, or training ends.

    Example:
        >>> from bivallate import Triangle
        >>> [e for e in range(8) if ends_cycle(Cycles(length=2), Clock(epoch=e, epochs=8, steps=5))]
        [1, 3, 5, 7]
        >>> [e for e in range(8) if ends_cycle(Triangle(), Clock(epoch=e, epochs=8, steps=5))]
        [7]
    """
    final = clock.steps - 1
    before = replace(clock, epoch=clock.epoch - 1, step=final) if clock.epoch else replace(clock, step=0)
    last_rate = rate(replace(clock, step=final))
    training_ends = clock.epoch + 1 >= clock.epochs
    next_rate = math.inf if training_ends else rate(replace(clock, epoch=clock.epoch + 1, step=0))
    return last_rate <= rate(before) and last_rate < next_rate
