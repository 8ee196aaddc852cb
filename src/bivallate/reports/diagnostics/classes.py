"""What an attack does to each class: accuracies, and what is mistaken for what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bivallate.evaluate import Score
from bivallate.reports.diagnostics.drawn import Drawn
from bivallate.reports.style import COLUMN, colour, marker

LARGEST = 20  # classes whose cells are numbered


@dataclass(frozen=True)
class PerClass(Drawn):
    """Clean and robust accuracy of each class, for one or several models.

    Attributes:
        attack: its name. classes: names. clean, robust: label -> (K,) fractions, None where no point is.
        interval: label -> (K,) 95 % intervals of the robust accuracies.
    """

    attack: str
    classes: tuple[str, ...]
    clean: dict[str, list[float | None]]
    robust: dict[str, list[float | None]]
    interval: dict[str, list[tuple[float, float] | None]]

    def data(self) -> dict[str, Any]:
        """As the attributes."""
        return {
            "attack": self.attack,
            "classes": list(self.classes),
            "clean": self.clean,
            "robust": self.robust,
            "interval_95": {k: [list(i) if i else None for i in v] for k, v in self.interval.items()},
        }

    def draw(self) -> Figure:
        """Classes along the axis, weakest first; filled robust with its interval, hollow clean."""
        first = next(iter(self.robust.values()))
        order = sorted(range(len(self.classes)), key=lambda k: (first[k] is None, first[k] or 0.0))
        wide = 1.0 if len(order) * len(self.robust) <= 20 else 2.0
        fig = Figure(figsize=(COLUMN * wide, 2.5), layout="constrained")
        ax = fig.subplots()
        step = 0.7 / len(self.robust)
        for j, (label, robust) in enumerate(self.robust.items()):
            shade, sign = colour(j), marker(j)
            for place, k in enumerate(order):
                at, interval, value = (
                    place + (j - (len(self.robust) - 1) / 2) * step,
                    self.interval[label][k],
                    robust[k],
                )
                clean = self.clean[label][k]
                if value is None or interval is None or clean is None:
                    continue
                ax.vlines(at, 100 * interval[0], 100 * interval[1], color=shade, lw=1.0, alpha=0.6)
                ax.plot(at, 100 * value, sign, color=shade, ms=3.5, zorder=4)
                ax.plot(at, 100 * clean, sign, color=shade, mfc="white", mew=0.8, ms=6)
        names = [self.classes[k] for k in order]
        ax.set_xticks(range(len(names)), names, rotation=0 if max(map(len, names)) < 4 else 40)
        ax.set_xlim(-0.6, len(names) - 0.4)
        ax.set_ylim(-2, 103)
        ax.set_xlabel("class")
        ax.set_ylabel("accuracy (%)")
        ax.grid(axis="x", visible=False)
        fig.legend(handles=self._keys(), loc="outside upper left", ncols=3)
        return fig

    def _keys(self) -> list[Line2D]:
        keys = [
            Line2D([], [], ls="", marker="o", color="#555555", mfc="white", ms=6, label="clean"),
            Line2D([], [], ls="", marker="o", color="#555555", ms=3.5, label=f"{self.attack}, 95 %"),
        ]
        if len(self.robust) > 1:
            keys += [
                Line2D(
                    [],
                    [],
                    ls="",
                    marker=marker(j),
                    color=colour(j),
                    label=label,
                )
                for j, label in enumerate(self.robust)
            ]
        return keys


@dataclass(frozen=True)
class Confusion(Drawn):
    """What the points of each class are taken for under attack.

    Attributes:
        attack: its name. classes: names. counts: (K, K) int64, rows true classes, columns predictions.
    """

    attack: str
    classes: tuple[str, ...]
    counts: np.ndarray

    def data(self) -> dict[str, Any]:
        """Counts, and the fractions of each row."""
        return {
            "attack": self.attack,
            "classes": list(self.classes),
            "counts": self.counts.tolist(),
            "fractions": self.fractions.tolist(),
        }

    @property
    def fractions(self) -> np.ndarray:
        """(K, K) of each row; zero for a class without a point."""
        return self.counts / np.maximum(self.counts.sum(1, keepdims=True), 1)

    def draw(self) -> Figure:
        """Row-normalised shades; per cent in the cells where they fit."""
        share, size = 100 * self.fractions, len(self.classes)
        fig = Figure(figsize=(COLUMN, COLUMN * 0.94), layout="constrained")
        ax = fig.subplots()
        image = ax.imshow(share, cmap="Blues", vmin=0, vmax=100)
        ax.grid(visible=False)
        for side in ax.spines.values():
            side.set_visible(False)
        if size <= LARGEST:
            for i, j in np.argwhere(share >= 0.5):
                colour = "white" if share[i, j] > 55 else "#222222"
                ax.text(j, i, f"{share[i, j]:.0f}", ha="center", va="center", fontsize=6, color=colour)
            turn = 0 if max(map(len, self.classes)) < 4 else 90
            ax.set_xticks(range(size), self.classes, rotation=turn)
            ax.set_yticks(range(size), self.classes)
        ax.tick_params(length=0)
        ax.set_xlabel(f"predicted under {self.attack}")
        ax.set_ylabel("true class")
        bar = fig.colorbar(image, ax=ax, shrink=0.8, pad=0.02)
        bar.set_label("% of the class")
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
        return fig


def per_class(scores: Mapping[str, Score], classes: Sequence[str] = ()) -> PerClass:
    """Per-class accuracies of evaluations by label; all must be of the same classes."""
    first = next(iter(scores.values()))
    attacks = list(dict.fromkeys(score.attack for score in scores.values()))
    return PerClass(
        " / ".join(attacks),
        tuple(classes) or tuple(str(k) for k in range(first.classes)),
        {label: score.per_class_clean for label, score in scores.items()},
        {label: score.per_class for label, score in scores.items()},
        {label: score.per_class_interval_95 for label, score in scores.items()},
    )


def confusion(score: Score, classes: Sequence[str] = ()) -> Confusion:
    """The confusion matrix of one evaluation."""
    names = tuple(classes) or tuple(str(k) for k in range(score.classes))
    return Confusion(score.attack, names, score.confusion.numpy())
