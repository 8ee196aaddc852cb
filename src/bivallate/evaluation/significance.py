"""Compare evaluations: ranking, significance, cost, and spread over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from bivallate.errors import UserError, listed
from bivallate.evaluation import metrics
from bivallate.evaluation.metrics import TrainingCost, by_key
from bivallate.evaluation.pairs import pairs
from bivallate.evaluation.score import Score
from bivallate.evaluation.threat_union import radius, same_threat

__all__ = [
    "Row",
    "SeedSpread",
    "over_seeds",
    "rank",
]


@dataclass(frozen=True, repr=False)
class Row:
    """One evaluation in a comparison.

    Every metric is also an attribute: `row.robust_accuracy`, `row.tail_30`, `row.training_passes`.

    Attributes:
        name: name of the run.
        score: the evaluation.
        values: key of a metric (see `METRICS`) -> its value; infinite if unknown.
        p_value: of the exact McNemar test of the robust verdicts against the first row, on the same points;
            None for the first row, and if the points differ.
        significant: whether `p_adjusted` is below 5 %.
        p_adjusted: `p_value` after Holm's correction for all pairs of rows.
        training: cost of the model's training; None if unknown.
    """

    name: str
    score: Score
    values: dict[str, float]
    p_value: float | None = None
    significant: bool = False
    p_adjusted: float | None = None
    training: TrainingCost | None = None

    def __getattr__(self, name: str) -> float:
        try:
            return self.__dict__["values"][name]
        except KeyError:
            raise AttributeError(
                f"a row has no {name}, its metrics are {listed(self.__dict__.get('values', ()))}"
            ) from None

    def __repr__(self) -> str:
        tested = "" if self.p_adjusted is None else f", p {self.p_adjusted:.2g} against the first"
        return f"<{self.name}: {self.score!r}{tested}>"


def rank(
    *scores: Score,
    names: Sequence[str] | None = None,
    sort: str = "robust_accuracy",
    descending: bool | None = None,
    training: Sequence[TrainingCost | None] | None = None,
) -> list[Row]:
    """Rank evaluations, best first, and test each against the first.

    p-values are corrected for all pairs, not only for those with the first row, because the data determine
    which row is first.

    Args:
        scores: the evaluations.
        names: of the runs; numbers if not given.
        sort: key of a metric; unknown values stand last.
        descending: whether the largest stands first; by default if larger values are better.
        training: training cost of each model, where known.

    Raises:
        UserError: nothing to compare, or evaluations of different attacks or threats.
    """
    if not scores:
        raise UserError("there is nothing to compare: give at least one evaluation")
    column = by_key(sort)
    labels = list(names) if names is not None else [str(i + 1) for i in range(len(scores))]
    costs = list(training) if training is not None else [None] * len(scores)
    for what, given in (("names", labels), ("training costs", costs)):
        if len(given) != len(scores):
            raise UserError(f"{len(scores)} evaluations need as many {what}, got {len(given)}")
    _check_alike(scores)
    rows = [_row(*one) for one in zip(labels, scores, costs, strict=True)]
    rows.sort(key=lambda row: column.sort_key(row.values[sort], descending))
    return _tested(rows)


def _check_alike(scores: Sequence[Score]) -> None:
    """Raise UserError for different attacks or threats."""
    first = scores[0]
    if any(s.attack != first.attack or not same_threat(s.threat, first.threat) for s in scores):
        shown = "; ".join(sorted({f"{s.attack} in {radius(s.threat)}" for s in scores}))
        raise UserError(f"only evaluations of one attack and threat can be compared, got {shown}")


def _row(name: str, score: Score, training: TrainingCost | None) -> Row:
    values = {metric.key: metric.value(score, training) for metric in metrics.METRICS}
    return Row(name, score, values, training=training)


def _tested(rows: list[Row]) -> list[Row]:
    """Add the tests against the first row."""
    places = [str(k) for k in range(len(rows))]  # names may repeat
    first = {pair.second: pair for pair in pairs([r.score for r in rows], places) if pair.first == "0"}
    return [
        replace(row, p_value=p.p_value, p_adjusted=p.p_adjusted, significant=p.significant) if p else row
        for row, p in zip(rows, map(first.get, places), strict=True)
    ]


@dataclass(frozen=True)
class SeedSpread:
    """A number over the seeds of a method.

    Attributes:
        values: one for each seed. mean: of the values. std: standard deviation with n - 1 in the denominator,
            None for one seed.
        interval_95: Student's t interval of the mean, None for one seed.
    """

    values: tuple[float, ...]
    mean: float
    std: float | None
    interval_95: tuple[float, float] | None

    @classmethod
    def of(cls, values: Sequence[float]) -> SeedSpread:
        """Compute the spread of the values."""
        n, mean = len(values), float(np.mean(values))
        if n < 2:
            return cls(tuple(values), mean, None, None)
        from scipy.stats import t

        std = float(np.std(values, ddof=1))
        half = float(t.ppf(0.975, n - 1)) * std / math.sqrt(n)
        return cls(tuple(values), mean, std, (mean - half, mean + half))


def over_seeds(scores: Sequence[Score]) -> dict[str, SeedSpread]:
    """The spread of every share (robust, clean, tail and worst-class accuracy) over seeds of one method.

    Raises:
        UserError: no scores, or scores of different attacks, threats or rows of the data. The data themselves
            may differ, because each seed may split a set anew.

    Example:
        >>> SeedSpread.of([0.5, 0.6]).mean
        0.55
    """
    check_same_rows(scores)
    shares = [metric for metric in metrics.METRICS if metric.is_share]
    return {metric.key: SeedSpread.of([metric.value(s, None) for s in scores]) for metric in shares}


def check_same_rows(scores: Sequence[Score]) -> None:
    """Raise UserError unless scores of several seeds can be averaged, as in `over_seeds`."""
    if not scores:
        raise UserError("there are no scores to summarise")
    _check_alike(scores)
    if not all(torch.equal(s.index, scores[0].index) for s in scores):
        counts = ", ".join(str(s.n) for s in scores)
        raise UserError(
            "seeds of one method need evaluations of the same rows of the data, got different ones "
            f"({counts} points); evaluate them with the same --n or --first and --seed"
        )
