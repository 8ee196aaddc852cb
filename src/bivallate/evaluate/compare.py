"""Several evaluations side by side: who is better, is it significant, and over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from bivallate.errors import UserError, unknown
from bivallate.evaluate.score import Score
from bivallate.evaluate.statistics import mcnemar

__all__ = ["Row", "Spread", "compare", "over_seeds"]

KEYS = ("robust_accuracy", "clean_accuracy", "tail_30", "worst_class", "passes", "seconds")
LEVEL = 0.05


@dataclass(frozen=True)
class Row:
    """One evaluation in a comparison.

    Attributes:
        name: of the run. score: the evaluation itself.
        robust_accuracy, clean_accuracy, tail_30, worst_class: fractions. interval_95: of the robust accuracy.
        passes: forwards and backwards per example. seconds: of the evaluation.
        p_value: exact McNemar test of the robust verdicts against the first row, on the same points; None for
            the first row and where the points differ. significant: p_value below 5 %.
    """

    name: str
    score: Score
    robust_accuracy: float
    interval_95: tuple[float, float]
    clean_accuracy: float
    tail_30: float
    worst_class: float
    passes: float
    seconds: float
    p_value: float | None
    significant: bool


def compare(
    *scores: Score,
    names: Sequence[str] | None = None,
    sort: str = "robust_accuracy",
    descending: bool | None = None,
) -> list[Row]:
    """Rows of a table, best first, each tested against the first.

    Args:
        names: of the runs; numbered if not given.
        sort: a column of `Row` that is a number. descending: largest first, unless the column is a cost.

    Raises:
        UserError: nothing to compare, or evaluations of different attacks or threats.
    """
    if not scores:
        raise UserError("there is nothing to compare: give at least one evaluation")
    if sort not in KEYS:
        raise unknown("column", sort, KEYS)
    labels = list(names) if names is not None else [str(i + 1) for i in range(len(scores))]
    if len(labels) != len(scores):
        raise UserError(f"{len(scores)} evaluations need as many names, got {len(labels)}")
    kinds = {(s.attack, type(s.threat).__name__, s.threat.eps) for s in scores}
    if len(kinds) > 1:
        shown = "; ".join(sorted(f"{a} in {t}({e:g})" for a, t, e in kinds))
        raise UserError(f"only evaluations of one attack and threat can be compared, got {shown}")
    rows = [_row(label, score) for label, score in zip(labels, scores, strict=True)]
    falling = sort not in ("passes", "seconds") if descending is None else descending
    rows.sort(key=lambda row: getattr(row, sort), reverse=falling)
    return [rows[0], *(_tested(row, rows[0].score) for row in rows[1:])]


def _row(name: str, score: Score) -> Row:
    return Row(
        name=name,
        score=score,
        robust_accuracy=score.robust_accuracy,
        interval_95=score.interval_95,
        clean_accuracy=score.clean_accuracy,
        tail_30=score.tail(30),
        worst_class=score.worst_class[1],
        passes=score.passes["forward"] + score.passes["backward"],
        seconds=score.seconds,
        p_value=None,
        significant=False,
    )


def _tested(row: Row, best: Score) -> Row:
    p = p_value(best, row.score)
    return replace(row, p_value=p, significant=p is not None and p < LEVEL)


def p_value(first: Score, second: Score) -> float | None:
    """Exact McNemar p-value of two evaluations' robust verdicts; None if they are not of the same points."""
    same = torch.equal(first.index, second.index) and first.data_fingerprint == second.data_fingerprint
    return mcnemar(first.robust.numpy(), second.robust.numpy()) if same else None


@dataclass(frozen=True)
class Spread:
    """A number over the seeds of a method.

    Attributes:
        values: one a seed. mean: of them. std: with n - 1 in the denominator, None for one seed.
        interval_95: Student's interval of the mean, None for one seed.
    """

    values: tuple[float, ...]
    mean: float
    std: float | None
    interval_95: tuple[float, float] | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """From the values."""
        n, mean = len(values), float(np.mean(values))
        if n < 2:
            return cls(tuple(values), mean, None, None)
        from scipy.stats import t

        std = float(np.std(values, ddof=1))
        half = float(t.ppf(0.975, n - 1)) * std / math.sqrt(n)
        return cls(tuple(values), mean, std, (mean - half, mean + half))


def over_seeds(scores: Sequence[Score]) -> dict[str, Spread]:
    """Robust, clean, tail and worst-class accuracy of several seeds of one method.

    Example:
        >>> Spread.of([0.5, 0.6]).mean
        0.55
    """
    if not scores:
        raise UserError("there are no scores to summarise")
    return {
        "robust_accuracy": Spread.of([s.robust_accuracy for s in scores]),
        "clean_accuracy": Spread.of([s.clean_accuracy for s in scores]),
        "tail_30": Spread.of([s.tail(30) for s in scores]),
        "worst_class": Spread.of([s.worst_class[1] for s in scores]),
    }
