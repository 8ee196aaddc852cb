"""Folders of Parquet files in the hub's image layout."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bivallate.data.decode import Encoded, Item, Reading
from bivallate.errors import UserError

__all__ = ["find_splits", "open_file", "read_parquet", "split_of"]

SHARD = re.compile(r"(?P<stem>.+?)-(?P<part>\d{5})-of-(?P<parts>\d{5})(-[0-9a-f]+)?\.parquet$")
SPLITS = {
    "train": "train",
    "test": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
}
IMAGE_COLUMNS = ("image", "img", "images", "png", "jpg", "jpeg", "webp", "pixel_values")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target", "y", "cls", "category")


def find_splits(folder: Path) -> dict[str, list[Path]]:
    """The Parquet files under a folder by split; all shards must be there.

    The split is the first word of the file's name (train-00000-of-00002.parquet), else of its folder's.
    Files of unknown names are training data if there are no others.

    Raises:
        UserError: naming the missing shard, or the folders if there are several data sets.
    """
    found: dict[str, list[Path]] = {}
    others: list[Path] = []
    for path in sorted(folder.rglob("*.parquet")):
        split = split_of(path)
        (found.setdefault(split, []) if split else others).append(path)
    if not found and others:
        found = {"train": others}
    for paths in found.values():
        places = sorted({str(path.parent.relative_to(folder)) for path in paths})
        if len(places) > 1:
            raise UserError(f"{folder} holds several data sets: name one of {', '.join(places)} below it")
        _check_shards(paths)
    return found


def split_of(path: Path) -> str | None:
    """The split a file belongs to, by its name or its folder's."""
    words = [re.split(r"[-_.]", name.lower())[0] for name in (path.name, path.parent.name)]
    return next((SPLITS[word] for word in words if word in SPLITS), None)


def _check_shards(paths: list[Path]) -> None:
    groups: dict[tuple[Path, str, int], set[int]] = {}
    for path in paths:
        if match := SHARD.match(path.name):
            key = path.parent, match["stem"], int(match["parts"])
            groups.setdefault(key, set()).add(int(match["part"]))
    for (folder, stem, parts), present in groups.items():
        missing = [f"{stem}-{k:05d}-of-{parts:05d}.parquet" for k in range(parts) if k not in present]
        if missing:
            listed = ", ".join(missing[:5])
            raise UserError(f"{folder} lacks {len(missing)} of {parts} shards: {listed}; download them again")


def open_file(path: Path) -> pq.ParquetFile:
    """Opens a Parquet file, telling a truncated from a foreign one."""
    with path.open("rb") as file:
        head = file.read(4)
        file.seek(0, 2)
        size = file.tell()
        file.seek(max(0, size - 4))
        tail = file.read(4)
    if head != b"PAR1":
        raise UserError(f"{path} is not a Parquet file (it begins with {head!r}): remove or replace it")
    if tail != b"PAR1" or size < 12:
        raise UserError(f"{path} is truncated ({size} bytes, its end is missing): download it again")
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is damaged: {error}; download it again") from None


@dataclass(frozen=True)
class _Columns:
    image: str
    label: str
    names: list[str]


def _columns(file: pq.ParquetFile, path: Path, reading: Reading) -> _Columns:
    """Which columns hold images and labels: as given, else by the hub's metadata, else by name and type."""
    schema = file.schema_arrow
    try:
        meta = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = meta["info"]["features"]
    except (ValueError, KeyError, TypeError):
        features = {}
    kinds = {name: f.get("_type") for name, f in features.items() if isinstance(f, dict)}
    holds = {field.name for field in schema if _holds_images(field.type)}
    image = reading.image_column or _pick(
        schema.names, IMAGE_COLUMNS, {n for n, k in kinds.items() if k == "Image"}, holds
    )
    labelled = {n for n, k in kinds.items() if k == "ClassLabel"}
    label = reading.label_column or _pick(schema.names, LABEL_COLUMNS, labelled, set(LABEL_COLUMNS))
    for kind, name in (("image", image), ("label", label)):
        if name not in schema.names:
            got = f"no column {name!r}" if name else f"no {kind} column"
            raise UserError(
                f"{path} has {got}: its columns are {', '.join(schema.names)}; name it by {kind}_column= "
                f"(--set data.{kind}_column=NAME)"
            )
    assert image is not None
    assert label is not None
    if image not in holds:
        raise UserError(f"{path}: column {image!r} holds {schema.field(image).type}, not encoded images")
    names = features.get(label, {}).get("names") or []
    return _Columns(image, label, [str(n) for n in names])


def _pick(names: list[str], known: tuple[str, ...], declared: set[str], fitting: set[str]) -> str | None:
    for candidates in (declared & set(names), fitting & set(names)):
        ranked = sorted(
            candidates, key=lambda n: (known.index(n) if n in known else len(known), names.index(n))
        )
        if ranked:
            return ranked[0]
    return None


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_binary(field.type) for field in kind)
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


