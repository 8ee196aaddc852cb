"""Robust accuracy at the radius that each run was trained for: what overfits catastrophically falls."""

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
    """One run's robust accuracy at its own radius, of one of its weights.

    Attributes:
        run: its label. label: of the line that it stands on: the method. eps: radius of training and attack.
        weights: best or last. accuracy, interval_95: fractions.
    """

    run: str
    label: str
    eps: float
    weights: str
    accuracy: float
    interval_95: tuple[float, float]


@dataclass(frozen=True)
class TrainingEps(Diagnostic):
    """Robust accuracy against the radius of training, which is the attack's too.

    Attributes:
        attack: its name. norm: of the ball. points: of every run and weights.
    """

    attack: str
    norm: str
    points: tuple[OwnRadius, ...]

    def data(self) -> dict[str, Any]:
        """As the attributes."""
        points = [{**vars(p), "interval_95": list(p.interval_95)} for p in self.points]
        return {"attack": self.attack, "norm": self.norm, "points": points}

    def draw(self) -> Figure:
        """Left the last weights, right the best on held-out data."""
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
                radii = sorted(set(at))  # the line goes through the mean of several runs at one radius
                means = [np.mean([v for a, v in zip(at, values, strict=True) if a == r]) for r in radii]
                ax.plot(radii, means, color=colour(k))
            ax.set_title(f"{weights} weights")
            ax.set_xlabel(f"eps of training and attack ({self.norm})")
        axes.flat[0].set_ylim(bottom=0)
        axes.flat[0].set_ylabel(f"accuracy under {self.attack} (%)")
        axes.flat[0].legend()
        return fig


def training_eps(attack: str, norm: str, points: Sequence[OwnRadius]) -> TrainingEps:
    """From the accuracies of several runs.

    Reference: Fast-BAT, Fig. 1; Dynamic AT, Fig. 4b.
    """
    return TrainingEps(attack, norm, tuple(points))
