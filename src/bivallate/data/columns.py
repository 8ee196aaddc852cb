"""Which columns of a Parquet file hold images and labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import pyarrow as pa
import pyarrow.parquet as pq

from bivallate.data.classes import check_distinct
from bivallate.data.reading import Reading
from bivallate.errors import UserError, listed
from bivallate.schema import parse

__all__ = ["Columns", "NoColumn", "columns", "is_text"]

IMAGE_COLUMNS = ("image", "img", "images", "png", "jpg", "jpeg", "webp", "pixel_values")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target", "y", "cls", "category")


class Info(TypedDict):
    """The hub's metadata about columns."""

    features: dict[str, Any]


class Metadata(TypedDict):
    """The hub's metadata in a file's schema."""

    info: Info


@dataclass(frozen=True)
class Columns:
    """The two columns of a file, and its class names if the metadata have them."""

    image: str
    label: str
    names: list[str]


def columns(file: pq.ParquetFile, path: Path, reading: Reading) -> Columns:
    """Find the columns of images and labels: as given, else by the hub's metadata, else by name and type.

    Raises:
        UserError: there is no such column, or several of which the user must choose one.
    """
    schema = file.schema_arrow
    try:
        text = (schema.metadata or {}).get(b"huggingface", b"{}").decode()
        told = parse(text, path, "metadata", Metadata)["info"]["features"]
        features = {name: f for name, f in told.items() if isinstance(f, dict)}
    except (UserError, UnicodeDecodeError):  # no metadata, or those of another program
        features = {}
    holds = [field.name for field in schema if _holds_images(field.type)]
    fitting = {
        "image": (reading.image_column, "Image", [n for n in holds if n in IMAGE_COLUMNS] or holds),
        "label": (reading.label_column, "ClassLabel", [n for n in schema.names if n in LABEL_COLUMNS]),
    }
    chosen: dict[str, str] = {}
    for kind, (given, mark, usual) in fitting.items():
        marked = [n for n in schema.names if features.get(n, {}).get("_type") == mark]
        chosen[kind] = given or _only(kind, marked or usual, path, schema.names)
        if chosen[kind] not in schema.names:
            raise _no_column(kind, f"no column {chosen[kind]!r}", path, schema.names)
    image, label = chosen["image"], chosen["label"]
    if image not in holds:
        raise UserError(f"{path}: column {image!r} holds {schema.field(image).type}, not encoded images")
    told = features.get(label, {}).get("names")
    names = [str(n) for n in told] if isinstance(told, list) else []
    check_distinct(names, f"{path}: column {label!r}")
    return Columns(image, label, names)


def _only(kind: str, candidates: list[str], path: Path, names: list[str]) -> str:
    """The only candidate. Raises UserError for none or several."""
    if not candidates:
        raise _no_column(kind, f"no {kind} column", path, names)
    if len(candidates) > 1:
        raise UserError(
            f"{path} has {len(candidates)} columns that could be the {kind}: {', '.join(candidates)}; choose "
            f"one by {kind}_column= (--set data.{kind}_column={candidates[0]})"
        )
    return candidates[0]


class NoColumn(UserError):
    """Raised if a file has no such column."""


def _no_column(kind: str, got: str, path: Path, columns: list[str]) -> UserError:
    return NoColumn(
        f"{path} has {got}: its columns are {listed(columns)}; name it by {kind}_column= "
        f"(--set data.{kind}_column=NAME)"
    )


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_binary(field.type) for field in kind)
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
