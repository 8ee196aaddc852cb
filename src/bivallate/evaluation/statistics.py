"""Confidence intervals and tests for accuracies measured on finitely many points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

__all__ = [
    "at_chance",
    "bootstrap_tail",
    "gini",
    "holm",
    "mcnemar",
    "paired_score_interval",
    "ratios",
    "tail",
    "tails",
    "welch",
    "wilson",
    "wilsons",
]

Z95 = 1.959963984540054
REACH, HALVINGS = 6.0, 10  # of the bisection for an end of a tail's interval: to 0.01 standard errors
TINY = 1e-12  # tolerance for rounding of a mean of class accuracies


FEWEST_POINTS = 50
"""Number of points below which tests have no power."""


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval for a proportion of `hits` in `n`; (0, 1) for n = 0.

    Example:
        >>> [round(bound, 3) for bound in wilson(8, 10)]
        [0.49, 0.943]
    """
    if n == 0:
        return 0.0, 1.0
    low, high = (float(_moved(np.array(hits / n), np.array(n), z)) for z in (-Z95, Z95))
    return (0.0 if hits == 0 else low), (1.0 if hits == n else high)


def ratios(hits: np.ndarray, counts: np.ndarray) -> list[float | None]:
    """hits / counts of every class; None for a class without a point."""
    return [h / c if c else None for h, c in zip(hits.tolist(), counts.tolist(), strict=True)]


def wilsons(hits: np.ndarray, counts: np.ndarray) -> list[tuple[float, float] | None]:
    """`wilson` of every class; None for a class without a point."""
    return [wilson(h, c) if c else None for h, c in zip(hits.tolist(), counts.tolist(), strict=True)]


def gini(hits: np.ndarray, counts: np.ndarray) -> float | None:
    """The Gini coefficient of the accuracies a_1 to a_K of the classes, a measure of inequality.

    sum_ij |a_i - a_j| / (2 K^2 mean): 0 if all are equal, 1 - 1/K if only one is not zero; None if all are
    zero.

    Example:
        >>> round(gini(np.array([9, 5, 1]), np.array([10, 10, 10])), 3), gini(np.array([0]), np.array([3]))
        (0.356, None)
    """
    a = np.sort(hits[counts > 0] / counts[counts > 0])
    if not a.sum():
        return None
    k = len(a)
    return float(((2 * np.arange(1, k + 1) - k - 1) * a).sum() / (k * a.sum()))


def tail(hits: np.ndarray, counts: np.ndarray, k: float) -> tuple[float, float]:
    """(mean of class accuracies, pooled accuracy) over the lowest ceil(k % of the classes).

    Args:
        hits: (K,) robust points of each class.
        counts: (K,) points of each class; classes without points are left out.
        k: in per cent.
    """
    means, pooled = tails(hits[None], counts[None], k)
    return float(means[0]), float(pooled[0])


def _taken(classes: Any, k: float) -> Any:
    """Number of classes in the tail; rounded first, so that 30 % of 10 are 3."""
    return np.ceil(np.round(k / 100 * classes, 9)).astype(int)


def tails(hits: np.ndarray, counts: np.ndarray, k: float) -> tuple[np.ndarray, np.ndarray]:
    """As `tail`, for many samples: hits, counts (B, K) give (B,) and (B,)."""
    present = counts > 0
    accuracy = np.where(present, hits / np.maximum(counts, 1), np.inf)
    order = np.argsort(accuracy, axis=1, kind="stable")
    taken = _taken(present.sum(1), k)
    mask = np.arange(hits.shape[1])[None] < taken[:, None]
    pick = [np.where(mask, np.take_along_axis(values, order, 1), 0) for values in (accuracy, hits, counts)]
    return pick[0].sum(1) / np.maximum(taken, 1), pick[1].sum(1) / np.maximum(pick[2].sum(1), 1)


