"""Read tables of labels: CSV, TSV or JSON lines, with named columns."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bivallate.data.layout import readable
from bivallate.errors import UserError, listed, nearest
from bivallate.schema import MEGABYTE, parse, read_text

__all__ = ["LabelTable", "TableLine", "is_table", "read_table"]

SUFFIXES = {".csv", ".tsv"}
MOST = 256 * MEGABYTE
WIDEST = 10_000  # columns


@dataclass(frozen=True)
class TableLine:
    """A row of a table: its line number in the file, from 1, and its cells without surrounding spaces."""

    number: int
    cells: list[str]


@dataclass(frozen=True)
class LabelTable:
    """A table of labels. header: names of the columns."""

    path: Path
    header: list[str]
    lines: list[TableLine]

    def column(self, name: str, kind: str) -> int:
        """The position of a column named by the user. Raises UserError that lists the columns."""
        if name not in self.header:
            close = nearest(name, self.header)
            hint = f" (did you mean {close!r}?)" if close else ""
            raise UserError(
                f"{readable(self.path)} has no column {name!r}{hint}: its columns are "
                f"{listed(self.header)}; name another by {kind}_column= (--set data.{kind}_column=NAME)"
            )
        return self.header.index(name)

    def where(self, line: TableLine) -> str:
        """The name of a line, for messages."""
        return f"line {line.number} of {readable(self.path.name)}"


def is_table(path: Path) -> bool:
    """Whether a file may be a table of labels; sample submissions of competitions are not."""
    named = path.suffix.lower() in SUFFIXES or path.name.lower() == "metadata.jsonl"
    return named and "submission" not in path.stem.lower()


def read_table(path: Path) -> LabelTable:
    """Read a table.

    Raises:
        UserError: the file is too large, not UTF-8, empty, or has rows of another length than its header.
    """
    text = read_text(path, "table of labels", MOST)
    return _of_json(path, text) if path.suffix.lower() == ".jsonl" else _of_csv(path, text)


def _of_csv(path: Path, text: str) -> LabelTable:
    first = text.lstrip().partition("\n")[0]
    mark = max(("\t", ",", ";", "|"), key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True, skipinitialspace=True)
    lines: list[TableLine] = []
    try:
        for cells in reader:
            stripped = [cell.strip() for cell in cells]
            if any(stripped):
                lines.append(TableLine(reader.line_num, stripped))
    except csv.Error as error:
        raise UserError(f"{readable(path)}, line {reader.line_num}: {error}") from error
    if not lines:
        raise UserError(f"{readable(path)} is an empty table")
    header = lines[0].cells
    if len(header) > WIDEST:
        raise UserError(f"{readable(path)} has {len(header)} columns: at most {WIDEST} are read")
    twice = next((name for name in header if name and header.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{readable(path)} has two columns {twice!r}: rename one")
    for line in lines:
        if len(line.cells) != len(header):
            raise UserError(
                f"{readable(path)}, line {line.number}: {len(line.cells)} cells where the first line has "
                f"{len(header)}: put text that holds {mark!r} into quotes"
            )
    return LabelTable(path, header, lines[1:])


def _of_json(path: Path, text: str) -> LabelTable:
    rows: dict[int, dict[str, Any]] = {
        number: parse(line, f"{readable(path)}, line {number}", "row", dict[str, Any])
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip()
    }
    header = sorted({key for row in rows.values() for key in row})
    if not header:
        raise UserError(f"{readable(path)} is an empty table")
    lines = [TableLine(number, [_cell(row.get(key)) for key in header]) for number, row in rows.items()]
    return LabelTable(path, header, lines)


def _cell(value: Any) -> str:
    return "" if value is None else str(value).strip()
