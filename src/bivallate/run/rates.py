"""Learning-rate schedules: factors of an optimiser's peak rate over the course of training."""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import Protocol

from bivallate.errors import UserError, check_range
from bivallate.parts import part
from bivallate.types import Clock


class Rate(Protocol):
    """A learning-rate schedule: clock -> factor of the peak rate, computed before every minibatch."""

    def __call__(self, clock: Clock) -> float: ...


@part
class Flat:
    """A constant learning rate: the peak."""

    def __call__(self, clock: Clock) -> float:
        return 1.0


@part
class Triangle:
    """A learning rate that rises linearly from 0 to the peak and falls linearly to 0.

    Fast-AT, Fast-BAT and DONE use this schedule.

    Attributes:
        peak: fraction of training at which the rate is highest, in [0, 1].
        cycle_momentum: also lower SGD's momentum by 0.1 at the peak, as PyTorch's CyclicLR does by default in
            the papers' public code; the papers state a constant 0.9. Other optimisers ignore it.

    Raises:
        UserError: the peak is outside [0, 1].
    """

    peak: float = 0.5
    cycle_momentum: bool = False

    def __post_init__(self) -> None:
        check_range("peak, a fraction of training,", self.peak, 0, 1)

    def __call__(self, clock: Clock) -> float:
        t = clock.progress
        return t / self.peak if t < self.peak else (1 - t) / (1 - self.peak)

    def momentum(self, clock: Clock, base: float) -> float:
        """The momentum at this clock, for an optimiser whose momentum is `base`."""
        return base - 0.1 * self(clock) if self.cycle_momentum else base


@part
class MultiStep:
    """The peak rate, multiplied by `factor` at each milestone.

    Every run begins at the peak rate, and a run of two epochs or more reaches all milestones below 1 by its
    last epoch, however short it is. A run of one epoch keeps the peak rate.

    Attributes:
        at: milestones, as rising fractions of the epochs.
        factors: factors of the peak rate after each milestone; empty: powers of `factor`.

    Raises:
        UserError: the milestones do not rise from 0 to 1, a factor is negative, or `factors` are neither none
            nor as many as milestones.
    """

    at: tuple[float, ...] = (0.5, 0.75)
    factor: float = 0.1
    factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not all(0 <= place <= 1 for place in self.at) or list(self.at) != sorted(self.at):
            raise UserError(
                f"milestones are fractions of training, rising within [0, 1], got {self.at}: epochs 50 and "
                "75 of 100 are 0.5 and 0.75"
            )
        for factor in (self.factor, *self.factors):
            check_range("a factor of the rate", factor, 0)
        if self.factors and len(self.factors) != len(self.at):
            raise UserError(
                f"MultiStep needs as many factors as milestones, got {self.factors} for {self.at}: give one "
                f"for each, or none for powers of {self.factor:g} (--set rate.factors= first, to change both)"
            )

    def __call__(self, clock: Clock) -> float:
        reached = bisect_right([epoch_of(fraction, clock.epochs) for fraction in self.at], clock.epoch)
        return [1.0, *self.factors][reached] if self.factors else self.factor**reached


def epoch_of(fraction: float, epochs: int) -> int:
    """The epoch of a milestone, from 0; a fraction in (0, 1) gives neither the first epoch nor the end."""
    place = round(fraction * epochs)
    return max(1, min(place, epochs - 1)) if 0 < fraction < 1 else place


@part
class Pieces:
    """A piecewise linear learning rate through the points (at[k], values[k]).

    Attributes:
        at: fractions of training, rising from 0 to 1. values: factors of the peak rate at these points.

    Raises:
        UserError: the places do not rise from 0 to 1, or the values are not as many, or negative.

    Example:
        >>> Pieces(at=(0.0, 0.5, 1.0), values=(0.0, 1.0, 0.1))(Clock(epoch=3, epochs=4))
        0.55
    """

    at: tuple[float, ...] = (0.0, 1.0)
    values: tuple[float, ...] = (1.0, 0.0)

    def __post_init__(self) -> None:
        rising = (
            list(self.at) == sorted(self.at) and len(self.at) > 1 and self.at[0] == 0 and self.at[-1] == 1
        )
        if not rising or len(self.at) != len(self.values):
            raise UserError(
                f"Pieces need as many values as places, and places from 0 to 1, got {self.at}, {self.values}"
            )
        for value in self.values:
            check_range("a value of Pieces, a factor of the rate,", value, 0)

    def __call__(self, clock: Clock) -> float:
        k = min(bisect_right(self.at, clock.progress), len(self.at) - 1)
        share = (clock.progress - self.at[k - 1]) / (self.at[k] - self.at[k - 1])
        return self.values[k - 1] + share * (self.values[k] - self.values[k - 1])


@part
class Cosine:
    """A learning rate that falls along half a cosine from the peak, after a linear warm-up.

    Attributes:
        floor: factor of the peak rate at the end. warm_up: fraction of training for the rise from 0.

    Raises:
        UserError: one of them is outside [0, 1].
    """

    floor: float = 0.0
    warm_up: float = 0.0

    def __post_init__(self) -> None:
        check_range("floor, a factor of the rate,", self.floor, 0, 1)
        check_range("warm_up, a fraction of training,", self.warm_up, 0, 1)

    def __call__(self, clock: Clock) -> float:
        t = clock.progress
        if t < self.warm_up:
            return t / self.warm_up
        t = (t - self.warm_up) / (1 - self.warm_up)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * t))
