"""Parquet files in the hub's image layout: their columns, their labels, their encoded images."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bivallate.data.classes import from_one, places, unknown_class
from bivallate.data.decode import Encoded
from bivallate.data.layout import readable
from bivallate.data.reading import Reading
from bivallate.data.row_groups import Group, RowGroups, open_file, undamaged
from bivallate.errors import UserError

__all__ = ["ParquetPart"]

IMAGE_COLUMNS = ("image", "img", "images", "png", "jpg", "jpeg", "webp", "pixel_values")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target", "y", "cls", "category")


@dataclass(frozen=True)
class _Columns:
    image: str
    label: str
    names: list[str]


def _columns(file: pq.ParquetFile, path: Path, reading: Reading) -> _Columns:
    """Which columns hold images and labels: as given, else by the hub's metadata, else by name and type.

    Raises:
        UserError: if there is none, or several between which only the user can choose.
    """
    schema = file.schema_arrow
    try:
        meta = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = {name: f for name, f in meta["info"]["features"].items() if isinstance(f, dict)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        features = {}
    holds = [field.name for field in schema if _holds_images(field.type)]
    fitting = {
        "image": (IMAGE_COLUMNS, "Image", [*holds]),
        "label": (LABEL_COLUMNS, "ClassLabel", [n for n in schema.names if n in LABEL_COLUMNS]),
    }
    chosen: dict[str, str] = {}
    for kind, (usual, declared, fits) in fitting.items():
        given = reading.image_column if kind == "image" else reading.label_column
        marked = [n for n in schema.names if features.get(n, {}).get("_type") == declared]
        chosen[kind] = given or _pick(kind, marked or fits, usual, bool(marked), path, schema.names)
        if chosen[kind] not in schema.names:
            raise _no_column(kind, f"no column {chosen[kind]!r}", path, schema.names)
    image, label = chosen["image"], chosen["label"]
    if image not in holds:
        raise UserError(f"{path}: column {image!r} holds {schema.field(image).type}, not encoded images")
    names = features.get(label, {}).get("names")
    return _Columns(image, label, [str(n) for n in names] if isinstance(names, list) else [])


def _pick(
    kind: str, candidates: list[str], usual: tuple[str, ...], marked: bool, path: Path, columns: list[str]
) -> str:
    """The one column that can be meant: of those that the metadata mark the only one, else of those that fit
    the only one of a usual name. Raises UserError for none or several."""
    known = candidates if marked else [name for name in candidates if name in usual] or candidates
    if not known:
        raise _no_column(kind, f"no {kind} column", path, columns)
    if len(known) > 1:
        raise UserError(
            f"{path} has {len(known)} columns that could be the {kind}: {', '.join(known)}; choose one by "
            f"{kind}_column= (--set data.{kind}_column={known[0]})"
        )
    return known[0]


def _no_column(kind: str, got: str, path: Path, columns: list[str]) -> UserError:
    return UserError(
        f"{path} has {got}: its columns are {', '.join(columns)}; name it by {kind}_column= "
        f"(--set data.{kind}_column=NAME)"
    )


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_binary(field.type) for field in kind)
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


@dataclass(frozen=True)
class ParquetPart:
    """The rows of one split, in files one after the other."""

    files: list[Path]

    def key(self) -> tuple[str, ...]:
        """What, beside the files, decides the labels: how names are put in relation."""
        return ("by name",)

    def read(self, reading: Reading, classes: list[str] | None) -> Encoded:
        """Still encoded; names of labels must be among `classes`, else they are those of the first file."""
        opened = [open_file(path) for path in self.files]
        columns = [_columns(file, path, reading) for file, path in zip(opened, self.files, strict=True)]
        more = len(self.files) - 1
        title = readable(self.files[0].name) + (f" and {more} more" if more else "")
        if not sum(file.metadata.num_rows for file in opened):
            raise UserError(f"{self.files[0]} holds no rows")
        groups = [
            Group(path, k, column.image, file.metadata.row_group(k).num_rows)
            for path, file, column in zip(self.files, opened, columns, strict=True)
            for k in range(file.num_row_groups)
        ]
        blocks = RowGroups([group for group in groups if group.rows])
        parts = [_labels(p, f, c.label) for p, f, c in zip(self.files, opened, columns, strict=True)]
        declared = [column.names for column in columns]
        labels, names = _number(parts, declared, classes, reading, blocks.where, title)
        return Encoded(title, labels, names, blocks)

    def says(self, reading: Reading) -> str:
        """What the labels are, by the first file: "text", "named numbers" or "numbers"."""
        file = open_file(self.files[0])
        column = _columns(file, self.files[0], reading)
        kind = file.schema_arrow.field(column.label).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        return "text" if _is_text(kind) else "named numbers" if column.names else "numbers"

    def hidden(self, reading: Reading) -> bool:
        """Whether no label is told, as in the test data of competitions: all are -1 or missing."""
        rows = 0
        for path in self.files:
            file = open_file(path)
            labels = _labels(path, file, _columns(file, path, reading).label)
            rows += len(labels)
            told = labels.drop_null()
            if len(told) and (_is_text(told.type) or int(told.to_numpy().max()) >= 0):
                return False
        return rows > 0


def _labels(path: Path, file: pq.ParquetFile, column: str) -> pa.ChunkedArray:
    with undamaged(path):
        labels = file.read(columns=[column]).column(0)
    if pa.types.is_dictionary(labels.type):
        labels = labels.cast(labels.type.value_type)
    if pa.types.is_integer(labels.type):
        try:
            return labels.cast(pa.int64())
        except pa.ArrowInvalid as error:  # unsigned ones beyond 2^63
            raise UserError(f"{path}: label column {column!r}: {error}") from None
    if not _is_text(labels.type):
        raise UserError(
            f"{path}: label column {column!r} holds {labels.type}, not integers 0, 1, ... or class names"
        )
    return labels


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _number(
    parts: Sequence[pa.ChunkedArray],
    declared: list[list[str]],
    classes: list[str] | None,
    reading: Reading,
    where: Callable[[int], str],
    title: str,
) -> tuple[np.ndarray, list[str]]:
    """(labels, names): -1 for null; text and the numbers of a file that names its classes by their names,
    other numbers as they are.

    The names are the given ones, else those that the first file to name any declares, else, for text, all in
    alphabetical order.
    """
    texts = [_is_text(part.type) for part in parts]
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
    strings = [value for part in parts for value in part.to_pylist()]
    own = sorted({s for s in strings if s is not None})
    if not names and reading.on_bad != "convert":
        some = ", ".join(map(repr, own[:3]))
        raise UserError(
            f"{title}: the labels are text ({some}, ...): load with on_bad='convert' to number these "
            f"{len(own)} names in alphabetical order (--set data.on_bad=convert)"
        )
    names = names or own
    number = dict(zip(own, places(own, names), strict=True))
    for row, text in enumerate(strings):
        if text is not None and number[text] < 0:
            raise UserError(f"{title}: {where(row)} has the label {text!r}, which is no class name")
    return np.array([-1 if s is None else number[s] for s in strings], np.int64), names


def _check_numbers(numbers: np.ndarray, names: list[str], where: Callable[[int], str], title: str) -> None:
    outside = (numbers >= (len(names) if names else np.iinfo(np.int64).max)) | (numbers < -1)
    if outside.any():
        row = int(outside.argmax())
        span = f"the {len(names)} classes 0 to {len(names) - 1}" if names else "0, 1, ..."
        hint = from_one(numbers, len(names))
        raise UserError(f"{title}: {where(row)} has the label {numbers[row]}, outside {span}{hint}")


def _by_name(
    numbers: np.ndarray, own: list[str], names: list[str], where: Callable[[int], str], title: str
) -> np.ndarray:
    """The labels of a file as places among `names`, where it names them in another order."""
    if not own or own == names:
        return numbers
    place = np.array([*places(own, names), -1])  # -1 stays -1
    lost = (place[numbers] < 0) & (numbers >= 0)
    if lost.any():
        row = int(lost.argmax())
        raise unknown_class(f"{title}: {where(row)}", own[numbers[row]], names, "the other data have")
    return place[numbers]
