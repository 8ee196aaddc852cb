"""How a run's weights were distributed, epoch by epoch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from bivallate.errors import UserError
from bivallate.report.diagnostics.curves import NO_EPOCH
from bivallate.report.diagnostics.drawn import Drawn
from bivallate.report.diagnostics.weights import FLOOR
from bivallate.report.style import colour, figure
from bivallate.run.spread import QUANTILES


@dataclass(frozen=True)
class WeightsOverEpochs(Drawn):
    """The weights that examples had in training (after BiLAW, Fig. 5).

    Attributes:
        epochs: of each run. effective: (sum w)^2 / (B sum w^2); mean: of the weights; quantiles: of the
            weights divided by the mean of their minibatch, at `QUANTILES`; none for an epoch that did not
            record them. By label.
    """

    epochs: dict[str, list[int]]
    effective: dict[str, list[float]]
    mean: dict[str, list[float]]
    quantiles: dict[str, list[list[float]]]

    def data(self) -> dict[str, Any]:
        """As the attributes."""
        return {
            "epochs": self.epochs,
            "effective": self.effective,
            "mean": self.mean,
            "levels": list(QUANTILES),
            "quantiles": self.quantiles,
        }

    def draw(self) -> Figure:
        """How many examples count; bands for 90 % and for half of the weights, a line for their median."""
        fig, (left, right) = figure(2, width=2, height=2.1)
        heaviest, lightest, silent = 1.0, 1.0, list[str]()
        for k, (label, epochs) in enumerate(self.epochs.items()):
            dot = "o" if len(epochs) < 3 else ""
            shares = [100 * v for v in self.effective[label]]
            left.plot(epochs, shares, color=colour(k), label=label, marker=dot)
            known = [(e, q) for e, q in zip(epochs, self.quantiles[label], strict=True) if q]
            if not known:
                silent.append(label)
                continue
            epochs, rows = zip(*known, strict=True)
            low, first, middle, third, high = zip(*rows, strict=True)
            right.fill_between(epochs, _drawn(low), _drawn(high), color=colour(k), alpha=0.15, lw=0)
            right.fill_between(epochs, _drawn(first), _drawn(third), color=colour(k), alpha=0.3, lw=0)
            right.plot(epochs, _drawn(middle), color=colour(k), marker="o" if len(epochs) < 3 else "")
            heaviest, lightest = max(heaviest, *high), min(lightest, *low)
        left.set_ylim(-2, 103)
        left.set_ylabel("effective weights (% of batch)")
        if heaviest > 4 or lightest < 0.05:
            right.set_yscale("log")
        else:
            right.set_ylim(0, 1.1 * heaviest)
        right.set_ylabel("weight / mean")
        if silent:
            words = f"not recorded: {', '.join(silent)}"
            right.text(0.5, 0.02, words, ha="center", fontsize=6, transform=right.transAxes)
        for ax in (left, right):
            ax.set_xlabel("epoch")
            ax.xaxis.get_major_locator().set_params(integer=True)
        left.legend()
        return fig


def _drawn(values: tuple[float, ...]) -> list[float]:
    return [max(v, FLOOR) for v in values]


def weights_over_epochs(runs: dict[str, list[dict[str, Any]]]) -> WeightsOverEpochs:
    """From the lines of metrics.jsonl, by label."""
    if not any(runs.values()):
        raise UserError(NO_EPOCH)
    return WeightsOverEpochs(
        {label: [line["epoch"] for line in lines] for label, lines in runs.items()},
        {label: [line["effective"] for line in lines] for label, lines in runs.items()},
        {label: [line["weight_mean"] for line in lines] for label, lines in runs.items()},
        {label: [line.get("weight_quantiles", []) for line in lines] for label, lines in runs.items()},
    )
