"""The example weights of a method, in four pictures.

They show the weights by class, the weights of two methods against each other, the examples of lowest and
highest weight, and the weights in the principal components of the softmax vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bivallate.errors import UserError
from bivallate.quoting import line
from bivallate.reports.diagnostics.diagnostic import Diagnostic
from bivallate.reports.diagnostics.weighed_points import WeighedPoints
from bivallate.style import COLOURS, COLUMN, figure, name_classes

FLOOR = 1e-3  # smaller relative weights are drawn at this value
TILE = 8  # most characters of a class's name above an image
SPREAD = 5.0  # largest relative weight for a linear axis


def scale_by(ax: Any, side: str, weights: np.ndarray) -> None:
    """Scale an axis for weights: linear from 0 if all are at most `SPREAD`, else logarithmic."""
    if float(weights.max()) > SPREAD:
        getattr(ax, f"set_{side}scale")("log")
    else:
        getattr(ax, f"set_{side}lim")(-0.03 * float(weights.max()), 1.06 * float(weights.max()))


@dataclass(frozen=True, eq=False)
class WeightsByClass(Diagnostic):
    """The weights of the examples of each class.

    Attributes:
        label: name of the method. classes: names of the classes.
        y: (n,) labels. weights: (n,) weights divided by their mean.
    """

    label: str
    classes: tuple[str, ...]
    y: np.ndarray
    weights: np.ndarray

    def data(self) -> dict[str, Any]:
        """The attributes."""
        return {"label": self.label, "classes": list(self.classes), "y": self.y, "weights": self.weights}

    def draw(self) -> Figure:
        """Dots for examples, bars for quartiles, and a line for the mean of all weights."""
        fig = Figure(figsize=(COLUMN, 2.3), layout="constrained")
        ax = fig.subplots()
        own = [self.weights[self.y == k] for k in range(len(self.classes))]
        spread = np.random.default_rng(0)
        for k, values in enumerate(own):
            if not len(values):
                continue
            at = k + spread.uniform(-0.28, 0.28, len(values))
            ax.plot(at, values.clip(FLOOR), ".", color=COLOURS[5], ms=2.5, mew=0, alpha=0.7)
            low, middle, high = np.quantile(values, [0.25, 0.5, 0.75]).clip(FLOOR)
            ax.vlines(k, low, high, color=COLOURS[0], lw=3)
            ax.plot(k, middle, "o", color="white", mec=COLOURS[0], ms=4)
        ax.axhline(1, color="#555555", lw=0.7, ls=":")
        name_classes(ax, self.classes)
        scale_by(ax, "y", self.weights)
        ax.set_xlabel("class (dots: examples, bars: quartiles)")
        ax.set_ylabel(f"weight / mean, {self.label}")
        return fig


def weights_by_class(
    weighed: WeighedPoints, classes: tuple[str, ...], label: str = "weights"
) -> WeightsByClass:
    """The distribution of the weights in each class (BiLAW, Fig. 3; DONE, Fig. 5)."""
    return WeightsByClass(label, tuple(classes), weighed.y, weighed.weights)


@dataclass(frozen=True, eq=False)
class WeightScatter(Diagnostic):
    """The weights that two methods give to the same points.

    Attributes:
        labels: names of the two methods. first, second: (n,) weights divided by their mean.
        robust: (n,) 0, 1 or 2: for how many of the two models the point is robust.
    """

    labels: tuple[str, str]
    first: np.ndarray
    second: np.ndarray
    robust: np.ndarray

    @property
    def correlation(self) -> float | None:
        """Spearman's rank correlation; None if one method gives equal weights."""
        from scipy.stats import spearmanr

        if np.ptp(self.first) < 1e-6 or np.ptp(self.second) < 1e-6:
            return None
        return float(spearmanr(self.first, self.second)[0])  # pyright: ignore[reportArgumentType]

    def data(self) -> dict[str, Any]:
        """The attributes."""
        return {
            "labels": list(self.labels),
            "first": self.first,
            "second": self.second,
            "robust": self.robust,
        }

    def draw(self) -> Figure:
        """A dot for each point, with markers by the number of models for which it is robust."""
        fig, ax = figure(1, height=2.6)
        groups = (("none", 0, COLOURS[1], "v"), ("one", 1, COLOURS[4], "s"), ("both", 2, COLOURS[0], "o"))
        for name, count, colour, marker in groups:
            own = self.robust == count
            ax.plot(
                self.first[own].clip(FLOOR),
                self.second[own].clip(FLOOR),
                marker,
                color=colour,
                ms=2.6,
                mew=0,
                alpha=0.65,
                label=f"{name} ({own.sum()})",
            )
        scale_by(ax, "x", self.first)
        scale_by(ax, "y", self.second)
        ax.set_xlabel(f"weight / mean, {self.labels[0]}")
        ax.set_ylabel(f"weight / mean, {self.labels[1]}")
        rho = self.correlation
        title = "robust under" if rho is None else f"Spearman {rho:.2f}; robust under"
        fig.legend(title=title, title_fontsize=7, loc="outside upper left", ncols=3, markerscale=1.6)
        return fig


