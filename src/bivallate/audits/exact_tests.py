"""One-sided exact tests on paired outcomes, so that a check rarely fails by chance."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from bivallate.evaluation.statistics import Z95, paired_score_interval, wilson

__all__ = ["ALPHA", "Excess", "Gap", "below", "excess", "gap"]

Z_ALPHA = 2.5758293035489004  # of a one-sided test at level ALPHA
ALPHA = 0.005  # level of each test: a model exactly at the tolerance fails it at most once in 200 audits


@dataclass(frozen=True)
class Gap:
    """Points that one attack breaks and another leaves.

    Attributes:
        count: of such points.
        share: of all points.
        interval: Wilson's, 95 %.
        significant: the share exceeds the tolerance, also by an exact binomial test.
    """

    count: int
    share: float
    interval: tuple[float, float]
    significant: bool


def gap(left: Tensor, after: Tensor, tolerance: float) -> Gap:
    """Count the points that one attack leaves robust and another breaks.

    Args:
        left: (n,) bool, the points that the one leaves robust.
        after: (n,) bool, the points that the other leaves robust.
        tolerance: share of the points that the other may break without being remarkable.

    Example:
        >>> import torch
        >>> left, after = torch.ones(200, dtype=torch.bool), torch.arange(200) >= 30
        >>> gap(left, after, 0.05).significant
        True
    """
    from scipy.stats import binom

    n, count = len(left), int((left & ~after).sum())
    p = float(binom.sf(count - 1, n, tolerance)) if count else 1.0
    return Gap(count, count / n, wilson(count, n), count / n > tolerance and p < ALPHA)


@dataclass(frozen=True)
class Excess:
    """By how much one attack breaks more points than another, on the same points.

    Attributes:
        share: the points that only the first breaks minus those that only the second breaks, over all
            points; negative if the first breaks fewer.
        interval: 95 %, normal approximation by the variance of the discordant pairs.
        significant: the share exceeds the tolerance, also by a score test, and an exact sign test rejects
            that it is at most 0.
    """

    share: float
    interval: tuple[float, float]
    significant: bool


def excess(by: Tensor, than: Tensor, tolerance: float) -> Excess:
    """Compare two attacks by how many more points the first one breaks.

    Args:
        by: (n,) bool, the points that the first attack leaves robust.
        than: (n,) bool, the points that the second attack leaves robust.
        tolerance: share of the points by which the first may lead without being remarkable.
    """
    from scipy.stats import binomtest

    n = len(by)
    more, fewer = int((~by & than).sum()), int((by & ~than).sum())
    net, both = more - fewer, more + fewer
    half = Z95 * math.sqrt(max(both - net * net / n, 0.0)) / n
    p = float(binomtest(more, both, 0.5, "greater").pvalue) if both else 1.0
    beyond = paired_score_interval(more, fewer, n, z=Z_ALPHA)[0] > tolerance
    return Excess(net / n, (net / n - half, net / n + half), beyond and p < ALPHA)


def below(hits: int, n: int, claim: float) -> bool:
    """Whether `hits` of n points are significantly fewer than the share `claim` in [0, 1]."""
    from scipy.stats import binom

    return claim > 0 and float(binom.cdf(hits, n, min(claim, 1.0))) < ALPHA
