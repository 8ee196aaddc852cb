"""The README's picture and table of T-B1, from results/: `python -m benchmarks.results_figure`.

Writes docs/figures/results.svg and the table between the markers of README.md: each method of T-B1 on MNIST
at the two-core scale, means over the seeds there are, with 95 % intervals of the test points.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bivallate.files import write_text
from bivallate.report.style import COLOURS, MARKERS, figure, save, styled
from bivallate.reproduce.catalogue import find
from bivallate.reproduce.records import of_cell, read_records
from bivallate.reproduce.rendering import side_by_side

ROOT = Path(__file__).parents[1]
GROUP = "MNIST tiny-CNN linf"
COLUMNS = {"Clean": "clean", "PGD": "PGD-20", "AA": "AutoAttack", "AA Tail-30": "AutoAttack, weakest 30 %"}
MARKS = "<!-- t-b1:begin -->", "<!-- t-b1:end -->"


def rows() -> list[dict[str, Any]]:
    """The group's rows that have results, with the passes of their training; the highest AutoAttack accuracy
    first."""
    records = read_records(ROOT / "results", "T-B1", "cpu")
    report = side_by_side(find("T-B1"), "cpu", records)
    (group,) = (group for group in report["groups"] if group["group"] == GROUP)
    found = [row for row in group["rows"] if row["ours"]]
    for row in found:
        training = of_cell(records, row["row"], GROUP)[0].entry["training"]
        row["passes"] = training["forward_per_row"] + training["backward_per_row"]
    return sorted(found, key=lambda row: -row["ours"]["AA"]["value"])


def main() -> None:
    """Draws and writes."""
    found = rows()
    attacked = [row for row in reversed(found) if row["row"] != "plain"]  # far to the left of all others
    with styled():
        save(_drawn(attacked), ROOT / "docs" / "figures" / "results", ("svg",))
    page = ROOT / "README.md"
    before, rest = page.read_text(encoding="utf-8").split(MARKS[0])
    write_text(page, "\n".join([before + MARKS[0], *_table(found), MARKS[1]]) + rest.split(MARKS[1])[1])


def _table(found: list[dict[str, Any]]) -> list[str]:
    names = ["method", "seeds", "epoch", "passes an example", *COLUMNS.values()]
    lines = [f"| {' | '.join(names)} |", "| --- " * len(names) + "|"]
    for row in found:
        chosen = row["weights"]
        epochs = ", ".join(str(entry["epoch"]) for entry in chosen) + f" of {chosen[0]['epochs']}"
        cells = [row["row"], str(len(chosen)), epochs, f"{row['passes']:.0f}"]
        for column in COLUMNS:
            entry = row["ours"][column]
            low, high = (100 * bound for bound in entry["interval_95"])
            interval = f" [{low:.1f}, {high:.1f}]" if column.startswith("AA") else ""
            cells.append(f"{100 * entry['value']:.1f}%{interval}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _drawn(found: list[dict[str, Any]]) -> Figure:
    fig, axes = figure(height=0.42 * len(found) + 0.9)
    for k, (column, label) in enumerate(COLUMNS.items()):
        cells = [row["ours"][column] for row in found]
        values = [100 * cell["value"] for cell in cells]
        low, high = ([100 * cell["interval_95"][side] for cell in cells] for side in (0, 1))
        heights = [place + 0.27 - 0.18 * k for place in range(len(found))]
        axes.hlines(heights, low, high, color=COLOURS[k], linewidth=1, alpha=0.6)
        axes.plot(values, heights, MARKERS[k], color=COLOURS[k], label=label, linestyle="none")
    axes.set_yticks(range(len(found)), [row["row"] for row in found])
    axes.set_xlabel("accuracy (%), MNIST, eps 0.1")
    axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=2)
    return fig


if __name__ == "__main__":
    main()
