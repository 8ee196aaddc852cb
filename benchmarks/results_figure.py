"""The picture and tables of T-B1 in docs/papers.md, from results/: `python -m benchmarks.results_figure`.

Writes docs/figures/results.svg and the tables between the marks of docs/papers.md: each method of T-B1 at the
two-core scale, means over the seeds there are, with 95 % intervals of the test points.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bivallate.files import write_text
from bivallate.reproduce.papers.catalogue import find
from bivallate.reproduce.records import read_records
from bivallate.reproduce.rendering import side_by_side
from bivallate.style import COLOURS, MARKERS, figure, save, styled

ROOT = Path(__file__).parents[1]
GROUPS = {"MNIST": "MNIST tiny-CNN linf", "Fashion-MNIST": "F-MNIST tiny-CNN linf"}
COLUMNS = {"Clean": "clean", "PGD": "PGD-20", "AA": "AutoAttack", "AA Tail-30": "AutoAttack, weakest 30 %"}
PAGE = ROOT / "docs" / "papers.md"
MARKS = "<!-- t-b1:begin -->", "<!-- t-b1:end -->"


def rows(name: str) -> list[dict[str, Any]]:
    """A group's rows that have results, with the passes of their training; the highest AutoAttack accuracy
    first."""
    records = read_records(ROOT / "results", "T-B1", "cpu")
    report = side_by_side(find("T-B1"), "cpu", records)
    (group,) = (group for group in report["groups"] if group["group"] == name)
    found = [row for row in group["rows"] if row["ours"]]
    return sorted(found, key=lambda row: -row["ours"]["AA"]["value"])


def main() -> None:
    """Draws and writes."""
    found = {label: rows(name) for label, name in GROUPS.items()}
    with styled():
        save(_drawn(found), ROOT / "docs" / "figures" / "results", ("svg",))
    before, rest = PAGE.read_text(encoding="utf-8").split(MARKS[0])
    write_text(PAGE, "\n".join([before + MARKS[0], tables(found), MARKS[1]]) + rest.split(MARKS[1])[1])


def tables(found: dict[str, list[dict[str, Any]]]) -> str:
    """What stands between the marks."""
    return "\n\n".join("\n".join(_table(label, entries)) for label, entries in found.items())


def _table(label: str, found: list[dict[str, Any]]) -> list[str]:
    names = [label, "seeds", "epoch", "passes an example", *COLUMNS.values()]
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


def _drawn(found: dict[str, list[dict[str, Any]]]) -> Figure:
    """A panel a data set, its methods by AutoAttack; plain training lies far to the left and is left out."""
    most = max(len(entries) for entries in found.values())
    fig, panels = figure(len(found), height=0.36 * most + 0.9, width=2.0)
    for axes, (label, entries) in zip(panels, found.items(), strict=True):
        attacked = [row for row in reversed(entries) if row["row"] != "plain"]
        for k, (column, name) in enumerate(COLUMNS.items()):
            cells = [row["ours"][column] for row in attacked]
            values = [100 * cell["value"] for cell in cells]
            low, high = ([100 * cell["interval_95"][side] for cell in cells] for side in (0, 1))
            heights = [place + 0.27 - 0.18 * k for place in range(len(attacked))]
            axes.hlines(heights, low, high, color=COLOURS[k], linewidth=1, alpha=0.6)
            axes.plot(values, heights, MARKERS[k], color=COLOURS[k], label=name, linestyle="none")
        axes.set_yticks(range(len(attacked)), [row["row"] for row in attacked])
        axes.set_xlabel(f"accuracy (%), {label}, eps 0.1")
    fig.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(COLUMNS))
    return fig


if __name__ == "__main__":
    main()
