"""The README's picture of BiLAW's first table, from results/: `python -m benchmarks.results_figure`.

Writes docs/figures/results.svg: accuracy of each method of T-B1 on MNIST at the two-core scale, with 95 %
intervals of the test points.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bivallate.report.style import COLOURS, MARKERS, figure, save, styled

ROOT = Path(__file__).parents[1]
FOLDER, GROUP = ROOT / "results" / "T-B1" / "cpu", "MNIST tiny-CNN linf"
COLUMNS = {"Clean": "clean", "PGD": "PGD-20", "AA": "AutoAttack", "AA Tail-30": "AutoAttack, weakest 30 %"}


def records() -> list[dict[str, Any]]:
    """Seed 0 of the group, the method with the lowest AutoAttack accuracy first; plain training, far to the
    left of all, is in the tables only."""
    found = [json.loads(file.read_text(encoding="utf-8")) for file in FOLDER.glob("*.json")]
    chosen = [r for r in found if r["group"] == GROUP and r["seed"] == 0 and r["row"] != "plain"]
    return sorted(chosen, key=lambda record: record["columns"]["AA"]["value"])


def main() -> None:
    """Draws."""
    with styled():
        save(_drawn(records()), ROOT / "docs" / "figures" / "results", ("svg",))


def _drawn(rows: list[dict[str, Any]]) -> Figure:
    fig, axes = figure(height=0.42 * len(rows) + 0.9)
    for k, (column, label) in enumerate(COLUMNS.items()):
        cells = [record["columns"][column] for record in rows]
        values = [100 * cell["value"] for cell in cells]
        low, high = ([100 * cell["interval_95"][side] for cell in cells] for side in (0, 1))
        heights = [row + 0.27 - 0.18 * k for row in range(len(rows))]
        axes.hlines(heights, low, high, color=COLOURS[k], linewidth=1, alpha=0.6)
        axes.plot(values, heights, MARKERS[k], color=COLOURS[k], label=label, linestyle="none")
    axes.set_yticks(range(len(rows)), [record["row"] for record in rows])
    axes.set_xlabel("accuracy (%), MNIST, eps 0.1")
    axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=2)
    return fig


if __name__ == "__main__":
    main()
