"""Draw what example weights do on CIFAR-10 over the epochs: `python -m benchmarks.reweighting_figure`.

From the records of T-D1 in results/, balanced, seed 0: held-out accuracy under PGD-10 (DONE's Fig. 2 is of
its own run), and the effective sample size of the weights in percent. The picture is
docs/figures/reweighting.svg.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bivallate.reproduce.records import Record, read_records
from bivallate.style import COLOURS, COLUMN, save, styled, whole_ticks

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "figures" / "reweighting"
METHODS = "AT", "FAT", "MAIL", "GAIRAT", "DONE-PGD", "DONE-GD", "DONE-ADAM", "DONE-ADAM, r >= 1"
CURVES = {"robust": "robust, held out (%)", "effective": "effective sample size (%)"}


def main() -> None:
    """Draw the picture."""
    with styled():
        records = [r for r in read_records(ROOT / "results", "T-D1", "cpu") if r.group == "balanced"]
        save(drawn([r for r in records if r.seed == 0]), PICTURE, ("svg",))


def drawn(records: list[Record]) -> Figure:
    """Robust accuracy beside effective sample size, a line for each method that has a record."""
    fig = Figure(figsize=(2.1 * COLUMN, 2.4), layout="constrained")
    panels: Any = fig.subplots(1, len(CURVES))
    runs = {record.row: record.entry["training"]["history"] for record in records}
    for panel, (key, label) in zip(panels, CURVES.items(), strict=True):
        for method, colour in zip(METHODS, COLOURS, strict=True):
            history = runs.get(method, [])
            values = [100 * line[key] for line in history]
            style = "--" if ">=" in method else "-"
            panel.plot([line["epoch"] for line in history], values, style, color=colour, label=method)
        whole_ticks(panel)
        panel.set_xlabel("epoch")
        panel.set_ylabel(label)
    panels[1].set_ylim(0, 105)
    fig.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")
    return fig


if __name__ == "__main__":
    main()
