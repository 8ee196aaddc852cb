"""The progress of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["EvaluationProgress", "Searched"]


@dataclass(frozen=True)
class EvaluationProgress:
    """The progress of an evaluation, for whoever shows it.

    Attributes:
        attack, stage: names; stage is "clean" before the attack.
        fraction: of the work that is done, if no further point breaks, in [0, 1].
        robust_accuracy: no more than this can be the result. points: how many there are; living: still
            robust.
        seconds: so far. seconds_left: at the present pace; None before there is one.
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
        """What runs."""
        return f"{self.attack} / {self.stage}"

    @property
    def numbers(self) -> str:
        """What is left."""
        return f"{self.living} of {self.points} still robust"


@dataclass(frozen=True)
class Searched:
    """The progress of a search that takes one point after another.

    Attributes:
        title: what runs. points: how many there are; done: searched already. seconds: so far.
    """

    title: str
    points: int
    done: int
    seconds: float

    @property
    def numbers(self) -> str:
        """How many points are done."""
        return f"{self.done} of {self.points} points"

    @property
    def fraction(self) -> float:
        """Of the points, in [0, 1]."""
        return self.done / max(1, self.points)

    @property
    def seconds_left(self) -> float | None:
        """At the present pace; None before there is one."""
        return self.seconds * (self.points - self.done) / self.done if self.done else None
