"""Compare evaluations on the same points in pairs: difference, interval and significance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import torch

from bivallate.evaluation.score import Score
from bivallate.evaluation.statistics import holm, mcnemar, paired_score_interval

__all__ = ["LEVEL", "Pair", "p_value", "pairs"]

LEVEL = 0.05


@dataclass(frozen=True)
class Pair:
    """Two evaluations on the same points.

    Attributes:
        first, second: names.
        n: points.
        difference: robust accuracy of the first less that of the second. interval_95: of the difference
            (Tango's score interval for pairs).
        only_first, only_second: number of points that are robust in only one of the two.
        p_value: of the exact McNemar test.
        p_adjusted: after Holm's correction for all pairs.
        significant: whether p_adjusted is below 5 %.
    """

    first: str
    second: str
    n: int
    difference: float
    interval_95: tuple[float, float]
    only_first: int
    only_second: int
    p_value: float
    p_adjusted: float
    significant: bool

    def to_json(self) -> dict[str, Any]:
        """The pair as plain data."""
        return asdict(self) | {"interval_95": list(self.interval_95)}


def p_value(first: Score, second: Score) -> float | None:
    """Exact McNemar p-value of two evaluations' robust verdicts; None if their points differ."""
    return mcnemar(first.robust.numpy(), second.robust.numpy()) if _same_points(first, second) else None


def pairs(scores: Sequence[Score], names: Sequence[str]) -> list[Pair]:
    """All pairs with the same points, in the order of the scores, with p-values corrected for all pairs."""
    named = zip(names, scores, strict=True)
    found = [_pair(*a, *b) for a, b in combinations(named, 2) if _same_points(a[1], b[1])]
    adjusted = holm([pair.p_value for pair in found])
    return [
        replace(pair, p_adjusted=p, significant=p < LEVEL) for pair, p in zip(found, adjusted, strict=True)
    ]


def _pair(first: str, one: Score, second: str, other: Score) -> Pair:
    won, lost = int((one.robust & ~other.robust).sum()), int((other.robust & ~one.robust).sum())
    interval = paired_score_interval(won, lost, one.n)
    p = mcnemar(one.robust.numpy(), other.robust.numpy())
    return Pair(first, second, one.n, (won - lost) / one.n, interval, won, lost, p, p, False)


def _same_points(first: Score, second: Score) -> bool:
    return first.data_fingerprint == second.data_fingerprint and torch.equal(first.index, second.index)
