"""The order of stored evaluations by strength, by which a table or a message puts one of them first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from bivallate.evaluation import Score
from bivallate.evaluation.statistics import FEWEST_POINTS

__all__ = ["StoredScore", "common_ground", "strongest_first"]


class StoredScore(Protocol):
    """The verdicts of an evaluation, and whether the weights have changed since."""

    @property
    def score(self) -> Score: ...
    @property
    def stale(self) -> bool: ...


def strongest_first(offers: Sequence[Sequence[StoredScore]]) -> list[int]:
    """Positions of the offers in the order of their strength, the strongest first.

    An offer is a list of evaluations, one for each run. To order the evaluations of a single run, make each
    of them an offer of one.

    Evaluations on different points cannot be ordered by their accuracies, because some points are easier than
    others. The order is therefore by, one after the other:

    1. whether the weights have changed since (those come last);
    2. whether there are fewer than `FEWEST_POINTS` points (those come last: on a few points an attack can
       succeed by luck);
    3. accuracy, lower first: on the points that all evaluations of a run share, or on their own if they share
       too few;
    4. passes per point of the attack, more first; among evaluations by one attack the points decide on them,
       and they do not count;
    5. number of points, more first;
    6. accuracy on their own points, lower first.
    """
    if not offers:
        return []
    columns = list(zip(*offers, strict=True))  # for each run its evaluations
    few = [[_is_few(e, column) for e in column] for column in columns]
    left = [common_ground(column, scarce) for column, scarce in zip(columns, few, strict=True)]

    names = [tuple(e.score.attack for e in own) for own in offers]
    spent = [sum(sum(e.score.passes.values()) for e in own) for own in offers]
    most = {name: max(s for s, other in zip(spent, names, strict=True) if other == name) for name in names}

    def key(k: int) -> tuple[float, ...]:
        own = offers[k]
        return (
            sum(e.stale for e in own),
            sum(scarce[k] for scarce in few),
            sum(kept[k] for kept in left),
            -most[names[k]],
            -sum(e.score.n for e in own),
            sum(e.score.robust_accuracy for e in own),
        )

    return sorted(range(len(offers)), key=key)


def _is_few(found: StoredScore, others: Sequence[StoredScore]) -> bool:
    """Whether an evaluation has too few points to lead, while another one has more."""
    return found.score.n < min(FEWEST_POINTS, max(e.score.n for e in others))


def common_ground(found: Sequence[StoredScore], few: Sequence[bool] | None = None) -> list[float]:
    """Robust accuracy of each evaluation on the points that all of them share.

    If they share too few points, it is the accuracy on all of its own. Stale evaluations and those on few
    points keep their own accuracy too, and do not limit the points that the others share.
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
    """Rows of the data that all evaluations share; None if they are too few or the data differ."""
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
    """The labels of these rows, in ascending order of the rows."""
    index = score.index.numpy()
    order = np.argsort(index, kind="stable")
    return score.y.numpy()[order][np.isin(index[order], rows)]
