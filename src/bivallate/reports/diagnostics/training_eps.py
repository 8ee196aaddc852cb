"""Robust accuracy at the radius that each run was trained for, which shows catastrophic overfitting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bivallate.reports.diagnostics.diagnostic import Diagnostic
from bivallate.style import colour, figure, marker


@dataclass(frozen=True)
class OwnRadius:
    """Robust accuracy of one of a run's weights at the run's own radius.

    Attributes:
        run: label of the run.
        label: label of its line in the figure: the method.
        eps: radius of training and attack, in [0, 1] pixel units.
        weights: best or last.
        accuracy, interval_95: robust accuracy as a fraction, and its 95 % interval.
    """

    run: str
    label: str
    eps: float
    weights: str
    accuracy: float
    interval_95: tuple[float, float]


@dataclass(frozen=True)
class TrainingEps(Diagnostic):
    """Robust accuracy against the radius of training and attack.

    Attributes:
        attack: name of the attack.
        norm: norm of the threat.
        points: accuracies of all runs and weights.
    """

    attack: str
    norm: str
    points: tuple[OwnRadius, ...]

    def data(self) -> dict[str, Any]:
        """The attributes."""
        points = [{**vars(p), "interval_95": list(p.interval_95)} for p in self.points]
        return {"attack": self.attack, "norm": self.norm, "points": points}

    def draw(self) -> Figure:
        """A panel for the last weights, and one for the best on held-out data."""
        shown = [w for w in ("last", "best") if any(p.weights == w for p in self.points)]
        fig, axes = figure(len(shown), width=len(shown), height=2.3, sharey=True, squeeze=False)
        labels = list(dict.fromkeys(p.label for p in self.points))
        for ax, weights in zip(axes.flat, shown, strict=True):
            for k, label in enumerate(labels):
                own = [p for p in self.points if (p.label, p.weights) == (label, weights)]
                at, values = [p.eps for p in own], [100 * p.accuracy for p in own]
                low = [100 * (p.accuracy - p.interval_95[0]) for p in own]
                high = [100 * (p.interval_95[1] - p.accuracy) for p in own]
                style = {"color": colour(k), "marker": marker(k)}
                ax.errorbar(at, values, [low, high], ls="", capsize=2, label=label, **style)
                radii = sorted(set(at))  # the line joins the means of the runs at each radius
                means = [np.mean([v for a, v in zip(at, values, strict=True) if a == r]) for r in radii]
                ax.plot(radii, means, color=colour(k))
            ax.set_title(f"{weights} weights")
            ax.set_xlabel(f"eps of training and attack ({self.norm})")
        axes.flat[0].set_ylim(bottom=0)
        axes.flat[0].set_ylabel(f"accuracy under {self.attack} (%)")
        axes.flat[0].legend()
        return fig


def training_eps(attack: str, norm: str, points: Sequence[OwnRadius]) -> TrainingEps:
    """Make the result from the accuracies of several runs.

    Reference: Fast-BAT, Fig. 1; Dynamic AT, Fig. 4b.
    """
    return TrainingEps(attack, norm, tuple(points))
