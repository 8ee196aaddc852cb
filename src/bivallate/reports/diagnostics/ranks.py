"""Clean ranks of the classes that an attack reaches; accuracy against eps; transfer of attacks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from bivallate.evaluation import attack as attacked
from bivallate.evaluation.black_box import clean_scores
from bivallate.evaluation.sweeps import eps_curve
from bivallate.lower.input_guard import call_unharmed
from bivallate.lower.threat import Linf, Threat
from bivallate.reports.diagnostics.diagnostic import Diagnostic
from bivallate.reports.diagnostics.sample import inspected, sample
from bivallate.style import COLUMN, colour, figure, marker

FACTORS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)


@dataclass(frozen=True, eq=False)
class Ranks(Diagnostic):
    """The rank of the adversarial prediction among the clean logits; 0 means an unchanged prediction.

    Attributes:
        attack: name of the attack.
        counts: label -> (K,) numbers of points by rank.
    """

    attack: str
    counts: dict[str, np.ndarray]

    def data(self) -> dict[str, Any]:
        """The attributes."""
        return {"attack": self.attack, "counts": {k: v.tolist() for k, v in self.counts.items()}}

    def draw(self) -> Figure:
        """Bars for the ranks from 1 on, as percentages of the points whose prediction changed."""
        fig, ax = figure(1, height=2.1)
        width = 0.8 / len(self.counts)
        for k, (label, counts) in enumerate(self.counts.items()):
            changed = counts[1:]
            share = 100 * changed / max(1, changed.sum())
            at = np.arange(1, len(counts)) + (k - (len(self.counts) - 1) / 2) * width
            kept = counts[0] / counts.sum()
            ax.bar(at, share, 0.92 * width, color=colour(k), label=f"{label} ({kept:.0%} unchanged)")
        most = max(len(c) for c in self.counts.values())
        ax.set_xticks(range(1, most, max(1, most // 20)))
        ax.set_xlabel(f"clean rank of the class that {self.attack} reached")
        ax.set_ylabel("changed predictions (%)")
        ax.grid(axis="x", visible=False)
        ax.legend()
        return fig


def adversarial_rank(
    models: dict[str, nn.Module],
    data: Any,
    threat: Threat,
    *,
    attack: str = "pgd-10",
    n: int | None = None,
    seed: int = 0,
) -> Ranks:
    """Compute the clean ranks of adversarial predictions, for models by label.

    Reference: BiLAW, Fig. 1b.
    """
    chosen, found = sample(data, n, seed, *models.values()), {}
    for label, model in models.items():
        x_adv = attacked(model, chosen.x, chosen.y, threat, attack, seed=seed)
        with inspected(model) as device, torch.no_grad():
            clean = torch.cat([call_unharmed(model, b.x).cpu() for b in chosen.batches(device)])
            moved = torch.cat(
                [call_unharmed(model, b.x).argmax(1).cpu() for b in replace(chosen, x=x_adv).batches(device)]
            )
        order = clean.argsort(dim=1, descending=True, stable=True)
        rank = (order == moved[:, None]).int().argmax(1)
        found[label] = np.bincount(rank.numpy(), minlength=clean.shape[1])
    return Ranks(attack, found)


@dataclass(frozen=True)
class OverEps(Diagnostic):
    """Robust accuracy against the radius of the attack.

    Attributes:
        attack: name of the attack.
        norm: norm of the threat.
        eps: radii, in [0, 1] pixel units.
        accuracy, interval: label -> robust accuracy, and its 95 % interval, at each radius.
        trained: label -> radius of training, if known.
    """

    attack: str
    norm: str
    eps: tuple[float, ...]
    accuracy: dict[str, list[float]]
    interval: dict[str, list[tuple[float, float]]]
    trained: dict[str, float]

    def data(self) -> dict[str, Any]:
        """The attributes."""
        return {
            "attack": self.attack,
            "norm": self.norm,
            "eps": list(self.eps),
            "accuracy": self.accuracy,
            "interval_95": {k: [list(i) for i in v] for k, v in self.interval.items()},
            "trained": self.trained,
        }

    def draw(self) -> Figure:
        """Lines with 95 % bands, and a vertical line at each training radius."""
        fig, ax = figure(1, height=2.2)
        for k, (label, values) in enumerate(self.accuracy.items()):
            low, high = (100 * np.array(side) for side in zip(*self.interval[label], strict=True))
            ax.fill_between(self.eps, low, high, color=colour(k), alpha=0.15, lw=0)
            ax.plot(self.eps, [100 * v for v in values], color=colour(k), marker=marker(k), label=label)
        for eps in set(self.trained.values()):
            ax.axvline(eps, color="#555555", lw=0.8, ls=":")
            ax.annotate("training", (eps, 101), (2, -2), textcoords="offset points", fontsize=6, va="top")
        ax.set_ylim(-2, 102)
        ax.set_xlabel(f"eps of the attack ({self.norm}, pixel range [0, 1])")
        ax.set_ylabel(f"accuracy under {self.attack} (%)")
        ax.legend()
        return fig


def accuracy_over_eps(
    models: dict[str, nn.Module],
    data: Any,
    threat: Threat,
    *,
    factors: tuple[float, ...] = FACTORS,
    attack: str = "pgd-20",
    trained: dict[str, float] | None = None,
    n: int | None = None,
    seed: int = 0,
) -> OverEps:
    """Measure robust accuracy of models by label at several multiples (`factors`) of a threat's radius.

    Reference: Fast-BAT, Fig. 1; Dynamic AT, Fig. 4.
    """
    chosen = sample(data, n, seed, *models.values())
    limit = 1.0 if isinstance(threat, Linf) else float("inf")
    radii = tuple(sorted({min(limit, f * threat.eps) for f in factors}))
    accuracy: dict[str, list[float]] = {}
    interval: dict[str, list[tuple[float, float]]] = {}
    for label, model in models.items():
        norm = type(threat).__name__
        curve = eps_curve(model, (chosen.x, chosen.y), norm, radii, attack, seed=seed).values()
        accuracy[label] = [score.robust_accuracy for score in curve]
        interval[label] = [score.interval_95 for score in curve]
    return OverEps(attack, type(threat).__name__, radii, accuracy, interval, trained or {})


@dataclass(frozen=True)
class Transfer(Diagnostic):
    """Accuracy of each model on the adversarial points of each other one.

    Attributes:
        attack: name of the attack.
        labels: labels of the models.
        accuracy: (m, m) fractions; rows: model that the points were made on; columns: model that is measured.
    """

    attack: str
    labels: tuple[str, ...]
    accuracy: list[list[float]]

    def data(self) -> dict[str, Any]:
        """The attributes."""
        return {"attack": self.attack, "labels": list(self.labels), "accuracy": self.accuracy}

    def draw(self) -> Figure:
        """A shaded table; the diagonal is the white-box attack."""
        size = len(self.labels)
        fig = Figure(figsize=(COLUMN, 0.9 + 0.38 * size), layout="constrained")
        ax = fig.subplots()
        values = 100 * np.array(self.accuracy)
        ax.imshow(values, cmap="Blues", vmin=0, vmax=100, aspect="auto")
        for i, j in np.ndindex(size, size):
            colour = "white" if values[i, j] > 55 else "#222222"
            weight = "bold" if i == j else "normal"
            ax.text(j, i, f"{values[i, j]:.1f}", ha="center", va="center", color=colour, weight=weight)
        ax.set_xticks(range(size), self.labels, rotation=0 if size < 5 else 30)
        ax.set_yticks(range(size), self.labels)
        ax.grid(visible=False)
        ax.tick_params(length=0)
        ax.set_xlabel(f"accuracy of (%), under {self.attack}")
        ax.set_ylabel("attack made on")
        return fig


def transfer(
    models: dict[str, nn.Module],
    data: Any,
    threat: Threat,
    *,
    attack: str = "pgd-20",
    n: int | None = None,
    seed: int = 0,
) -> Transfer:
    """Attack every model, and measure all models on the adversarial points.

    A model whose accuracy is lower on points made on another model than on its own may mask gradients.
    """
    chosen, rows = sample(data, n, seed, *models.values()), []
    for source in models.values():
        found = clean_scores(source, models, chosen.x, chosen.y, threat, attack, seed=seed)
        rows.append([found[label].clean_accuracy for label in models])
    return Transfer(attack, tuple(models), rows)
