"""Folders of images with labels in a table: `metadata.csv`, `labels.csv`, `train.csv`."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from bivallate.data.classes import positions, unknown_class
from bivallate.data.dataset import digest
from bivallate.data.decode import Encoded
from bivallate.data.folders import Files
from bivallate.data.label_table import (
    SPLIT_NAMES,
    LabelTable,
    TableLine,
    is_table,
    read_table,
    split_column,
    split_in,
)
from bivallate.data.layout import Folder, SkippedFiles, readable
from bivallate.data.reading import Reading
from bivallate.errors import UserError, listed

__all__ = ["TablePart", "find_tables"]

FILE_NAMES = ("file_name", "filename", "file", "image", "img", "image_path", "path")
LABEL_NAMES = (
    *("label", "labels", "class", "class_name", "classname", "label_name", "class_id", "target", "category"),
    *("y", "cls", "breed", "species", "diagnosis"),
)
WHOLE = re.compile(r"-?[0-9]{1,18}(\.0+)?")  # programs write 1.0 for 1 if a column has empty cells
TRIED = 200  # rows from which the column of the images is recognised
SHOWN = 5


@dataclass(frozen=True)
class LabelledRow:
    """An image, its label in the table, and the name of the table's line."""

    path: Path
    label: str
    where: str


@dataclass(frozen=True)
class TablePart:
    """The rows of one split.

    Attributes:
        folder: of the images.
        table: name, for messages.
        rows: in the table's order.
        numbers: whether the labels of all splits are whole numbers.
    """

    folder: Path
    table: str
    rows: tuple[LabelledRow, ...]
    numbers: bool

    @property
    def files(self) -> list[Path]:
        """In the order of the rows."""
        return [row.path for row in self.rows]

    def key(self) -> tuple[str, ...]:
        """What determines the labels besides the files: the table's labels."""
        return ("table", digest(*(row.label for row in self.rows)))

    def hidden(self) -> bool:
        """Whether all labels are missing, as in the test data of competitions."""
        return all(row.label in ("", "-1", "-1.0") for row in self.rows)

    def read(self, reading: Reading, classes: list[str] | None) -> Encoded:
        """The encoded images; empty labels are -1, text is numbered by `classes`, else alphabetically."""
        labels, names = self._numbers() if self.numbers else self._names(classes)
        blocks = Lines(self.folder, self.files, [row.where for row in self.rows])
        return Encoded(self.table, labels, names, blocks)

    def _numbers(self) -> tuple[np.ndarray, list[str]]:
        found = [int(row.label.partition(".")[0]) if row.label else -1 for row in self.rows]
        for row, label in zip(self.rows, found, strict=True):
            if label < -1:
                raise UserError(f"{row.where} has the label {label}, outside 0, 1, ...")
        return np.array(found, np.int64), []

    def _names(self, classes: list[str] | None) -> tuple[np.ndarray, list[str]]:
        own = sorted({row.label for row in self.rows if row.label})
        names = classes or own
        number = dict(zip(own, positions(own, names), strict=True))
        for row in self.rows:
            if row.label and number[row.label] < 0:
                raise unknown_class(row.where, row.label, names, "the training data has")
        return np.array([number.get(row.label, -1) for row in self.rows], np.int64), list(names)


@dataclass(frozen=True)
class Lines(Files):
    """Files named by the lines of a table."""

    lines: list[str]

    def where(self, row: int) -> str:
        """The line and its file."""
        return f"{self.lines[row]} ({readable(self.files[row].relative_to(self.folder))})"


class NamedImages:
    """The images below a folder, by the names that a table may use; no other file is opened."""

    def __init__(self, root: Folder) -> None:
        self.root = root.path
        self.paths: dict[str, Path] = {}
        self.names: dict[str, list[Path]] = defaultdict(list)
        for path in root.images:
            place = path.relative_to(root.path).as_posix()
            self.paths[place] = path
            for name in {path.name, path.stem}:
                self.names[name].append(path)
        self.stems = {place.rpartition(".")[0]: path for place, path in self.paths.items()}

    def find(self, name: str, table: Path) -> list[Path]:
        """The files that a name in a table may mean, with or without suffix.

        The name is a path below the table's folder or the root, else the name of a file anywhere below.
        """
        if not name:
            return []
        plain = PurePosixPath(name.replace("\\", "/"))
        below = table.parent.relative_to(self.root) / plain
        for place in (below.as_posix(), plain.as_posix()):
            if (path := self.paths.get(place) or self.stems.get(place)) is not None:
                return [path]
        return self.names.get(plain.name, [])


def find_tables(root: Folder, left: SkippedFiles, reading: Reading) -> dict[str, TablePart]:
    """Find the images that tables of labels name, by split; empty if no table names any.

    The split of a row is named by a column (`split`), else by the table's name, else by the nearest folder
    above the image that names one. A row without any is training data.

    Raises:
        UserError: a missing image, one with two labels, a cell of the split column that names no split, or a
            column that the user must choose; the message names table and line.
    """
    images = NamedImages(root)
    read = [read_table(path) for path in root.walk() if is_table(path)] if images.paths else []
    tables = [_headed(table, images) for table in read]
    found = [(t, column) for t in tables if (column := _image_column(t, images, reading)) is not None]
    parts: dict[str, list[LabelledRow]] = {}
    seen: dict[Path, LabelledRow] = {}
    for table, column in found:
        label = _label_column(table, column, reading, alone=len(found) == 1)
        if label is None:
            left("tables without labels", table.path)
            continue
        for split, row in _rows(table, column, label, images, reading, left):
            if _new(row, seen, left):
                parts.setdefault(split, []).append(row)
    if not parts and found:
        raise _no_label(found[0][0])
    if not parts:
        return {}
    used = {readable(table.path.name) for table, _ in found}
    left.files([p for p in root.walk() if readable(p.name) not in used and p not in images.paths.values()])
    for path in images.paths.values():
        if path not in seen:
            left("images that no table of labels names", path)
    numbers = all(WHOLE.fullmatch(row.label) for rows in parts.values() for row in rows if row.label)
    title = f"{readable(root.path.name)}/{', '.join(sorted(used))}"
    return {split: TablePart(root.path, title, tuple(rows), numbers) for split, rows in parts.items()}