def weight_scatter(first: WeighedPoints, second: WeighedPoints, labels: tuple[str, str]) -> WeightScatter:
    """Compare two methods' weights on the same points. Raises UserError if the points differ.

    Reference: BiLAW, Fig. 6.
    """
    if not np.array_equal(first.index, second.index) or not np.array_equal(first.x, second.x):
        raise UserError("the two runs were not weighed on the same points: use the same data, n and seed")
    robust = first.robust.astype(int) + second.robust.astype(int)
    return WeightScatter(labels, first.weights, second.weights, robust)


@dataclass(frozen=True, eq=False)
class Extremes(Diagnostic):
    """The examples of lowest and highest weight.

    Attributes:
        classes: names of the classes.
        images: (2, m, C, H, W): those of lowest weight, rising, and those of highest weight, falling.
        weights: (2, m) weights divided by their mean.
        y, clean, adversarial: (2, m) labels, clean predictions and predictions under attack.
        index: (2, m) rows of the data.
    """

    classes: tuple[str, ...]
    images: np.ndarray
    weights: np.ndarray
    y: np.ndarray
    clean: np.ndarray
    adversarial: np.ndarray
    index: np.ndarray

    def data(self) -> dict[str, Any]:
        """The attributes."""
        names = ("images", "weights", "y", "clean", "adversarial", "index")
        return {"classes": list(self.classes), **{name: getattr(self, name) for name in names}}

    def draw(self) -> Figure:
        """Two rows of images; the colour of the frame shows whether the model classifies them correctly."""
        _, m = self.weights.shape
        fig = Figure(figsize=(COLUMN * 2, 2.3), layout="constrained")
        grid = fig.subplots(2, m)
        for i, name in enumerate(("lightest", "heaviest")):
            for j in range(m):
                self._tile(grid[i][j], i, j)
            grid[i][0].set_ylabel(name, fontsize=8)
        names = (
            (COLOURS[0], "robust"),
            (COLOURS[4], "broken by the attack"),
            (COLOURS[1], "wrong when clean"),
        )
        handles = [fig.axes[0].plot([], [], "s", mfc="none", mec=c, mew=2, label=t)[0] for c, t in names]
        fig.legend(handles=handles, loc="outside lower left", ncols=3)
        return fig

    def _tile(self, ax: Any, i: int, j: int) -> None:
        image = self.images[i, j].transpose(1, 2, 0)
        ax.imshow(image if image.shape[2] == 3 else image[..., 0], cmap="gray", vmin=0, vmax=1)
        y, clean, adversarial = self.y[i, j], self.clean[i, j], self.adversarial[i, j]
        colour = COLOURS[1] if clean != y else COLOURS[0] if adversarial == y else COLOURS[4]
        for side in ax.spines.values():
            side.set(visible=True, color=colour, linewidth=2)
        ax.set_xticks([])
        ax.set_yticks([])
        into = "" if adversarial == y else f"\n→{line(self.classes[adversarial], TILE)}"
        ax.set_title(f"{line(self.classes[y], TILE)}{into}\n{self.weights[i, j]:.2f}", fontsize=6.5, pad=2)


