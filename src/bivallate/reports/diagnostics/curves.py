"""Learning curves of one or several runs: loss, held-out accuracies, weights, learning rate, temperature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from bivallate.errors import UserError
from bivallate.reports.diagnostics.diagnostic import Diagnostic
from bivallate.run.progress import attacks
from bivallate.style import COLUMN, colour, whole_ticks

NO_EPOCH = "no epoch was finished and recorded: train for one at least"

History = Sequence[Mapping[str, Any]]

STRONGEST = {"strongest_linf": "Linf", "strongest_l2": "L2", "strongest_l1": "L1"}
STYLES = "-", (0, (3, 1.5)), (0, (1, 1))  # of the quantities that share a panel


@dataclass(frozen=True)
class Panel:
    """A panel of the figure: a quantity of metrics.jsonl, its label with unit, and how to draw it."""

    key: str
    label: str
    factor: float = 1.0
    log: bool = False
    whole: bool = False  # an accuracy: the axis is from 0 to 100
    cosine: bool = False  # the axis ends at 1, and begins at 0 or below
    shared: tuple[tuple[str, str], ...] = ()  # several quantities, with their names in the legend

    @property
    def quantities(self) -> tuple[str, ...]:
        """What it draws, the most important first."""
        return tuple(key for key, _ in self.shared) or (self.key,)


PANELS = (
    Panel("loss", "training loss (nats)"),
    Panel("clean", "held-out clean (%)", 100, whole=True),
    Panel(
        "robust",
        "robust accuracy (%)",
        100,
        whole=True,
        shared=(("robust", "held-out"), ("train_robust", "training attack")),
    ),
    Panel(
        "strongest",
        "strongest threat (%)",
        100,
        whole=True,
        shared=tuple(STRONGEST.items()),
    ),
    Panel("effective", "effective weights (%)", 100, whole=True),
    Panel("lr", "learning rate"),
    Panel("temperature", "temperature r (nats)", log=True),
    Panel(
        "sentinel_pgd",
        "sentinel (%)",
        100,
        whole=True,
        shared=(("sentinel_pgd", "PGD"), ("sentinel_fgsm", "FGSM")),
    ),
    Panel("sentinel_alignment", "gradients' cosine", cosine=True),
)


def shown(line: Mapping[str, Any], key: str) -> bool:
    """Whether an epoch has this quantity; without an attack its training accuracy is not a robust one."""
    return line.get(key) is not None and (key != "train_robust" or attacks(line))


@dataclass(frozen=True)
class LearningCurves(Diagnostic):
    """Quantities of training by epoch.

    Attributes:
        runs: label -> lines of metrics.jsonl.
        keys: keys of the panels to draw; quantities that no run has recorded are left out.
    """

    runs: dict[str, list[dict[str, Any]]]
    keys: tuple[str, ...] = tuple(p.key for p in PANELS)

    @property
    def panels(self) -> list[Panel]:
        """The panels for which a run has recorded values."""
        return [p for p in PANELS if p.key in self.keys and any(map(self._recorded, p.quantities))]

    def _recorded(self, key: str) -> bool:
        return any(shown(line, key) for history in self.runs.values() for line in history)

    def data(self) -> dict[str, Any]:
        """Label -> quantity -> values; the epochs are the quantity "epoch"."""
        wanted = ["epoch", *(key for panel in self.panels for key in panel.quantities)]
        return {
            label: {key: [line.get(key) for line in history] for key in wanted}
            for label, history in self.runs.items()
        }

    def draw(self) -> Figure:
        """A panel for each quantity with a coloured line for each run."""
        panels = self.panels
        columns = 1 if len(panels) == 1 else 2
        rows = -(-len(panels) // columns)
        fig = Figure(figsize=(COLUMN * (1 if columns == 1 else 2), 1.75 * rows + 0.25), layout="constrained")
        grid = fig.subplots(rows, columns, squeeze=False)
        axes = [ax for row in grid for ax in row]
        for ax, panel in zip(axes, panels, strict=False):
            self._panel(ax, panel)
        for ax in axes[len(panels) :]:
            ax.remove()
        if len(self.runs) > 1:
            handles, labels = axes[0].get_legend_handles_labels()
            fig.legend(handles, labels, loc="outside upper left", ncols=min(len(labels), 5))
        return fig

    def _panel(self, ax: Any, panel: Panel) -> None:
        for k, (label, history) in enumerate(self.runs.items()):
            shade = colour(k)
            for key, style in reversed([*zip(panel.quantities, STYLES, strict=False)]):
                points = [(line["epoch"], line[key]) for line in history if shown(line, key)]
                if points:
                    values = [panel.factor * value for _, value in points]
                    name = label if style == STYLES[0] else None
                    dot = "o" if len(points) < 3 else ""
                    ax.plot([e for e, _ in points], values, color=shade, ls=style, label=name, marker=dot)
            for line in history:
                if any(alarm.get("rolled_back") for alarm in line.get("alarms", [])):
                    ax.axvline(line["epoch"], color=shade, lw=0.6, ls=":")
        if panel.log:
            ax.set_yscale("log")
        if panel.whole:
            ax.set_ylim(-2, 102)
        if panel.cosine:
            ax.set_ylim(min(-0.02, ax.get_ylim()[0]), 1.02)
        ax.set_xlabel("epoch")
        ax.set_ylabel(panel.label)
        whole_ticks(ax)
        if panel.shared:
            styles = [
                ax.plot([], [], color="#555555", ls=style, label=name)[0]
                for (key, name), style in zip(panel.shared, STYLES, strict=False)
                if self._recorded(key)
            ]
            ax.legend(handles=styles, loc="best")


def learning_curves(runs: Mapping[str, History], keys: Sequence[str] = ()) -> LearningCurves:
    """Make the curves of runs by label; `keys` selects panels by their `Panel.key`.

    Raises UserError if no run has finished an epoch.
    """
    lines = {label: [dict(line) for line in history] for label, history in runs.items()}
    if not any(lines.values()):
        raise UserError(NO_EPOCH)
    return LearningCurves(lines, tuple(keys) or LearningCurves.keys)