def _headed(table: LabelTable, images: NamedImages) -> LabelTable:
    """Number the columns of a table without header: its first line names an image."""
    known = {*FILE_NAMES, *LABEL_NAMES, *SPLIT_NAMES}
    if not any(images.find(name, table.path) for name in table.header if name.lower() not in known):
        return table
    names = [f"column {k}" for k in range(1, len(table.header) + 1)]
    return LabelTable(table.path, names, [TableLine(1, table.header), *table.lines])


def _new(row: LabelledRow, seen: dict[Path, LabelledRow], left: SkippedFiles) -> bool:
    """Whether a row's image is named for the first time. Raises UserError if it had another label."""
    earlier = seen.setdefault(row.path, row)
    if earlier is row:
        return True
    if earlier.label != row.label:
        raise UserError(
            f"{earlier.where} and {row.where} give {readable(row.path.name)} two labels, {earlier.label!r} "
            f"and {row.label!r}: an image has one class here"
        )
    left("rows that name an image again", row.path)
    return False


def _image_column(table: LabelTable, images: NamedImages, reading: Reading) -> int | None:
    """The column whose cells are names of images; None if there is none."""
    if reading.image_column is not None and reading.image_column in table.header:
        return table.header.index(reading.image_column)
    tried = table.lines[:TRIED]
    named = [[images.find(line.cells[k], table.path) for line in tried] for k in range(len(table.header))]
    hits = [len({path for paths in column for path in paths}) for column in named]
    usual = {k for k, name in enumerate(table.header) if name.lower() in LABEL_NAMES}
    likely = [k for k in range(len(hits)) if k not in usual] or [*range(len(hits))]
    # numeric labels may be names of images too, but only of a few different ones
    most = max(hits[k] for k in likely)
    if not most:
        known = [k for k in likely if table.header[k].lower() in FILE_NAMES]
        return known[0] if known and tried else None
    best = [k for k in likely if hits[k] == most]
    if any(named[k] != named[best[0]] for k in best):
        raise _choose("image", [table.header[k] for k in best], table)
    return best[0]


def _label_column(table: LabelTable, image: int, reading: Reading, *, alone: bool) -> int | None:
    """The column of the labels; None for a table without labels, if there are other tables.

    Raises:
        UserError: there are several candidates, or none.
    """
    if reading.label_column is not None:
        known = alone or reading.label_column in table.header
        return table.column(reading.label_column, "label") if known else None
    others = [k for k, name in enumerate(table.header) if k != image and name.lower() not in SPLIT_NAMES]
    usual = [k for k in others if table.header[k].lower() in LABEL_NAMES]
    if not usual and not alone:
        return None
    candidates = usual or (others if len(others) == 1 else [])
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise _choose("label", [table.header[k] for k in candidates], table)
    raise _no_label(table)


def _no_label(table: LabelTable) -> UserError:
    return UserError(
        f"{readable(table.path)}: which column is the label? Its columns are {listed(table.header)}; name "
        "it by label_column= (--set data.label_column=NAME)"
    )


def _choose(kind: str, names: list[str], table: LabelTable) -> UserError:
    return UserError(
        f"{readable(table.path)} has {len(names)} columns that could be the {kind}: {', '.join(names)}; "
        f"choose one by {kind}_column= (--set data.{kind}_column={names[0]})"
    )


def _rows(
    table: LabelTable, column: int, label: int, images: NamedImages, reading: Reading, left: SkippedFiles
) -> Iterable[tuple[str, LabelledRow]]:
    """Yield (split, row) of each line whose image exists."""
    split_at = split_column(table, (column, label), left)
    lacking: list[TableLine] = []
    for line in table.lines:
        name = line.cells[column]
        paths = images.find(name, table.path)
        if len(paths) > 1:
            listed = ", ".join(readable(path.relative_to(images.root)) for path in paths[:3])
            raise UserError(f"{table.where(line)}: {name!r} may be {listed}: give the path below the folder")
        if not paths:
            lacking.append(line)
            continue
        told = line.cells[split_at] if split_at is not None else table.path.stem
        above = reversed(paths[0].relative_to(images.root).parent.parts)
        split = next((kind for place in (told, *above) if (kind := split_in(place))), "train")
        yield split, LabelledRow(paths[0], line.cells[label], table.where(line))
    if lacking and reading.on_bad != "skip":
        some = ", ".join(f"line {line.number} ({line.cells[column]!r})" for line in lacking[:SHOWN])
        raise UserError(
            f"{readable(table.path)}: {len(lacking)} of {len(table.lines)} rows name no image below "
            f"{readable(images.root)}: {some}. Add the images, or load with on_bad='skip' to leave these "
            "rows out (--set data.on_bad=skip)"
        )
    if lacking:
        left.says(f"{readable(table.path.name)}: {len(lacking)} rows name no image and are left out")