def extremes(weighed: WeighedPoints, classes: tuple[str, ...], count: int = 10) -> Extremes:
    """The examples of lowest and highest weight. Raises UserError for too few points or equal weights."""
    order = np.argsort(weighed.weights, kind="stable")
    count = min(count, len(order) // 2)
    if count < 1:
        raise UserError("the easiest and hardest examples need at least 2 points")
    if np.allclose(weighed.weights, weighed.weights[0]):
        raise UserError("every example weighs the same in this method: none is the lightest or heaviest")
    rows = np.stack([order[:count], order[::-1][:count]])
    return Extremes(
        tuple(classes),
        weighed.x[rows],
        weighed.weights[rows],
        weighed.y[rows],
        weighed.clean[rows].argmax(2),
        weighed.adversarial[rows].argmax(2),
        weighed.index[rows],
    )


@dataclass(frozen=True, eq=False)
class Likelihoods(Diagnostic):
    """Adversarial softmax vectors of some classes in their principal components, shaded by weight.

    Attributes:
        classes: names of the shown classes. y: (n,) positions in `classes`.
        points: (n, 3) principal components. explained: (3,) fractions of the variance.
        weights: (n,) weights divided by their mean.
    """

    classes: tuple[str, ...]
    y: np.ndarray
    points: np.ndarray
    explained: np.ndarray
    weights: np.ndarray

    def data(self) -> dict[str, Any]:
        """The attributes."""
        names = ("y", "points", "explained", "weights")
        return {"classes": list(self.classes), **{name: getattr(self, name) for name in names}}

    def draw(self) -> Figure:
        """Components 1 and 2, and 1 and 3; markers show the class, shades the weight."""
        fig, axes = figure(2, width=2, height=2.6)
        top = float(np.quantile(self.weights, 0.98))
        dots = None
        for ax, other in zip(axes, (1, 2), strict=True):
            for k, name in enumerate(self.classes):
                own = np.flatnonzero(self.y == k)
                own = own[np.argsort(self.weights[own], kind="stable")]  # the heavy ones on top
                dots = ax.scatter(
                    self.points[own, 0],
                    self.points[own, other],
                    14,
                    self.weights[own],
                    marker=("o", "s", "^")[k % 3],
                    cmap="cividis_r",
                    vmin=0,
                    vmax=max(top, 1e-6),
                    lw=0.2,
                    ec="#444444",
                    label=f"class {name}",
                )
            ax.set_xlabel(f"component 1 ({self.explained[0]:.0%} of variance)")
            ax.set_ylabel(f"component {other + 1} ({self.explained[other]:.0%})")
        fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=3)
        if dots is not None:
            fig.colorbar(dots, ax=list(axes), pad=0.01).set_label("weight / mean")
        return fig


def pictured(classes: tuple[str, ...]) -> tuple[int, ...]:
    """The three classes to show: the paper's automobile, airplane and ship, or else the first three."""
    wanted = ("automobile", "airplane", "ship")
    return tuple(map(classes.index, wanted)) if set(wanted) <= set(classes) else (0, 1, 2)


def likelihood_pca(
    weighed: WeighedPoints, classes: tuple[str, ...], shown: tuple[int, ...] = (0, 1, 2)
) -> Likelihoods:
    """Compute the principal components of the adversarial softmax vectors of some classes.

    Raises UserError for fewer than three points or three classes. Reference: BiLAW, Fig. 4.
    """
    rows = np.flatnonzero(np.isin(weighed.y, shown))
    if len(rows) < 3 or weighed.adversarial.shape[1] < 3:
        raise UserError("the principal components need at least 3 points and 3 classes")
    p = weighed.adversarial[rows].astype(np.float64)
    u, s, _ = np.linalg.svd(p - p.mean(0), full_matrices=False)
    variance = s**2 / max(float((s**2).sum()), 1e-300)
    names = tuple(classes[k] for k in shown)
    y = np.array([shown.index(int(label)) for label in weighed.y[rows]])
    return Likelihoods(names, y, (u * s)[:, :3], variance[:3], weighed.weights[rows])
