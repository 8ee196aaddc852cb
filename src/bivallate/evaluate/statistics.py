"""What a finite number of points allows one to say about an accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

__all__ = ["bootstrap_tail", "holm", "mcnemar", "tail", "welch", "wilson"]

Z95 = 1.959963984540054


def wilson(hits: int, n: int) -> tuple[float, float]:
    """95 % score interval for a proportion of `hits` in `n`; (0, 1) for no points at all.

    Example:
        >>> [round(bound, 3) for bound in wilson(8, 10)]
        [0.49, 0.943]
    """
    if n == 0:
        return 0.0, 1.0
    p, z2 = hits / n, Z95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return (0.0 if hits == 0 else low), (1.0 if hits == n else high)


def tail(hits: np.ndarray, counts: np.ndarray, k: float) -> tuple[float, float]:
    """(mean of class accuracies, pooled accuracy) over the lowest ceil(k % of the classes).

    Args:
        hits: (..., K) robust points of each class. counts: (..., K) points of each class; classes without a
            point take no part. k: in per cent.
    """
    means, pooled = _tails(hits[None], counts[None], k)
    return float(means[0]), float(pooled[0])


def _tails(hits: np.ndarray, counts: np.ndarray, k: float) -> tuple[np.ndarray, np.ndarray]:
    present = counts > 0
    accuracy = np.where(present, hits / np.maximum(counts, 1), np.inf)
    order = np.argsort(accuracy, axis=1, kind="stable")
    taken = np.ceil(np.round(k / 100 * present.sum(1), 9)).astype(int)
    mask = np.arange(hits.shape[1])[None] < taken[:, None]
    pick = [np.where(mask, np.take_along_axis(values, order, 1), 0) for values in (accuracy, hits, counts)]
    return pick[0].sum(1) / np.maximum(taken, 1), pick[1].sum(1) / np.maximum(pick[2].sum(1), 1)


def bootstrap_tail(
    hits: np.ndarray, counts: np.ndarray, k: float, *, pooled: bool = False, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of a tail score under resampling of the points.

    Resampling n points with replacement draws the (class, verdict) counts from one multinomial, so no point
    is touched.
    """
    n = int(counts.sum())
    if n == 0:
        return 0.0, 1.0
    cells = np.concatenate([hits, counts - hits]) / n
    sample = np.random.default_rng(seed).multinomial(n, cells, size=draws)
    classes = len(counts)
    drawn = sample[:, :classes] + sample[:, classes:]
    values = _tails(sample[:, :classes], drawn, k)[int(pooled)]
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Exact two-sided p-value of McNemar's test on paired verdicts (n,) bool of the same points.

    Example:
        >>> a = np.array([True] * 10 + [False] * 2)
        >>> b = np.array([False] * 8 + [True] * 2 + [False] * 2)
        >>> round(mcnemar(a, b), 4)
        0.0078
    """
    from scipy.stats import binomtest

    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second, 0.5).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected by Holm's method: below a level together, they are wrong at most that often.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    adjusted, reached = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(np.argsort(p_values, kind="stable").tolist()):
        reached = max(reached, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = reached
    return adjusted


def welch(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Two-sided p-value of Welch's test that two methods have the same mean over seeds; None below two seeds
    each."""
    if min(len(first), len(second)) < 2:
        return None
    if np.ptp(first) == 0 and np.ptp(second) == 0:
        return None  # no spread to judge a difference by
    from scipy.stats import ttest_ind_from_stats

    numbers = [(np.mean(v), np.std(v, ddof=1), len(v)) for v in (first, second)]
    return float(ttest_ind_from_stats(*numbers[0], *numbers[1], equal_var=False)[1])  # pyright: ignore
