"""The distribution of an epoch's weights in a few hundred bins, so that a checkpoint can keep it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
EDGES = np.logspace(-4, 4, 401)  # neighbours differ by 4.7 %


@dataclass
class Spread:
    """A histogram of weights divided by the mean of their minibatch, with its ends.

    Attributes:
        counts: by bin; the first holds all below 1e-4, the last all from 1e4. lightest, heaviest: never on
            the same side of 1, for neither are the weights of a minibatch.
    """

    counts: list[int] = field(default_factory=lambda: [0] * (len(EDGES) + 1))
    lightest: float = 1.0
    heaviest: float = 1.0

    def add(self, relative: list[float]) -> None:
        """Take in the weights of one step."""
        values = np.asarray(relative)
        bins, many = np.unique(np.searchsorted(EDGES, values, side="right"), return_counts=True)
        for k, n in zip(bins.tolist(), many.tolist(), strict=True):
            self.counts[k] += n
        self.lightest = min(self.lightest, float(values.min()))
        self.heaviest = max(self.heaviest, float(values.max()))

    def merge(self, other: Spread) -> None:
        """Take in all that another one holds."""
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self.lightest = min(self.lightest, other.lightest)
        self.heaviest = max(self.heaviest, other.heaviest)

    def quantiles(self) -> list[float]:
        """At `QUANTILES`, to within a bin (4.7 %) from 1e-4 up; lower weights count as the lightest."""
        counts = np.asarray(self.counts)
        if not counts.any():
            return []
        ends = np.concatenate([[0.0], EDGES, [np.inf]]).clip(self.lightest, self.heaviest)
        below = np.concatenate([[0], counts.cumsum()]) / counts.sum()
        return [self._at(q, ends, below) for q in QUANTILES]

    def _at(self, q: float, ends: np.ndarray, below: np.ndarray) -> float:
        """Where the share below reaches q, evenly within the bin."""
        k = int(np.searchsorted(below, q, side="left")) - 1
        if k == 0:  # below 1e-4 a bin is no longer narrow
            return float(ends[0])
        into = (q - below[k]) / (below[k + 1] - below[k])
        return float(ends[k] + into * (ends[k + 1] - ends[k]))
