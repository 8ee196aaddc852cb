"""How far an evaluation is."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Progress"]


@dataclass(frozen=True)
class Progress:
    """A moment of an evaluation, for whoever shows it.

    Attributes:
        attack, part: names; part is "clean" before the attack.
        fraction: of the work that is left if no further point breaks, in [0, 1].
        robust_accuracy: no more than this can be the result. points: how many there are; living: still
            robust.
        seconds: so far. seconds_left: at the present pace; None before there is one.
    """

    attack: str
    part: str
    fraction: float
    robust_accuracy: float
    points: int
    living: int
    seconds: float
    seconds_left: float | None
