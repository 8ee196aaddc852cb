"""The progress of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["EvaluationProgress", "Searched"]


@dataclass(frozen=True)
class EvaluationProgress:
    """The progress of an evaluation, passed to `progress` functions.

    Attributes:
        attack: its name.
        stage: its name; "clean" before the attack.
        fraction: of the work that is done, in [0, 1], if no further point is broken.
        robust_accuracy: an upper bound of the result.
        points: their number.
        living: number of points that are still robust.
        seconds: so far.
        seconds_left: at the present pace; None if there is no estimate yet.
    """

    attack: str
    stage: str
    fraction: float
    robust_accuracy: float
    points: int
    living: int
    seconds: float
    seconds_left: float | None

    @property
    def title(self) -> str:
        """The attack and its stage."""
        return f"{self.attack} / {self.stage}"

    @property
    def numbers(self) -> str:
        """The number of points that are still robust."""
        return f"{self.living} of {self.points} still robust"


@dataclass(frozen=True)
class Searched:
    """The progress of a search that finishes one point after another.

    Attributes:
        title: name of the search.
        points: their number.
        done: number of points that are searched.
        seconds: so far.
    """

    title: str
    points: int
    done: int
    seconds: float

    @property
    def numbers(self) -> str:
        """The number of points that are done."""
        return f"{self.done} of {self.points} points"

    @property
    def fraction(self) -> float:
        """The fraction of points that are done, in [0, 1]."""
        return self.done / max(1, self.points)

    @property
    def seconds_left(self) -> float | None:
        """The remaining time at the present pace; None before the first point is done."""
        return self.seconds * (self.points - self.done) / self.done if self.done else None
