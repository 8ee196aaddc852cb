"""The loss around a point, along the attacker's direction and a random one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import nn

from bivallate.evaluation.points import points
from bivallate.lower.threat import Linf
from bivallate.reports.diagnostics.diagnostic import Diagnostic
from bivallate.reports.diagnostics.sample import BATCH, inspected, problem_of, sample
from bivallate.style import COLUMN

KINDS = ("loss", "correct")


@dataclass(frozen=True, eq=False)
class Landscape(Diagnostic):
    """loss(x + a r1 + b r2), r1 = sign of the gradient at x, r2 random signs; the images are not clipped.

    Attributes:
        eps: one unit of the axes. axis: (m,) values of a and b in units of eps.
        loss: (m, m) in nats, rows a, columns b; the mean over the points. correct: (m, m) fraction.
    """

    eps: float
    axis: np.ndarray
    loss: np.ndarray
    correct: np.ndarray

    def data(self) -> dict[str, Any]:
        """The grid."""
        return {"eps": self.eps, "axis": self.axis, "loss": self.loss, "correct": self.correct}

    def draw(self) -> Figure:
        """Height lines with the ball of the threat."""
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
        """The grid of each by label."""
        first = next(iter(self.of.values()))
        grids = {f"{kind} {label}": getattr(one, kind) for label, one in self.of.items() for kind in KINDS}
        return {"eps": first.eps, "axis": first.axis, **grids}

    def draw(self) -> Figure:
        """A panel for each, on one scale of the loss."""
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
    """The landscape around one row of the data, or the mean of those of n seeded points.

    Args:
        row: of the data; without it n points are drawn. reach: of the grid, in units of eps.
        size: points along an axis, odd so that the centre is x itself.

    Cost: one forward and backward, and size^2 forwards, a point.

    Reference: Zhang et al. (Fast-BAT), ICML 2022, Fig. 3.
    """
    chosen = sample(data, n, seed, model) if row is None else sample(_row(data, row, model), None, seed)
    axis = torch.linspace(-reach, reach, size)
    total, right = torch.zeros(size * size), torch.zeros(size * size)
    a, b = (axis * threat.eps).repeat_interleave(size), (axis * threat.eps).repeat(size)
    with inspected(model) as device:
        for batch in chosen.batches(device, 1):
            problem = problem_of(model, batch, threat, seed)
            _, grad = problem.ascent(torch.zeros_like(batch.x))
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
    return points(data, model).tensors(torch.tensor([row]))
