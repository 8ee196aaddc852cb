"""FOSC, the first-order stationary condition: how close an attack comes to a stationary point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from bivallate.evaluation.geometry import fosc_at
from bivallate.lower.objective import cross_entropy
from bivallate.lower.start import uniform
from bivallate.lower.stop import Form
from bivallate.lower.threat import ThreatModel
from bivallate.reports.diagnostics.diagnostic import Diagnostic
from bivallate.reports.diagnostics.sample import inspected, problem_of, sample
from bivallate.style import COLOURS, colour, figure, whole_ticks

GROUPS = 20


def named(form: Form) -> str:
    """The name of FOSC on an axis, with its form and unit."""
    return f"FOSC, {'ball' if form == 'ball' else 'ball within [0, 1]'} (nats)"


@dataclass(frozen=True, eq=False)
class FOSC(Diagnostic):
    """FOSC of points after several numbers of PGD steps; it is 0 at a stationary point.

    Attributes:
        steps: numbers of PGD steps.
        fosc, loss: (len(steps), n) in nats.
        correct: (len(steps), n) bool, whether the point is classified correctly.
        form: form of FOSC, see `bivallate.lower.stop.fosc`.
    """

    steps: tuple[int, ...]
    fosc: np.ndarray
    loss: np.ndarray
    correct: np.ndarray
    form: Form = "ball"

    def data(self) -> dict[str, Any]:
        """The attributes."""
        arrays = {"fosc": self.fosc, "loss": self.loss, "correct": self.correct}
        return {"steps": list(self.steps), "form": self.form, **arrays}

    def groups(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Means (FOSC, accuracy, loss) of groups of equal size, formed by FOSC over all points and steps."""
        order = np.argsort(self.fosc.ravel(), kind="stable")
        parts = np.array_split(order, min(GROUPS, len(order)))
        return tuple(
            np.array([a.ravel()[p].mean() for p in parts]) for a in (self.fosc, self.correct, self.loss)
        )  # pyright: ignore

    def draw(self) -> Figure:
        """Histograms of FOSC by number of steps; accuracy and loss against FOSC."""
        fig, (left, right) = figure(2, width=2, height=2.3)
        floor = max(1e-4, float(np.quantile(self.fosc, 0.01)))
        top = max(float(self.fosc.max()), 10 * floor)
        bins = np.geomspace(floor, top, 31)
        for k, (steps, values) in enumerate(zip(self.steps, self.fosc, strict=True)):
            share = np.full(len(values), 100 / len(values))
            # In float64, because values clipped in float32 may round to just below the first bin's edge.
            shown = values.astype(float).clip(floor, top)
            left.hist(
                shown, bins, weights=share, histtype="step", lw=1.3, color=colour(k), label=f"PGD-{steps}"
            )
        left.set_xscale("log")
        left.set_xlabel(named(self.form))
        left.set_ylabel("test points (%)")
        left.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
        at, accuracy, loss = self.groups()
        one = right.plot(at.clip(floor), 100 * accuracy, "o-", color=COLOURS[0], label="accuracy")
        right.set_xscale("log")
        right.set_ylim(-2, 102)
        right.set_xlabel(f"{named(self.form)}, mean of each of {len(at)} groups")
        right.set_ylabel("accuracy (%)")
        other = right.twinx()
        two = other.plot(at.clip(floor), loss, "s--", color=COLOURS[1], label="loss")
        other.set_ylabel("loss (nats)")
        other.spines["right"].set_visible(True)
        other.set_ylim(bottom=0)
        other.grid(visible=False)
        right.legend(handles=[*one, *two], loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
        return fig


@dataclass(frozen=True, eq=False)
class FOSCTraces(Diagnostic):
    """FOSC and loss of single points at every step of PGD.

    Attributes:
        fosc, loss: (steps + 1, n) in nats.
        form: form of FOSC.
    """

    fosc: np.ndarray
    loss: np.ndarray
    form: Form = "ball"

    def data(self) -> dict[str, Any]:
        """The attributes."""
        return {"form": self.form, "fosc": self.fosc, "loss": self.loss}

    def draw(self) -> Figure:
        """A line for each point."""
        fig, axes = figure(2, width=2, height=2.1)
        for k, (ax, values, name) in enumerate(
            zip(axes, (self.fosc, self.loss), (named(self.form), "loss (nats)"), strict=True)
        ):
            ax.plot(range(len(values)), values, color=COLOURS[k], lw=0.8, alpha=0.6)
            ax.set_xlabel("steps of PGD")
            ax.set_ylabel(name)
            ax.set_ylim(bottom=0)
            whole_ticks(ax)
        return fig


def fosc_traces(
    model: nn.Module,
    data: Any,
    threat: ThreatModel,
    *,
    steps: int = 20,
    step_size: float = 0.25,
    n: int = 20,
    seed: int = 0,
    form: Form = "ball",
) -> FOSCTraces:
    """Compute FOSC and loss of a few points at every step of PGD from a uniform start.

    Args:
        model, data, threat: what is attacked.
        steps: number of steps.
        step_size: in units of eps.
        n: largest number of points.
        seed: seed of points and start.
        form: form of FOSC.

    Cost: steps + 1 forward and backward passes per point.

    Reference: Wang et al. (Dynamic AT), ICML 2019, Fig. 1b.
    """
    every = tuple(range(steps + 1))
    found = fosc(model, data, threat, steps=every, step_size=step_size, n=n, seed=seed, form=form)
    return FOSCTraces(found.fosc, found.loss, form)


def fosc(
    model: nn.Module,
    data: Any,
    threat: ThreatModel,
    *,
    steps: tuple[int, ...] = (1, 5, 20),
    step_size: float = 0.25,
    n: int | None = None,
    seed: int = 0,
    form: Form = "ball",
) -> FOSC:
    """Compute FOSC, loss and correctness after several numbers of PGD steps from a uniform start.

    Args:
        model, data, threat: what is attacked.
        steps: numbers of steps.
        step_size: in units of eps.
        n: largest number of points; None takes all.
        seed: seed of points and start.
        form: form of FOSC.

    Cost: max(steps) + 1 forward and backward passes per point.

    Reference: Wang et al. (Dynamic AT), ICML 2019, eq. 4, Fig. 1-2.
    """
    columns: dict[int, list[torch.Tensor]] = {k: [] for k in steps}
    with inspected(model) as device:
        for batch in sample(data, n, seed, model).batches(device):
            problem = problem_of(model, batch, threat, seed)
            delta = problem.project(uniform(problem))
            for k in range(max(steps) + 1):
                gap, logits, grad = fosc_at(problem, delta, form)
                if k in columns:
                    loss = cross_entropy(problem, logits)
                    right = (logits.argmax(1) == batch.y).to(gap.dtype)
                    columns[k].append(torch.stack([gap, loss, right]).cpu())
                delta = problem.project(delta + step_size * threat.eps * threat.steepest(grad))
    rows = [torch.cat(columns[k], 1).numpy() for k in steps]
    gap, loss, right = (np.stack([row[j] for row in rows]) for j in range(3))
    return FOSC(steps, gap, loss, right > 0, form)
