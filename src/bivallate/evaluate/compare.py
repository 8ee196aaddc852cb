"""Several evaluations side by side: who is better, is it significant, at what cost, and over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from bivallate.errors import UserError, unknown
from bivallate.evaluate.pairs import pairs
from bivallate.evaluate.score import Score
from bivallate.lower.threat import ThreatModel

__all__ = [
    "COSTS",
    "KEYS",
    "Row",
    "Spread",
    "TrainingCost",
    "compare",
    "over_seeds",
    "same_threat",
]

COSTS = ("passes", "seconds", "training_passes", "training_seconds")
KEYS = ("robust_accuracy", "clean_accuracy", "tail_30", "worst_class", *COSTS)
SAME_RADIUS = 1e-6  # relative


@dataclass(frozen=True)
class TrainingCost:
    """What a model cost to train: forward and backward passes per training example, and wall seconds."""

    forward: float
    backward: float
    seconds: float


@dataclass(frozen=True, repr=False)
class Row:
    """One evaluation in a comparison.

    Attributes:
        name: of the run. score: the evaluation itself. training: what the model cost, where known.
        robust_accuracy, clean_accuracy, tail_30, worst_class: fractions. interval_95: of the robust accuracy.
        passes: forwards and backwards per example. seconds: of the evaluation.
        training_passes, training_seconds: of the training, infinite where unknown.
        p_value: exact McNemar test of the robust verdicts against the first row, on the same points; None for
            the first row and where the points differ.
        p_adjusted: the same after Holm's correction for all pairs of rows. significant: it is below 5 %.
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
    p_adjusted: float | None = None
    training: TrainingCost | None = None

    def __repr__(self) -> str:
        tested = "" if self.p_adjusted is None else f", p {self.p_adjusted:.2g} against the first"
        return f"<{self.name}: {self.score!r}{tested}>"

    @property
    def training_passes(self) -> float:
        """Forwards and backwards per training example."""
        return self.training.forward + self.training.backward if self.training else math.inf

    @property
    def training_seconds(self) -> float:
        """Wall time of the training."""
        return self.training.seconds if self.training else math.inf


def compare(
    *scores: Score,
    names: Sequence[str] | None = None,
    sort: str = "robust_accuracy",
    descending: bool | None = None,
    training: Sequence[TrainingCost | None] | None = None,
) -> list[Row]:
    """Rows of a table, best first, each tested against the first.

    The correction is for all pairs, not only for those with the first row, because the data chose which row
    stands first.

    Args:
        names: of the runs; numbered if not given.
        sort: a column of `Row` that is a number. descending: largest first, unless the column is a cost.
        training: what each model cost, where that is known.

    Raises:
        UserError: nothing to compare, or evaluations of different attacks or threats.
    """
    if not scores:
        raise UserError("there is nothing to compare: give at least one evaluation")
    if sort not in KEYS:
        raise unknown("column", sort, KEYS)
    labels = list(names) if names is not None else [str(i + 1) for i in range(len(scores))]
    costs = list(training) if training is not None else [None] * len(scores)
    for what, given in (("names", labels), ("training costs", costs)):
        if len(given) != len(scores):
            raise UserError(f"{len(scores)} evaluations need as many {what}, got {len(given)}")
    _check_alike(scores)
    rows = [_row(*one) for one in zip(labels, scores, costs, strict=True)]
    falling = sort not in COSTS if descending is None else descending
    rows.sort(key=lambda row: getattr(row, sort), reverse=falling)
    return _tested(rows)


def same_threat(first: ThreatModel, second: ThreatModel) -> bool:
    """Whether two threats differ by no more than the rounding of a radius: 8/255 and 0.031372549 are one."""
    return type(first) is type(second) and math.isclose(first.eps, second.eps, rel_tol=SAME_RADIUS)


def _check_alike(scores: Sequence[Score]) -> None:
    """Raises UserError for different attacks or threats."""
    first = scores[0]
    if any(s.attack != first.attack or not same_threat(s.threat, first.threat) for s in scores):
        kinds = {(s.attack, type(s.threat).__name__, s.threat.eps) for s in scores}
        shown = "; ".join(sorted(f"{a} in {t}({e:g})" for a, t, e in kinds))
        raise UserError(f"only evaluations of one attack and threat can be compared, got {shown}")


def _row(name: str, score: Score, training: TrainingCost | None) -> Row:
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
        training=training,
    )


def _tested(rows: list[Row]) -> list[Row]:
    """The rows with their tests against the first."""
    places = [str(k) for k in range(len(rows))]  # names may repeat
    first = {pair.second: pair for pair in pairs([r.score for r in rows], places) if pair.first == "0"}
    return [
        replace(row, p_value=p.p_value, p_adjusted=p.p_adjusted, significant=p.significant) if p else row
        for row, p in zip(rows, map(first.get, places), strict=True)
    ]


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

    Raises:
        UserError: no scores, or scores of different attacks, threats or rows of the data. Data that each seed
            splits anew may differ: its test sets are replicates, too.

    Example:
        >>> Spread.of([0.5, 0.6]).mean
        0.55
    """
    if not scores:
        raise UserError("there are no scores to summarise")
    _check_alike(scores)
    if not all(torch.equal(s.index, scores[0].index) for s in scores):
        counts = ", ".join(str(s.n) for s in scores)
        raise UserError(
            "seeds of one method need evaluations of the same rows of the data, got different ones "
            f"({counts} points); evaluate them with the same --n or --first and --seed"
        )
    return {
        "robust_accuracy": Spread.of([s.robust_accuracy for s in scores]),
        "clean_accuracy": Spread.of([s.clean_accuracy for s in scores]),
        "tail_30": Spread.of([s.tail(30) for s in scores]),
        "worst_class": Spread.of([s.worst_class[1] for s in scores]),
    }
