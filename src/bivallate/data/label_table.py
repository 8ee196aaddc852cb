"""Read tables of labels: CSV, TSV or JSON lines, with named columns."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bivallate.data.layout import SkippedFiles, readable, split_of
from bivallate.errors import UserError, listed, nearest
from bivallate.schema import MEGABYTE, parse, read_text

__all__ = ["SPLIT_NAMES", "LabelTable", "TableLine", "is_table", "read_table", "split_column", "split_in"]

SPLIT_NAMES = ("split", "subset", "partition", "set")
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


def split_column(table: LabelTable, taken: tuple[int, ...], left: SkippedFiles) -> int | None:
    """The column that gives the split of each row: one with a usual name in which any cell names a split.

    A column with such a name in which no cell does is another thing's, and a note says that it is not read.

    Args:
        taken: columns that are read as something else.
        left: takes the note.

    Raises:
        UserError: a cell of the column names no split, so its image could land in the wrong one.
    """
    usual = [k for k, name in enumerate(table.header) if name.lower() in SPLIT_NAMES and k not in taken]
    for k in usual:
        unread = [line for line in table.lines if split_in(line.cells[k]) is None]
        if len(unread) == len(table.lines):
            continue
        if unread:
            where, cell = table.where(unread[0]), unread[0].cells[k]
            raise UserError(
                f"{where} has {cell!r} in its column {table.header[k]!r}, which names no split: write train, "
                "validation or test, or rename the column if it gives no splits"
            )
        return k
    for k in usual:
        left.says(
            f"{readable(table.path.name)}: the column {table.header[k]!r} is not read as a split, for none "
            "of its cells names train, validation or test"
        )
    return None


def split_in(name: str) -> str | None:
    """The split in a name; None for none or several."""
    try:
        return split_of(name)
    except UserError:  # as in train_test_labels.csv
        return None
