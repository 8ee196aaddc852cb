"""Draw when methods overfit catastrophically on CIFAR-10: `python -m benchmarks.overfitting_figure`.

From the records of T-F1 in results/: held-out accuracy under PGD and the alignment of the gradients of the
loss at x and at x + eta (Fast-BAT's Fig. 2), epoch by epoch, for both eps and every seed. The picture is
docs/figures/overfitting.svg.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bivallate.reproduce.records import Record, read_records
from bivallate.style import COLOURS, COLUMN, save, styled, whole_ticks

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "figures" / "overfitting"
PANELS = {"CIFAR-10 @8": "eps 8/255", "CIFAR-10 @16": "eps 16/255"}
METHODS = "FAST-AT", "FAST-AT-GA", "FAST-BAT"  # those of the paper's figure
STYLES = "-", "--", ":"  # of the seeds
CURVES = {"robust": "robust (%)", "sentinel_alignment": "gradients' cosine"}


def main() -> None:
    """Draw the picture."""
    with styled():
        save(drawn(read_records(ROOT / "results", "T-F1", "cpu")), PICTURE, ("svg",))


def drawn(records: list[Record]) -> Figure:
    """Robust accuracy above, alignment below; a column for each eps, a line for each seed."""
    fig = Figure(figsize=(1.6 * COLUMN, 3.4), layout="constrained")
    grid: Any = fig.subplots(len(CURVES), len(PANELS), sharex=True, sharey="row")
    for column, (group, title) in enumerate(PANELS.items()):
        for row, (key, label) in enumerate(CURVES.items()):
            panel = grid[row, column]
            _lines(panel, [record for record in records if record.group == group], key)
            panel.set_ylim(0, 1.05 if key != "robust" else None)
            if column == 0:
                panel.set_ylabel(label)
        grid[0, column].set_title(title)
        grid[-1, column].set_xlabel("epoch")
    fig.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(METHODS))
    return fig


def _lines(panel: Axes, records: list[Record], key: str) -> None:
    whole_ticks(panel)
    for method, colour in zip(METHODS, COLOURS, strict=False):
        runs = [record.entry["training"]["history"] for record in records if record.row == method]
        for seed, history in enumerate(runs):
            values = [100 * line[key] if key == "robust" else line[key] for line in history]
            epochs = [line["epoch"] for line in history]
            panel.plot(epochs, values, STYLES[seed % 3], color=colour, label=None if seed else method)


if __name__ == "__main__":
    main()