@dataclass(frozen=True)
class _Group:
    """One row group of one file."""

    path: Path
    number: int
    column: str
    rows: int


@dataclass(frozen=True)
class RowGroups:
    """Row groups of Parquet files as blocks of encoded images."""

    groups: list[_Group]

    @property
    def sizes(self) -> list[int]:
        """Rows of each group."""
        return [group.rows for group in self.groups]

    def read(self, block: int) -> list[Item]:
        """The encoded images of one row group."""
        group = self.groups[block]
        try:
            with pq.ParquetFile(group.path) as file:
                array: Any = (
                    file.read_row_group(group.number, columns=[group.column]).column(0).combine_chunks()
                )
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{group.path} is damaged: {error}; download it again") from None
        if pa.types.is_struct(array.type):
            array = array.flatten()[array.type.get_field_index("bytes")]
        return array.to_pylist()

    def where(self, row: int) -> str:
        """The row within its file."""
        before = 0
        for group in self.groups:
            if row < before + group.rows:
                earlier = sum(g.rows for g in self.groups if g.path == group.path and g.number < group.number)
                return f"row {row - before + earlier} of {group.path.name}"
            before += group.rows
        raise IndexError(row)


def read_parquet(files: list[Path], reading: Reading, classes: list[str] | None = None) -> Encoded:
    """The images of some files, one after the other; label names must be among `classes`."""
    opened = [open_file(path) for path in files]
    columns = [_columns(file, path, reading) for file, path in zip(opened, files, strict=True)]
    counts = [file.metadata.num_rows for file in opened]
    title = files[0].name if len(files) == 1 else f"{files[0].name} and {len(files) - 1} more"
    if not sum(counts):
        raise UserError(f"{files[0]} holds no rows")
    groups = [
        _Group(path, k, column.image, file.metadata.row_group(k).num_rows)
        for path, file, column in zip(files, opened, columns, strict=True)
        for k in range(file.num_row_groups)
    ]
    blocks = RowGroups([group for group in groups if group.rows])
    parts = [_labels(p, f, c.label) for p, f, c in zip(files, opened, columns, strict=True)]
    labels, names = _number(parts, columns[0].names, classes, reading, blocks.where, title)
    return Encoded(title, labels, names, blocks)


def _labels(path: Path, file: pq.ParquetFile, column: str) -> pa.ChunkedArray:
    try:
        labels = file.read(columns=[column]).column(0)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is damaged: {error}; download it again") from None
    if pa.types.is_dictionary(labels.type):
        labels = labels.cast(labels.type.value_type)
    if not (pa.types.is_integer(labels.type) or _is_text(labels.type)):
        raise UserError(
            f"{path}: label column {column!r} holds {labels.type}, not integers 0, 1, ... or class names"
        )
    return labels


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _number(
    parts: list[Any],
    declared: list[str],
    classes: list[str] | None,
    reading: Reading,
    where: Callable[[int], str],
    title: str,
) -> tuple[np.ndarray, list[str]]:
    """(labels, names): integers as they are, -1 for null; strings by the known names, else alphabetically."""
    texts = [_is_text(part.type) for part in parts]
    if any(texts) != all(texts):
        raise UserError(f"{title}: the label column holds text in some files and integers in others")
    if not texts[0]:
        known = np.concatenate([part.fill_null(-1).to_numpy().astype(np.int64) for part in parts])
        names = classes or declared
        outside = known >= (len(names) if names else np.iinfo(np.int64).max)
        if outside.any() or (known < -1).any():
            row = int(np.flatnonzero(outside | (known < -1))[0])
            span = f"the {len(names)} classes 0 to {len(names) - 1}" if names else "0, 1, ..."
            raise UserError(f"{title}: {where(row)} has the label {known[row]}, outside {span}")
        return known, names
    strings = [value for part in parts for value in part.to_pylist()]
    names = classes or declared or sorted({s for s in strings if s is not None})
    if not classes and not declared and reading.on_bad != "convert":
        some = ", ".join(map(repr, names[:3]))
        raise UserError(
            f"{title}: the labels are text ({some}, ...): load with on_bad='convert' to number these "
            f"{len(names)} names in alphabetical order (--set data.on_bad=convert)"
        )
    number = {name: k for k, name in enumerate(names)}
    unknown = [row for row, s in enumerate(strings) if s is not None and s not in number]
    if unknown:
        raise UserError(
            f"{title}: {where(unknown[0])} has the label {strings[unknown[0]]!r}, which is no class name"
        )
    return np.array([-1 if s is None else number[s] for s in strings], np.int64), names
