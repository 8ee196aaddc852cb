"""Parquet files in the hub's image layout: their labels, and their encoded images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bivallate.data.classes import numbered_from_one, positions, unknown_class
from bivallate.data.columns import NoColumn, columns, is_text
from bivallate.data.decode import Encoded
from bivallate.data.layout import readable
from bivallate.data.reading import Reading
from bivallate.data.row_groups import Group, RowGroups, open_file, undamaged
from bivallate.errors import UserError

__all__ = ["ParquetPart"]


@dataclass(frozen=True)
class ParquetPart:
    """The rows of one split, in files one after the other."""

    files: list[Path]

    def key(self) -> tuple[str, ...]:
        """What determines the labels besides the files: that names are matched by name."""
        return ("by name",)

    def read(self, reading: Reading, classes: list[str] | None) -> Encoded:
        """The encoded images; class names must be among `classes`, or are those of the first file."""
        opened = [open_file(path) for path in self.files]
        found = [columns(file, path, reading) for file, path in zip(opened, self.files, strict=True)]
        more = len(self.files) - 1
        title = readable(self.files[0].name) + (f" and {more} more" if more else "")
        if not sum(file.metadata.num_rows for file in opened):
            raise UserError(f"{self.files[0]} holds no rows")
        groups = [
            Group(path, k, column.image, file.metadata.row_group(k).num_rows)
            for path, file, column in zip(self.files, opened, found, strict=True)
            for k in range(file.num_row_groups)
        ]
        blocks = RowGroups([group for group in groups if group.rows])
        parts = [_labels(p, f, c.label) for p, f, c in zip(self.files, opened, found, strict=True)]
        declared = [column.names for column in found]
        labels, names = _number(parts, declared, classes, reading, blocks.where, title)
        return Encoded(title, labels, names, blocks)

    def says(self, reading: Reading) -> str:
        """The kind of the labels, by the first file: "text", "named numbers" or "numbers"."""
        file = open_file(self.files[0])
        column = columns(file, self.files[0], reading)
        kind = file.schema_arrow.field(column.label).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        return "text" if is_text(kind) else "named numbers" if column.names else "numbers"

    def hidden(self, reading: Reading) -> bool:
        """Whether all labels are hidden, as in competitions: no column, or all are -1 or missing."""
        rows = 0
        for path in self.files:
            file = open_file(path)
            try:
                labels = _labels(path, file, columns(file, path, reading).label)
            except NoColumn:
                return True
            rows += len(labels)
            told = labels.drop_null()
            if len(told) and (is_text(told.type) or int(told.to_numpy().max()) >= 0):
                return False
        return rows > 0


def _labels(path: Path, file: pq.ParquetFile, column: str) -> pa.ChunkedArray:
    with undamaged(path):
        labels = file.read(columns=[column]).column(0)
    if pa.types.is_dictionary(labels.type):
        labels = labels.cast(labels.type.value_type)
    if pa.types.is_integer(labels.type) or pa.types.is_null(labels.type):
        try:
            return labels.cast(pa.int64())
        except pa.ArrowInvalid as error:  # unsigned numbers beyond 2^63
            raise UserError(f"{path}: label column {column!r}: {error}") from None
    if not is_text(labels.type):
        raise UserError(
            f"{path}: label column {column!r} holds {labels.type}, not integers 0, 1, ... or class names"
        )
    return labels


def _number(
    parts: Sequence[pa.ChunkedArray],
    declared: list[list[str]],
    classes: list[str] | None,
    reading: Reading,
    where: Callable[[int], str],
    title: str,
) -> tuple[np.ndarray, list[str]]:
    """Number the labels of a column, as (labels, names).

    Null and empty text become -1. Text is stripped of spaces and matched by name. Numbers of a file that
    names its classes are matched by these names; other numbers stay as they are.

    The names are the given ones, else those of the first file that declares any, else, for text, all texts in
    alphabetical order.
    """
    texts = [is_text(part.type) for part in parts]
    if any(texts) != all(texts):
        raise UserError(f"{title}: the label column holds text in some files and integers in others")
    names = classes or next(filter(None, declared), [])
    if not texts[0]:
        known = [part.fill_null(-1).to_numpy() for part in parts]
        start, labels = 0, []
        for numbers, own in zip(known, declared, strict=True):
            _check_numbers(numbers, own or names, lambda row, start=start: where(start + row), title)
            labels.append(_by_name(numbers, own, names, lambda row, start=start: where(start + row), title))
            start += len(numbers)
        return np.concatenate(labels), names
    strings = [(value or "").strip() for part in parts for value in part.to_pylist()]
    own = sorted({s for s in strings if s})
    if not names and reading.on_bad != "convert":
        some = ", ".join(map(repr, own[:3]))
        raise UserError(
            f"{title}: the labels are text ({some}, ...): load with on_bad='convert' to number these "
            f"{len(own)} names in alphabetical order (--set data.on_bad=convert)"
        )
    names = names or own
    number = dict(zip(own, positions(own, names), strict=True))
    for row, text in enumerate(strings):
        if text and number[text] < 0:
            raise UserError(f"{title}: {where(row)} has the label {text!r}, which is no class name")
    return np.array([number.get(s, -1) for s in strings], np.int64), names


def _check_numbers(numbers: np.ndarray, names: list[str], where: Callable[[int], str], title: str) -> None:
    outside = (numbers >= (len(names) if names else np.iinfo(np.int64).max)) | (numbers < -1)
    if outside.any():
        row = int(outside.argmax())
        span = f"the {len(names)} classes 0 to {len(names) - 1}" if names else "0, 1, ..."
        hint = numbered_from_one(numbers, len(names))
        raise UserError(f"{title}: {where(row)} has the label {numbers[row]}, outside {span}{hint}")


def _by_name(
    numbers: np.ndarray, own: list[str], names: list[str], where: Callable[[int], str], title: str
) -> np.ndarray:
    """Renumber the labels of a file by `names`, if it has the names in another order."""
    if not own or own == names:
        return numbers
    place = np.array([*positions(own, names), -1])  # -1 stays -1
    lost = (place[numbers] < 0) & (numbers >= 0)
    if lost.any():
        row = int(lost.argmax())
        raise unknown_class(f"{title}: {where(row)}", own[numbers[row]], names, "the other data have")
    return place[numbers]
