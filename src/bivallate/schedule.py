"""Values that change during a run: every schedule is a frozen function Clock -> float."""

from __future__ import annotations

from typing import Protocol

from bivallate.errors import UserError, check_range
from bivallate.from_text import parse_number
from bivallate.parts import part
from bivallate.types import Clock


class Schedule(Protocol):
    """Clock -> float."""

    def __call__(self, clock: Clock) -> float: ...


class NumberFromText:
    """A schedule; text, such as `weighting.temperature=0.5`, may give its field a plain number instead."""

    @staticmethod
    def from_text(text: str, where: str) -> float:
        """Read the number. Raises UserError for text that is none."""
        return parse_number(text, where)


@part
class Constant(NumberFromText):
    """The same value always."""

    value: float

    def __call__(self, clock: Clock) -> float:
        return self.value

    @property
    def extremes(self) -> tuple[float, ...]:
        """Numbers between which all values lie."""
        return (self.value,)


@part
class Milestones(NumberFromText):
    """Piecewise constant, by whole epochs: values[k] from the k-th milestone on, values[0] before the first.

    Milestones are fractions of all epochs, so that a schedule scales with the length of the run: DONE's
    temperature falls at 40 and 50 of 60 epochs, and so at 17 and 21 of 25.

    Attributes:
        values: one more than milestones.
        at: the milestones.

    Example:
        >>> temperature = Milestones(values=(10.0, 1.0, 0.1), at=(2 / 3, 5 / 6))
        >>> [temperature(Clock(epoch=e, epochs=60)) for e in (39, 40, 50)]
        [10.0, 1.0, 0.1]
        >>> [next(e for e in range(25) if temperature(Clock(epoch=e, epochs=25)) == r) for r in (1.0, 0.1)]
        [17, 21]
    """

    values: tuple[float, ...]
    at: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.values) != len(self.at) + 1:
            raise UserError(
                "Milestones need one value more than places, "
                f"got {len(self.values)} values and {len(self.at)} places"
            )

    def __call__(self, clock: Clock) -> float:
        reached = sum(clock.epoch >= round(fraction * clock.epochs) for fraction in self.at)
        return self.values[reached]

    @property
    def extremes(self) -> tuple[float, ...]:
        """Numbers between which all values lie."""
        return self.values


@part
class Linear(NumberFromText):
    """Linear from `start` at epoch 0 to `end` at the fraction `until` of all epochs, constant afterwards.

    The value changes between epochs, not within them.

    Attributes:
        start: first value.
        end: last value.
        until: in (0, 1].
    """

    start: float
    end: float
    until: float = 1.0

    def __post_init__(self) -> None:
        check_range("until", self.until, 1e-6)

    def __call__(self, clock: Clock) -> float:
        done = min(1.0, clock.epoch / (self.until * clock.epochs))
        return self.start + done * (self.end - self.start)

    @property
    def extremes(self) -> tuple[float, ...]:
        """Numbers between which all values lie."""
        return self.start, self.end


@part
class Ramp(Schedule):
    """end (epoch + 1) / epochs: from a part of `end` in the first epoch to all of it in the last."""

    end: float

    def __call__(self, clock: Clock) -> float:
        return self.end * (clock.epoch + 1) / clock.epochs

    @property
    def extremes(self) -> tuple[float, ...]:
        """Numbers between which all values lie."""
        return 0.0, self.end


def value_at(value: float | Schedule, clock: Clock) -> float:
    """A number as it is, or a schedule's value now."""
    return value if isinstance(value, int | float) else value(clock)
