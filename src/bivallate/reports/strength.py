"""Which of several stored evaluations is the strongest, decided here for every headline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from bivallate.evaluation import Score
from bivallate.evaluation.statistics import FEWEST_POINTS

__all__ = ["StoredScore", "common_ground", "strongest_first"]


class StoredScore(Protocol):
    """The verdicts of an evaluation, and whether they are of weights that are gone."""

    @property
    def score(self) -> Score: ...
    @property
    def stale(self) -> bool: ...


def strongest_first(offers: Sequence[Sequence[StoredScore]]) -> list[int]:
    """Positions of the offers, the one that leads first.

    An offer is one evaluation of each of some runs, so that a run's own evaluations are offers of one.

    Evaluations on different points cannot be ranked by their accuracies: a hundred points may be easier than
    all of them. So those of a run are ranked by what they left of the points that all of them judged, and by
    their own accuracies where there are too few of these. Verdicts of the present weights go before others,
    and those on fewer than `FEWEST_POINTS` points behind: an attack can leave none of a few points by luck.
    Of equals the one leads that spent most on a point, then the one on most points.
    """
    if not offers:
        return []
    columns = list(zip(*offers, strict=True))  # a run's evaluations
    few = [[_is_few(e, column) for e in column] for column in columns]
    left = [common_ground(column, scarce) for column, scarce in zip(columns, few, strict=True)]

    def key(k: int) -> tuple[float, ...]:
        own = offers[k]
        return (
            sum(e.stale for e in own),
            sum(scarce[k] for scarce in few),
            sum(kept[k] for kept in left),
            -sum(sum(e.score.passes.values()) for e in own),
            -sum(e.score.n for e in own),
            sum(e.score.robust_accuracy for e in own),
        )

    return sorted(range(len(offers)), key=key)


def _is_few(found: StoredScore, others: Sequence[StoredScore]) -> bool:
    """Whether an evaluation is on too few points to lead, where others are on more."""
    return found.score.n < min(FEWEST_POINTS, max(e.score.n for e in others))


def common_ground(found: Sequence[StoredScore], few: Sequence[bool] | None = None) -> list[float]:
    """Robust accuracy of each evaluation on the points that all have judged.

    Its own where they share too few, and for those of few points or of other weights, which must not decide
    about the rest.
    """
    own = [e.score.robust_accuracy for e in found]
    scarce = few if few is not None else [_is_few(e, found) for e in found]
    counted = [k for k, e in enumerate(found) if not e.stale and not scarce[k]]
    scores = [found[k].score for k in counted]
    rows = _shared(scores)
    for k, score in zip(counted, scores, strict=True):
        if rows is not None:
            here = np.isin(score.index.numpy(), rows)
            own[k] = float(score.robust.numpy()[here].mean())
    return own


def _shared(scores: Sequence[Score]) -> np.ndarray | None:
    """Rows of the data that all have judged; None where they are too few, or of other data."""
    if len(scores) < 2:
        return None
    rows = scores[0].index.numpy()
    for score in scores[1:]:
        rows = np.intersect1d(rows, score.index.numpy())
    if len(rows) < min(FEWEST_POINTS, min(score.n for score in scores)):
        return None
    labels = [_labels(score, rows) for score in scores]
    return rows if all(np.array_equal(labels[0], other) for other in labels[1:]) else None


def _labels(score: Score, rows: np.ndarray) -> np.ndarray:
    """Of these rows, in ascending order of the rows."""
    index = score.index.numpy()
    order = np.argsort(index, kind="stable")
    return score.y.numpy()[order][np.isin(index[order], rows)]
