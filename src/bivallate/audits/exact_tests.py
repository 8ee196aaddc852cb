"""One-sided exact tests on paired verdicts: a check rarely fails by chance."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from bivallate.evaluation.statistics import Z95, wilson

__all__ = ["ALPHA", "Excess", "Gap", "below", "excess", "gap"]

ALPHA = 0.005  # of each test: a model exactly at the tolerance is accused once in two hundred audits


@dataclass(frozen=True)
class Gap:
    """Points that one attack breaks and another leaves.

    Attributes:
        share: of all points. interval: 95 %. significant: more than the tolerance, by an exact binomial test.
    """

    count: int
    share: float
    interval: tuple[float, float]
    significant: bool


def gap(left: Tensor, broken_from: Tensor, tolerance: float) -> Gap:
    """How many points robust in `left` (n,) are not robust in `broken_from` (n,).

    Example:
        >>> import torch
        >>> before, after = torch.ones(200, dtype=torch.bool), torch.arange(200) >= 30
        >>> gap(before, after, 0.05).significant
        True
    """
    from scipy.stats import binom

    n, count = len(left), int((left & ~broken_from).sum())
    p = float(binom.sf(count - 1, n, tolerance)) if count else 1.0
    return Gap(count, count / n, wilson(count, n), count / n > tolerance and p < ALPHA)


@dataclass(frozen=True)
class Excess:
    """By how much one attack breaks more points than another, on the same points.

    Attributes:
        share: net, of all points; negative if it breaks fewer. interval: 95 %, by the variance of the
            discordant pairs. significant: above the tolerance, and by an exact sign test above nothing.
    """

    share: float
    interval: tuple[float, float]
    significant: bool


def excess(by: Tensor, than: Tensor, tolerance: float) -> Excess:
    """How many more points the attack that left `by` (n,) robust broke than the one that left `than`."""
    from scipy.stats import binomtest

    n = len(by)
    more, fewer = int((~by & than).sum()), int((by & ~than).sum())
    net, both = more - fewer, more + fewer
    half = Z95 * math.sqrt(max(both - net * net / n, 0.0)) / n
    p = float(binomtest(more, both, 0.5, "greater").pvalue) if both else 1.0
    return Excess(net / n, (net / n - half, net / n + half), net / n > tolerance and p < ALPHA)


def below(hits: int, n: int, claim: float) -> bool:
    """Whether `hits` of n points are significantly fewer than a claimed share."""
    from scipy.stats import binom

    return claim > 0 and float(binom.cdf(hits, n, min(claim, 1.0))) < ALPHA
