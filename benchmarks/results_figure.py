"""Make the figures and tables of docs/papers.md and README.md: `python -m benchmarks.results_figure`.

They are made from results/ and show each method of a paper's table at the scale of two cores: means over the
available seeds, with 95 % intervals for the sampling of test points. Tables are written between the markers
of the pages, figures into docs/figures/.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bivallate.files import write_text
from bivallate.reproduce.papers.catalogue import find
from bivallate.reproduce.records import read_records
from bivallate.reproduce.rendering import side_by_side
from bivallate.style import COLOURS, MARKERS, figure, save, styled

ROOT = Path(__file__).parents[1]
PAPERS, FRONT = "docs/papers.md", "README.md"


@dataclass(frozen=True)
class Shown:
    """How a paper's table is shown.

    Attributes:
        groups: heading here -> group of the table. columns: heading here -> column of the table.
        best: the column that rows are sorted by. picture: file name of the figure. eps: for the axis.
        pages: that have the table, between the markers of its name.
    """

    table: str
    groups: dict[str, str]
    columns: dict[str, str]
    best: str
    picture: str
    eps: str = ""
    pages: tuple[str, ...] = (PAPERS,)

    @property
    def marks(self) -> tuple[str, str]:
        """The markers before and after the table."""
        name = self.table.lower()
        return f"<!-- {name}:begin -->", f"<!-- {name}:end -->"


SHOWN = (
    Shown(
        "T-F1",
        {"CIFAR-10, 8/255": "CIFAR-10 @8", "CIFAR-10, 16/255": "CIFAR-10 @16"},
        {"SA": "clean", "PGD": "PGD-50-10", "PGD, last epoch": "last epoch's", "AA": "AutoAttack"},
        best="AA",
        pages=(PAPERS, FRONT),
        picture="cifar10",
    ),
    Shown(
        "T-D1",
        {"CIFAR-10, balanced": "balanced"},
        {
            "SA": "clean",
            "RA-PGD": "PGD-20",
            "Tail-30": "PGD-20, weakest 30 %",
            "RA-AA": "AutoAttack",
            "RA-AA, best": "best epoch's AutoAttack",
        },
        best="RA-AA",
        picture="reweighted",
    ),
    Shown(
        "T-Y2",
        {"CIFAR-10, from another network": "CIFAR-10"},
        {"FGSM": "FGSM", "PGD-10": "PGD-10", "PGD-20": "PGD-20", "C&W": "C&W", "AA": "AutoAttack, white-box"},
        best="PGD-20",
        picture="black-box",
    ),
    Shown(
        "T-B2",
        {"CIFAR-10, small-CNN, 0.031": "small-CNN .031"},
        {"Clean": "clean", "PGD": "PGD-20", "AA": "AutoAttack"},
        best="AA",
        picture="learnt-weights",
    ),
    Shown(
        "T-S1",
        {"CIFAR-10, 8/255": "CIFAR-10 @8", "CIFAR-10, 16/255": "CIFAR-10 @16"},
        {
            "SA": "clean",
            "PGD": "PGD-50-10",
            "PGD, last epoch": "last epoch's",
            "AA": "AutoAttack",
            "AA worst class": "AutoAttack, worst class",
        },
        best="AA",
        picture="single-step",
    ),
    Shown(
        "T-C1",
        {"CIFAR-10, 8/255": "balanced"},
        {
            "SA": "clean",
            "RA-PGD": "PGD-20",
            "RA-AA": "AutoAttack",
            "AA worst class": "AutoAttack, worst class",
            "AA Tail-30": "AutoAttack, weakest 30 %",
        },
        best="RA-AA",
        picture="class-wise",
    ),
    Shown(
        "T-B1",
        {"MNIST": "MNIST tiny-CNN linf", "Fashion-MNIST": "F-MNIST tiny-CNN linf"},
        {"Clean": "clean", "PGD": "PGD-20", "AA": "AutoAttack", "AA Tail-30": "AutoAttack, weakest 30 %"},
        best="AA",
        eps=", eps 0.1",
        picture="results",
    ),
)


@cache
def report(table: str) -> dict[str, Any]:
    """The report of a table, from all its records."""
    return side_by_side(find(table), "cpu", read_records(ROOT / "results", table, "cpu"))


def rows(shown: Shown, name: str) -> list[dict[str, Any]]:
    """The rows of a group that have results in its best column, with their training passes; the highest
    first."""
    (group,) = (group for group in report(shown.table)["groups"] if group["group"] == name)
    found = [row for row in group["rows"] if shown.best in row["ours"]]
    return sorted(found, key=lambda row: -row["ours"][shown.best]["value"])


def main() -> None:
    """Draw the figures and write the tables."""
    for shown in SHOWN:
        found = {label: rows(shown, name) for label, name in shown.groups.items()}
        with styled():
            save(_drawn(shown, found), ROOT / "docs" / "figures" / shown.picture, ("svg",))
        for page in shown.pages:
            _put(ROOT / page, shown.marks, tables(shown))


def _put(page: Path, marks: tuple[str, str], text: str) -> None:
    before, rest = page.read_text(encoding="utf-8").split(marks[0])
    write_text(page, "\n".join([before + marks[0], text, marks[1]]) + rest.split(marks[1])[1])


def tables(shown: Shown) -> str:
    """The tables between the markers, as Markdown."""
    found = {label: rows(shown, name) for label, name in shown.groups.items()}
    return "\n\n".join("\n".join(_table(shown, label, entries)) for label, entries in found.items())


def _table(shown: Shown, label: str, found: list[dict[str, Any]]) -> list[str]:
    names = [label, "seeds", "epoch", "passes an example", *shown.columns.values()]
    lines = [f"| {' | '.join(names)} |", "| --- " * len(names) + "|"]
    for row in found:
        chosen = row["weights"]
        epochs = ", ".join(str(entry["epoch"]) for entry in chosen) + f" of {chosen[0]['epochs']}"
        cells = [row["row"], str(len(chosen)), epochs, f"{row['passes']:.0f}"]
        for column in shown.columns:
            entry = row["ours"].get(column)
            if entry is None:
                cells.append("not measured")
                continue
            low, high = (100 * bound for bound in entry["interval_95"])
            interval = f" [{low:.1f}, {high:.1f}]" if column == shown.best or column.startswith("AA") else ""
            cells.append(f"{100 * entry['value']:.1f}%{interval}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _drawn(shown: Shown, found: dict[str, list[dict[str, Any]]]) -> Figure:
    """A panel a group, its methods by their best column; plain training lies far to the left and is left
    out."""
    most = max(len(entries) for entries in found.values())
    width = 2.0 if len(found) > 1 else 1.4
    fig, (panels,) = figure(len(found), height=0.36 * most + 0.9, width=width, squeeze=False)
    for axes, (label, entries) in zip(panels, found.items(), strict=True):
        attacked = [row for row in reversed(entries) if row["row"] != "plain"]
        for k, (column, name) in enumerate(shown.columns.items()):
            cells = {at: row["ours"][column] for at, row in enumerate(attacked) if column in row["ours"]}
            values = [100 * cell["value"] for cell in cells.values()]
            low, high = ([100 * cell["interval_95"][side] for cell in cells.values()] for side in (0, 1))
            above = 0.3 - 0.6 * k / (len(shown.columns) - 1)
            heights = [place + above for place in cells]
            axes.hlines(heights, low, high, color=COLOURS[k], linewidth=1, alpha=0.6)
            axes.plot(values, heights, MARKERS[k], color=COLOURS[k], label=name, linestyle="none")
        axes.set_yticks(range(len(attacked)), [row["row"] for row in attacked])
        axes.set_xlabel(f"accuracy (%), {label}{shown.eps}")
    fig.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(shown.columns))
    return fig


if __name__ == "__main__":
    main()