def bootstrap_tail(
    hits: np.ndarray, counts: np.ndarray, k: float, *, pooled: bool = False, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of a tail score: a bootstrap over the points of each class, by test inversion.

    The same points choose the lowest classes and measure them, so that the score is too low on average, the
    more so the more classes are similar. Percentiles of resamples are biased twice, and may even exclude the
    score. Here an end of the interval is the tail score of a distribution for which a score as extreme as the
    observed one is drawn with probability 2.5 %:

    - for the lower end, the chosen classes are resampled without choosing again, because choosing never
    raises
      a score;
    - for the upper end, each resample chooses again. Classes that cannot be distinguished from the last one
    of
      the tail (within two standard errors) are made equal first, because among equal classes choosing lowers
      the score most.

    The interval always contains the score; scores of 0 and 1 have an interval, as with Wilson's. In
    simulations with 10 classes of 100 points (all equal; one or three lower; spread; near 0 or 1) it covers
    95 to 100 %.

    Reference: Carpenter 1999, Test inversion bootstrap confidence intervals; Andrews and Soares 2010,
    generalized moment selection, for making similar classes equal.

    Args:
        draws: resamples for each trial of an end; fewer with more than 50 classes.
    """
    some = tuple(hits.tolist()), tuple(counts.tolist())
    return _tail_interval(*some, k, pooled, draws, seed)


@lru_cache(maxsize=256)  # a table uses the same interval several times
def _tail_interval(
    hits_of: tuple[int, ...], counts_of: tuple[int, ...], k: float, pooled: bool, draws: int, seed: int
) -> tuple[float, float]:
    kept = [pair for pair in zip(hits_of, counts_of, strict=True) if pair[1]]
    if not kept:
        return 0.0, 1.0
    hits, counts = np.array(kept).T
    value = tail(hits, counts, k)[int(pooled)]
    worst = np.argsort(hits / counts, kind="stable")[: _taken(len(hits), k)]
    draws = min(draws, max(200, 100_000 // len(hits)))

    def edge(levels: np.ndarray, of: np.ndarray, share: float, sign: int) -> float:
        """Find by bisection the shift z of all class accuracies, and return their tail score."""
        inside, outside = -sign * REACH, sign * REACH
        for _ in range(HALVINGS):
            z = (inside + outside) / 2
            generator = np.random.default_rng(seed)  # equal numbers for every z make the share monotone in z
            shape = (len(of), draws)  # with classes as rows the draw is faster
            drawn = generator.binomial(of[:, None], _moved(levels, of, z)[:, None], shape).T
            score = tails(drawn, np.broadcast_to(of, drawn.shape), share)[int(pooled)]
            extreme = score <= value + TINY if sign > 0 else score >= value - TINY
            inside, outside = (z, outside) if extreme.mean() >= 0.025 else (inside, z)
        return tail(_moved(levels, of, outside) * of, of, share)[int(pooled)]

    low = edge(hits[worst] / counts[worst], counts[worst], 100, -1)
    high = edge(_levelled(hits, counts, worst[-1]), counts, k, 1)
    return min(value, low), max(value, high)


def _levelled(hits: np.ndarray, counts: np.ndarray, last: int) -> np.ndarray:
    """Class accuracies, with those close to that of class `last` replaced by their pooled accuracy."""
    smooth = (hits + 0.5) / (counts + 1)  # so that the standard error is not zero at 0 or all hits
    variance = smooth * (1 - smooth) / counts
    near = np.abs(smooth - smooth[last]) <= 2 * np.sqrt(variance + variance[last])
    return np.where(near, hits[near].sum() / counts[near].sum(), hits / counts)


def _moved(p: np.ndarray, n: np.ndarray, z: float) -> np.ndarray:
    """Shift proportions by z standard errors, as for the ends of score intervals."""
    centre, spread = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return np.clip((centre + spread) / (1 + z * z / n), 0, 1)


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


def paired_score_interval(won: int, lost: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Score interval, 95 % or of another z, of the difference (won - lost) / n of accuracies on n points.

    `won` points are right only with the first, `lost` only with the second. Unlike the interval of the normal
    approximation it keeps its level if few points differ, and has a positive width if none does.

    Reference: Tango 1998, Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design.

    Example:
        >>> low, high = paired_score_interval(0, 0, 200)
        >>> round(low, 3), round(high, 3)
        (-0.019, 0.019)
    """

    def score(d: float) -> float:
        """(Observed difference - d) in standard errors, at the maximum-likelihood model with difference d."""
        b = (2 * n - won + lost) * d - won - lost
        rare = (math.sqrt(max(b * b + 8 * n * lost * d * (1 - d), 0.0)) - b) / (4 * n)  # chance of `lost`
        variance = n * (2 * rare + d * (1 - d))
        gap = won - lost - n * d
        return gap / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, gap) if gap else 0.0

    value = (won - lost) / n

    def edge(outside: float, sign: int) -> float:
        inside = value
        for _ in range(60):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if sign * score(middle) < z else (inside, middle)
        return (inside + outside) / 2

    return edge(-1.0, 1), edge(1.0, -1)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected by Holm's method, which controls the family-wise error rate.

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
    """Two-sided p-value of Welch's test that two methods have the same mean over seeds.

    None with fewer than two seeds each, or if neither has any spread.
    """
    if min(len(first), len(second)) < 2:
        return None
    if np.ptp(first) == 0 and np.ptp(second) == 0:
        return None  # without spread there is no standard error
    from scipy.stats import ttest_ind_from_stats

    numbers = [(np.mean(v), np.std(v, ddof=1), len(v)) for v in (first, second)]
    return float(ttest_ind_from_stats(*numbers[0], *numbers[1], equal_var=False)[1])  # pyright: ignore


def at_chance(labels: Sequence[int] | np.ndarray, answers: Sequence[int] | np.ndarray) -> bool:
    """Whether predictions agree with the labels no more than independent predictions would.

    Independent predictions agree on sum_k n_k m_k / n points on average, with n_k labels and m_k predictions
    of class k. Agreement up to two standard errors above this counts as chance. A constant prediction is then
    at chance, however common its class, and a few right predictions of a rare class are not.

    Example:
        >>> at_chance([0] * 90 + [1] * 10, [0] * 100), at_chance([0] * 90 + [1] * 10, [0] * 80 + [1] * 20)
        (True, False)
    """
    y, given = np.asarray(labels), np.asarray(answers)
    n, most = len(y), int(max(y.max(), given.max())) + 1
    share = float(np.bincount(y, minlength=most) @ np.bincount(given, minlength=most)) / n**2
    return bool((y == given).sum() <= n * share + 2 * math.sqrt(n * share * (1 - share)))
