"""The distribution of a run's example weights in each epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from bivallate.errors import UserError
from bivallate.reports.diagnostics.curves import NO_EPOCH
from bivallate.reports.diagnostics.diagnostic import Diagnostic
from bivallate.reports.diagnostics.weights import FLOOR
from bivallate.run.weight_spread import QUANTILES
from bivallate.style import colour, figure, whole_ticks


@dataclass(frozen=True)
class WeightsOverEpochs(Diagnostic):
    """The weights of examples during training, by label of the run (after BiLAW, Fig. 5).

    Attributes:
        epochs: the epochs.
        effective: effective sample size (sum w)^2 / sum w^2, as a fraction of the batch, in each epoch.
        mean: mean of the weights in each epoch.
        quantiles: quantiles, at `QUANTILES`, of the weights divided by the mean of their minibatch; empty for
            an epoch that did not record them.
    """

    epochs: dict[str, list[int]]
    effective: dict[str, list[float]]
    mean: dict[str, list[float]]
    quantiles: dict[str, list[list[float]]]

    def data(self) -> dict[str, Any]:
        """All attributes by name, and the levels of the quantiles."""
        return {
            "epochs": self.epochs,
            "effective": self.effective,
            "mean": self.mean,
            "levels": list(QUANTILES),
            "quantiles": self.quantiles,
        }

    def draw(self) -> Figure:
        """The effective sample size; bands of the middle 90 % and 50 % of the weights, with their median."""
        fig, (left, right) = figure(2, width=2, height=2.1)
        heaviest, lightest, unrecorded = 1.0, 1.0, list[str]()
        for k, (label, epochs) in enumerate(self.epochs.items()):
            marker = "o" if len(epochs) < 3 else ""
            shares = [100 * v for v in self.effective[label]]
            left.plot(epochs, shares, color=colour(k), label=label, marker=marker)
            recorded = [(e, q) for e, q in zip(epochs, self.quantiles[label], strict=True) if q]
            if not recorded:
                unrecorded.append(label)
                continue
            epochs, rows = zip(*recorded, strict=True)
            low, first, middle, third, high = zip(*rows, strict=True)
            right.fill_between(epochs, _floored(low), _floored(high), color=colour(k), alpha=0.15, lw=0)
            right.fill_between(epochs, _floored(first), _floored(third), color=colour(k), alpha=0.3, lw=0)
            right.plot(epochs, _floored(middle), color=colour(k), marker="o" if len(epochs) < 3 else "")
            heaviest, lightest = max(heaviest, *high), min(lightest, *low)
        left.set_ylim(-2, 103)
        left.set_ylabel("effective weights (% of batch)")
        if heaviest > 4 or lightest < 0.05:
            right.set_yscale("log")
        else:
            right.set_ylim(0, 1.1 * heaviest)
        right.set_ylabel("weight / mean")
        if unrecorded:
            words = f"not recorded: {', '.join(unrecorded)}"
            right.text(0.5, 0.02, words, ha="center", fontsize=6, transform=right.transAxes)
        for ax in (left, right):
            ax.set_xlabel("epoch")
            whole_ticks(ax)
        left.legend()
        return fig


@dataclass(frozen=True)
class WeightsByMargin(Diagnostic):
    """The weights of the same training examples against their margins, in several epochs (BiLAW, Fig. 5).

    Attributes:
        label: label of the run.
        epochs: the epochs that are shown.
        margin: for each epoch the margins p_y - max p_k (n,) at the adversarial points of training.
        weight: for each epoch the weights divided by the mean of their minibatch (n,).
        clean: for each epoch the margins at the clean images after the epoch; empty if not recorded.
        rows: for each epoch the rows of the training data.
    """

    label: str
    epochs: list[int]
    margin: list[list[float]]
    weight: list[list[float]]
    clean: list[list[float]]
    rows: list[list[int]]

    def data(self) -> dict[str, Any]:
        """All attributes by name."""
        names = ("label", "epochs", "margin", "weight", "clean", "rows")
        return {name: getattr(self, name) for name in names}

    def draw(self) -> Figure:
        """A panel for each epoch, with common axes."""
        fig, axes = figure(len(self.epochs), width=2, height=1.9, sharex=True, sharey=True, squeeze=False)
        every = [w for weights in self.weight for w in weights]
        for k, ax in enumerate(axes.flat):
            dots = {"ls": "", "marker": ".", "ms": 3, "mew": 0, "alpha": 0.6}
            weights = _floored(self.weight[k])
            if self.clean[k]:
                ax.plot(self.clean[k], weights, color=colour(1), label="clean, after the epoch", **dots)
            ax.plot(self.margin[k], weights, color=colour(0), label="attacked, in training", **dots)
            ax.axhline(1, color="#555555", lw=0.7, ls=":")
            ax.set_title(f"epoch {self.epochs[k]}")
            ax.set_xlim(-1.05, 1.05)
        if max(every) > 4 or min(every) < 0.05:
            axes.flat[0].set_yscale("log")
        else:
            axes.flat[0].set_ylim(0, 1.1 * max(every))
        axes.flat[0].set_ylabel(f"weight / mean, {self.label}")
        fig.supxlabel("margin", fontsize=8)
        handles, labels = axes.flat[-1].get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside upper center", ncols=2, markerscale=3)
        return fig


def weights_by_margin(label: str, lines: list[dict[str, Any]], panels: int = 4) -> WeightsByMargin:
    """Make the result from the lines of metrics.jsonl: the first epoch, the last, and some between.

    Args:
        label: of the run.
        lines: one for each epoch. Its "watched" is row of the training data -> [margin, weight / mean], its
            "watched_clean" row -> margin at the clean image; rows are text. Epochs without are left out.
        panels: number of epochs to show.

    Raises:
        UserError: no epoch has recorded margins and weights.
    """
    watched = [line for line in lines if line.get("watched")]
    if not watched:
        raise UserError("no epoch recorded the margins and weights of single examples: train it anew")
    shown = sorted({round(k * (len(watched) - 1) / max(panels - 1, 1)) for k in range(panels)})
    chosen = [watched[k] for k in shown]
    pairs = [list(line["watched"].values()) for line in chosen]
    return WeightsByMargin(
        label,
        [line["epoch"] for line in chosen],
        [[margin for margin, _ in of_epoch] for of_epoch in pairs],
        [[weight for _, weight in of_epoch] for of_epoch in pairs],
        [list(line.get("watched_clean", {}).values()) for line in chosen],
        [[int(row) for row in line["watched"]] for line in chosen],
    )


def _floored(values: Sequence[float]) -> list[float]:
    return [max(v, FLOOR) for v in values]


def weights_over_epochs(runs: dict[str, list[dict[str, Any]]]) -> WeightsOverEpochs:
    """Make the result from the lines of metrics.jsonl by label.

    Of each line, "effective" is the effective sample size and "weight_mean" the mean weight, both averaged
    over the epoch; "weight_quantiles" may be missing.

    Raises UserError if there are no lines.
    """
    if not any(runs.values()):
        raise UserError(NO_EPOCH)
    return WeightsOverEpochs(
        {label: [line["epoch"] for line in lines] for label, lines in runs.items()},
        {label: [line["effective"] for line in lines] for label, lines in runs.items()},
        {label: [line["weight_mean"] for line in lines] for label, lines in runs.items()},
        {label: [line.get("weight_quantiles", []) for line in lines] for label, lines in runs.items()},
    )
