"""Accuracies of each class under attack, and the confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bivallate.evaluation import Score
from bivallate.quoting import line
from bivallate.reports.diagnostics.diagnostic import Diagnostic
from bivallate.style import COLUMN, TICK, colour, marker, name_classes

LARGEST = 20  # most classes for a confusion matrix with numbers in its cells
MANY, WEAKEST, STRONGEST = 50, 20, 10  # up to MANY classes all are shown; else the weakest and strongest
NAMED = 100  # most classes for a confusion matrix with the names of the classes
CELL = 0.13  # inches of a row or column with a name, enough for a line of text


@dataclass(frozen=True)
class PerClass(Diagnostic):
    """Clean and robust accuracy of each class, for one or several models.

    Attributes:
        attack: name of the attack.
        classes: names of the classes.
        clean, robust: label -> (K,) accuracies as fractions; None for a class without points.
        interval: label -> (K,) 95 % intervals of the robust accuracies.
    """

    attack: str
    classes: tuple[str, ...]
    clean: dict[str, list[float | None]]
    robust: dict[str, list[float | None]]
    interval: dict[str, list[tuple[float, float] | None]]

    def data(self) -> dict[str, Any]:
        """The attributes."""
        return {
            "attack": self.attack,
            "classes": list(self.classes),
            "clean": self.clean,
            "robust": self.robust,
            "interval_95": {k: [list(i) if i else None for i in v] for k, v in self.interval.items()},
        }

    @property
    def shown(self) -> list[int]:
        """The classes to draw, weakest first: all, or the weakest and strongest if there are many."""
        first = next(iter(self.robust.values()))
        order = sorted(range(len(self.classes)), key=lambda k: (first[k] is None, first[k] or 0.0))
        return extremes_of(order, first)

    def draw(self) -> Figure:
        """Classes along the axis, weakest first; filled: robust with its interval; hollow: clean."""
        order = self.shown
        wide = 1.0 if len(order) * len(self.robust) <= 20 else 2.0
        fig = Figure(figsize=(COLUMN * wide, 2.5 if len(order) <= 16 else 3.2), layout="constrained")
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
        name_classes(ax, [self.classes[k] for k in order])
        ax.set_xlim(-0.6, len(order) - 0.4)
        ax.set_ylim(-2, 103)
        if len(order) < len(self.classes):
            ax.axvline(WEAKEST - 0.5, color="#555555", lw=0.7, ls=":")
            ax.set_xlabel(
                f"the {WEAKEST} weakest and {len(order) - WEAKEST} strongest of {len(self.classes)} classes"
            )
        else:
            ax.set_xlabel("class")
        ax.set_ylabel("accuracy (%)")
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
class Confusion(Diagnostic):
    """The confusion matrix under attack.

    Attributes:
        attack: name of the attack.
        classes: names of the classes.
        counts: (K, K) int64 numbers of points; rows are true classes, columns predictions.
    """

    attack: str
    classes: tuple[str, ...]
    counts: np.ndarray

    def data(self) -> dict[str, Any]:
        """The attributes, and the fractions of each row."""
        return {
            "attack": self.attack,
            "classes": list(self.classes),
            "counts": self.counts.tolist(),
            "fractions": self.fractions.tolist(),
        }

    @property
    def fractions(self) -> np.ndarray:
        """Fractions of each row (K, K); zero for a class without points."""
        return self.counts / np.maximum(self.counts.sum(1, keepdims=True), 1)

    @property
    def wide(self) -> bool:
        """Whether the matrix needs the width of a page or more."""
        return len(self.classes) > LARGEST

    def commonest(self, most: int = 20) -> list[tuple[int, int, int]]:
        """(true class, predicted class, points) of the commonest errors, the commonest first."""
        wrong = self.counts - np.diag(np.diag(self.counts))
        order = np.argsort(-wrong, axis=None, kind="stable")[:most]
        pairs = (divmod(int(place), len(self.classes)) for place in order)
        return [(i, j, int(wrong[i, j])) for i, j in pairs if wrong[i, j]]

    def draw(self) -> Figure:
        """Shades of each row's fractions; numbers in the cells and names of the classes where they fit."""
        size, named = len(self.classes), len(self.classes) <= NAMED
        names = [line(name, TICK) for name in self.classes] if named else []
        edge = 0.3 + 0.065 * max(map(len, names), default=6)  # inches beside the matrix, for the names
        side = max(COLUMN - edge - 0.75, CELL * size) if named else 2 * COLUMN - edge
        wide, high = edge + side + 0.8, edge + side + 0.15
        fig = Figure(figsize=(wide, high))
        ax = fig.add_axes((edge / wide, edge / high, side / wide, side / high))
        image = ax.imshow(100 * self.fractions, cmap="Blues", vmin=0, vmax=100, interpolation="none")
        ax.grid(visible=False)
        for spine in ax.spines.values():
            spine.set(visible=True, color="#cccccc")
        if size <= LARGEST:
            self._number(ax)
        if named:
            flat = max(map(len, names)) < 4
            ax.set_xticks(range(size), names, rotation=0 if flat else 90, fontsize=6.5)
            ax.set_yticks(range(size), names, fontsize=6.5)
        ax.tick_params(length=0)
        ax.set_xlabel(f"predicted under {self.attack}")
        ax.set_ylabel("true class" if named else f"true class (all {size}, by number)")
        tall = min(side, 2 * COLUMN)
        bar_at = fig.add_axes(
            ((edge + side + 0.1) / wide, (edge + side - tall) / high, 0.1 / wide, tall / high)
        )
        bar = fig.colorbar(image, cax=bar_at)
        bar.set_label("% of the class")
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
        return fig

    def _number(self, ax: Any) -> None:
        share = 100 * self.fractions
        for i, j in np.argwhere(share >= 0.5):
            colour = "white" if share[i, j] > 55 else "#222222"
            ax.text(j, i, f"{share[i, j]:.0f}", ha="center", va="center", fontsize=6, color=colour)


def extremes_of(order: Sequence[int], values: Sequence[float | None]) -> list[int]:
    """The classes in `order` to show: all, or the weakest and strongest if there are more than `MANY`.

    `order` ascends by `values`. Among many classes those without a value are left out.
    """
    if len(order) <= MANY:
        return list(order)
    known = [k for k in order if values[k] is not None]
    return known if len(known) <= WEAKEST + STRONGEST else known[:WEAKEST] + known[-STRONGEST:]


def per_class(scores: Mapping[str, Score], classes: Sequence[str] = ()) -> PerClass:
    """Per-class accuracies of evaluations by label; all must have the same classes."""
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
