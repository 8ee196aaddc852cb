"""The table of a comparison: for the terminal, as Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from bivallate.quoting import markdown as escaped
from bivallate.terminal import literal_console

if TYPE_CHECKING:
    from bivallate.reports.diagnostics.plane import Plane

SCHEMA = "bivallate-comparison-1"


@dataclass(frozen=True, repr=False)
class Comparison:
    """The result of `compare`.

    Attributes:
        about: settings of the comparison, as plain data.
        columns, cells: heads and cells of the table, as text.
        rows: the rows as plain data.
        notes: texts below the table.
        words: number of leading columns that hold words.
    """

    about: dict[str, Any]
    columns: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]
    rows: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]
    words: int

    @property
    def title(self) -> str:
        """A line that says which evaluations are compared."""
        a = self.about
        points = "different points" if a["n"] is None else f"{a['n']} points"
        return (
            f"{a['attack']} at {_threat_text(a['threat'])}, {a['weights']} weights, "
            f"{a['split']} data, {points}; sorted by {a['sort']}"
        )

    def __repr__(self) -> str:
        return f"<Comparison of {len(self.rows)} rows: {self.title}>"

    def __str__(self) -> str:
        return self.to_markdown()

    def to_json(self) -> dict[str, Any]:
        """The comparison as plain data; accuracies are fractions in [0, 1]."""
        return {"schema": SCHEMA, **self.about, "rows": list(self.rows), "notes": list(self.notes)}

    def to_markdown(self) -> str:
        """The comparison as Markdown: title, table and notes."""

        def line(cells: Sequence[str]) -> str:
            return "| " + " | ".join(escaped(_in_line(cell)) for cell in cells) + " |"

        rule = "|" + "|".join(" --- " if k < self.words else " ---: " for k in range(len(self.columns))) + "|"
        table = [line(self.columns), rule, *map(line, self.cells)]
        notes = (f"{escaped(note)}\n" for note in self.notes)
        return "\n".join([f"**{escaped(self.title)}**", "", *table, "", *notes]).rstrip()

    def plane(self) -> Plane:
        """The rows by mean and worst-class robust accuracy. Raises UserError for a single row."""
        from bivallate.reports.diagnostics.plane import of_rows

        return of_rows(self.about["attack"], self.rows)

    def show(self) -> None:
        """Print title, table and notes to the terminal."""
        console = literal_console()
        console.print(self.title)
        table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False)
        for k, head in enumerate(self.columns):
            table.add_column(head, justify="left" if k < self.words else "right", overflow="fold")
        for row in self.cells:
            table.add_row(*row)
        console.print(table)
        for note in self.notes:
            console.print(note)


def _threat_text(threat: dict[str, Any]) -> str:
    """Norm and radius; of a union those of each threat."""
    if "threats" in threat:
        return "all of " + ", ".join(map(_threat_text, threat["threats"]))
    return f"{threat['kind']} eps {threat['eps']:.6g}"


def _in_line(cell: str) -> str:
    """A cell of several lines as one: all but the first in parentheses."""
    first, *others = cell.split("\n")
    return f"{first} ({', '.join(others)})" if others else first
