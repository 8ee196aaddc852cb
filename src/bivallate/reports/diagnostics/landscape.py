"""The loss around a point, along the sign of the gradient and along random signs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import nn

from bivallate.evaluation.points import as_points
from bivallate.lower.threat import Linf
from bivallate.reports.diagnostics.diagnostic import Diagnostic
from bivallate.reports.diagnostics.sample import BATCH, inspected, problem_of, sample
from bivallate.style import COLUMN

KINDS = ("loss", "correct")


@dataclass(frozen=True, eq=False)
class Landscape(Diagnostic):
    """loss(x + a r1 + b r2) with r1 the sign of the gradient at x and r2 random signs, without clipping.

    Attributes:
        eps: unit of the axes.
        axis: (m,) values of a and b in units of eps.
        loss: (m, m) mean over the points, in nats; rows are a, columns b.
        correct: (m, m) fraction of the points that are classified correctly.
    """

    eps: float
    axis: np.ndarray
    loss: np.ndarray
    correct: np.ndarray

    def data(self) -> dict[str, Any]:
        """The attributes."""
        return {"eps": self.eps, "axis": self.axis, "loss": self.loss, "correct": self.correct}

    def draw(self) -> Figure:
        """Contour lines, with the ball of the threat as a square."""
        fig = Figure(figsize=(COLUMN, 2.7), layout="constrained")
        ax = fig.subplots()
        filled = ax.contourf(self.axis, self.axis, self.loss.T, levels=24, cmap="viridis")
        filled.set_edgecolor("face")  # no hairlines between the bands in PDF and SVG
        ax.contour(self.axis, self.axis, self.loss.T, levels=12, colors="white", linewidths=0.3, alpha=0.6)
        ax.add_patch(Rectangle((-1, -1), 2, 2, fill=False, ec="white", lw=1.0, ls="--"))
        ax.plot(0, 0, "o", color="white", ms=4)
        ax.annotate("x", (0, 0), (5, 4), textcoords="offset points", color="white", fontsize=8)
        ax.set_aspect("equal")
        ax.grid(visible=False)
        ax.set_xlabel(f"along the gradient's sign (units of eps = {self.eps:.3g})")
        ax.set_ylabel("along random signs (eps)")
        fig.colorbar(filled, ax=ax, shrink=0.9, pad=0.02).set_label("loss (nats)")
        return fig


@dataclass(frozen=True)
class Landscapes(Diagnostic):
    """The landscapes of several models around the same point.

    Attributes:
        of: label -> landscape, on the same axes.
    """

    of: dict[str, Landscape]

    def data(self) -> dict[str, Any]:
        """The grids by label."""
        first = next(iter(self.of.values()))
        grids = {f"{kind} {label}": getattr(one, kind) for label, one in self.of.items() for kind in KINDS}
        return {"eps": first.eps, "axis": first.axis, **grids}

    def draw(self) -> Figure:
        """A panel for each model, with a common scale of the loss."""
        wide = len(self.of)
        fig = Figure(figsize=(COLUMN * 0.72 * wide, 2.5), layout="constrained")
        axes = fig.subplots(1, wide, squeeze=False, sharey=True)
        top = max(float(one.loss.max()) for one in self.of.values())
        levels = np.linspace(0, max(top, 1e-6), 25)
        filled = None
        for ax, (label, one) in zip(axes.flat, self.of.items(), strict=True):
            filled = ax.contourf(one.axis, one.axis, one.loss.T, levels=levels, cmap="viridis")
            filled.set_edgecolor("face")
            ax.add_patch(Rectangle((-1, -1), 2, 2, fill=False, ec="white", lw=1.0, ls="--"))
            ax.set_aspect("equal")
            ax.grid(visible=False)
            ax.set_title(label)
        axes[0][0].set_ylabel("along random signs (eps)")
        fig.supxlabel("along the gradient's sign (units of eps)", fontsize=8)
        if filled is not None:
            fig.colorbar(filled, ax=list(axes.flat), shrink=0.9, pad=0.02).set_label("loss (nats)")
        return fig


def loss_landscape(
    model: nn.Module,
    data: Any,
    threat: Linf,
    *,
    row: int | None = None,
    n: int = 1,
    reach: float = 2.5,
    size: int = 41,
    seed: int = 0,
) -> Landscape:
    """Compute the loss landscape around one row of the data, or its mean over n seeded random points.

    Args:
        model, data: the network, and a split or a pair (x, y) of tensors.
        threat: gives the radius eps.
        row: row of the data; None draws n points.
        n: number of points to draw.
        reach: half of the grid's side, in units of eps.
        size: grid points along an axis; odd, so that the centre is x itself.
        seed: seed of the points and of the random signs.

    Cost: one forward and backward pass, and size^2 forward passes, per point.

    Reference: Zhang et al. (Fast-BAT), ICML 2022, Fig. 3.
    """
    chosen = sample(data, n, seed, model) if row is None else sample(_row(data, row, model), None, seed)
    axis = torch.linspace(-reach, reach, size)
    total, right = torch.zeros(size * size), torch.zeros(size * size)
    a, b = (axis * threat.eps).repeat_interleave(size), (axis * threat.eps).repeat(size)
    with inspected(model) as device:
        for batch in chosen.batches(device, 1):
            problem = problem_of(model, batch, threat, seed)
            _, grad = problem.logits_and_gradient(torch.zeros_like(batch.x))
            r1 = grad.sign()
            r2 = problem.noise.sign("landscape", tuple(batch.x.shape[1:]), batch.x.dtype)
            for start in range(0, size * size, BATCH):
                part = slice(start, start + BATCH)
                steps = [c[part].to(device).view(-1, 1, 1, 1) for c in (a, b)]
                x = batch.x + steps[0] * r1 + steps[1] * r2
                with torch.no_grad():
                    logits = problem.forward(x)
                y = batch.y.expand(len(x))
                own = torch.nn.functional.cross_entropy(logits, y, reduction="none")
                total[part] += own.cpu()
                right[part] += (logits.argmax(1) == y).cpu()
    count = len(chosen.y)
    grid = (total / count).view(size, size).numpy(), (right / count).view(size, size).numpy()
    return Landscape(threat.eps, axis.numpy(), *grid)


def _row(data: Any, row: int, model: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    return as_points(data, model).tensors(torch.tensor([row]))
