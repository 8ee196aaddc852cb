"""Gradient alignment: the cosine between the input gradients at a point and at a random point near it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from bivallate.evaluation.geometry import alignment
from bivallate.lower.threat import ThreatModel
from bivallate.reports.diagnostics.diagnostic import Diagnostic
from bivallate.reports.diagnostics.sample import inspected, problem_of, sample
from bivallate.style import colour, figure, whole_ticks


@dataclass(frozen=True, eq=False)
class Alignment(Diagnostic):
    """The cosine between the loss's gradients at x and at x + eta, for every point.

    Attributes:
        eps: radius of the random perturbation eta.
        cosine: label -> (n,) cosines in [-1, 1].
    """

    eps: float
    cosine: dict[str, np.ndarray]

    @property
    def score(self) -> dict[str, float]:
        """The GA score of each model: the mean cosine. It is 1 if the loss is linear within the threat."""
        return {label: float(values.mean()) for label, values in self.cosine.items()}

    def data(self) -> dict[str, Any]:
        """The attributes."""
        return {"eps": self.eps, **self.cosine}

    def draw(self) -> Figure:
        """Histograms; the legend gives the scores."""
        fig, ax = figure(1, height=2.2)
        bins = np.linspace(min(0.0, *(float(v.min()) for v in self.cosine.values())), 1, 41)
        for k, (label, values) in enumerate(self.cosine.items()):
            share = np.full(len(values), 100 / len(values))
            name = f"{label}: mean {values.mean():.2f}"
            ax.hist(values, bins, weights=share, histtype="step", lw=1.3, color=colour(k), label=name)
        ax.set_xlabel(f"cosine of gradients at x and x + \u03b7, eps {self.eps:.3g}")
        ax.set_ylabel("test points (%)")
        ax.legend(loc="upper left")
        return fig


@dataclass(frozen=True, eq=False)
class AlignmentByEpoch(Diagnostic):
    """The GA score at the end of several epochs.

    Attributes:
        eps: radius of the random perturbation eta.
        score: label -> epoch, counted from 1 -> mean cosine over the points.
    """

    eps: float
    score: dict[str, dict[int, float]]

    def data(self) -> dict[str, Any]:
        """The attributes."""
        return {
            "eps": self.eps,
            "score": {k: {str(e): v for e, v in s.items()} for k, s in self.score.items()},
        }

    def draw(self) -> Figure:
        """A line for each run."""
        fig, ax = figure(1, height=2.2)
        for k, (label, by_epoch) in enumerate(self.score.items()):
            dot = "o" if len(by_epoch) < 3 else ""
            ax.plot(list(by_epoch), list(by_epoch.values()), color=colour(k), label=label, marker=dot)
        ax.set_ylim(min(-0.02, ax.get_ylim()[0]), 1.02)
        ax.set_xlabel("epoch")
        ax.set_ylabel(f"gradients' cosine on test points, eps {self.eps:.3g}")
        whole_ticks(ax)
        ax.legend()
        return fig


def gradient_alignment(
    models: dict[str, nn.Module], data: Any, threat: ThreatModel, *, n: int | None = None, seed: int = 0
) -> Alignment:
    """Compute the gradient alignment of models by label; eta is uniform in the threat, x + eta not clipped.

    Cost: two forward and two backward passes per point and model.

    Reference: Fast-BAT, Fig. 2 (which shows it over epochs, see `AlignmentByEpoch`); Andriushchenko and
    Flammarion 2020, section 4.
    """
    chosen, found = sample(data, n, seed, *models.values()), {}
    for label, model in models.items():
        values = []
        with inspected(model) as device:
            for batch in chosen.batches(device):
                problem = problem_of(model, batch, threat, seed)
                values.append(alignment(problem)[0].cpu())
        found[label] = torch.cat(values).numpy()
    return Alignment(threat.eps, found)
