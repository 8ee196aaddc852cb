"""A histogram of an epoch's example weights, small enough for a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
EDGES = np.logspace(-4, 4, 401)  # neighbouring edges differ by 4.7 %


@dataclass
class Spread:
    """A histogram of example weights divided by the mean weight of their minibatch.

    Attributes:
        counts: number of weights in each bin; the first bin holds all below 1e-4, the last all from 1e4.
        lightest, heaviest: smallest and largest weight. They begin at 1, because the mean of a minibatch's
            relative weights is 1 and so lies between them.
    """

    counts: list[int] = field(default_factory=lambda: [0] * (len(EDGES) + 1))
    lightest: float = 1.0
    heaviest: float = 1.0

    def add(self, relative: list[float]) -> None:
        """Add the weights of one step."""
        values = np.asarray(relative)
        bins, many = np.unique(np.searchsorted(EDGES, values, side="right"), return_counts=True)
        for k, n in zip(bins.tolist(), many.tolist(), strict=True):
            self.counts[k] += n
        self.lightest = min(self.lightest, float(values.min()))
        self.heaviest = max(self.heaviest, float(values.max()))

    def merge(self, other: Spread) -> None:
        """Add the weights of another histogram."""
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self.lightest = min(self.lightest, other.lightest)
        self.heaviest = max(self.heaviest, other.heaviest)

    def quantiles(self) -> list[float]:
        """The quantiles at `QUANTILES`, accurate to one bin (4.7 %); below 1e-4 the smallest weight."""
        counts = np.asarray(self.counts)
        if not counts.any():
            return []
        ends = np.concatenate([[0.0], EDGES, [np.inf]]).clip(self.lightest, self.heaviest)
        below = np.concatenate([[0], counts.cumsum()]) / counts.sum()
        return [self._at(q, ends, below) for q in QUANTILES]

    def _at(self, q: float, ends: np.ndarray, below: np.ndarray) -> float:
        """The quantile q, interpolated linearly within its bin."""
        k = int(np.searchsorted(below, q, side="left")) - 1
        if k == 0:  # the bin below 1e-4 is too wide to interpolate in
            return float(ends[0])
        into = (q - below[k]) / (below[k + 1] - below[k])
        return float(ends[k] + into * (ends[k + 1] - ends[k]))
