"""Open Parquet files, and read their row groups as blocks of encoded images, under limits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bivallate.data.image import Item
from bivallate.data.layout import readable
from bivallate.errors import UserError
from bivallate.untrusted_files import HEAD, kind_of, open_regular, pinned_path, reason_of

__all__ = ["Group", "RowGroups", "open_file", "undamaged"]

AT_ONCE = 64  # rows of a group that are unpacked together
LARGE = 1 << 30  # bytes; the compression of smaller groups is not limited
DENSEST = 200  # largest compression of a file: its images are already compressed
ROWS_A_BYTE = 100


def open_file(path: Path) -> pq.ParquetFile:
    """Open a Parquet file. Raises UserError, which tells a truncated file from one of another kind."""
    try:
        with open_regular(path) as file:
            head = file.read(HEAD)
            size = file.seek(0, 2)
            file.seek(max(0, size - 4))
            tail = file.read(4)
    except OSError as error:
        raise UserError(f"cannot read {readable(path)}: {error.strerror}") from None
    if head[:4] != b"PAR1":
        kind = f"; it is {known}" if (known := kind_of(head)) else ""
        raise UserError(
            f"{path} is not a Parquet file (it begins with {head[:4]!r}{kind}): remove or replace it"
        )
    if tail != b"PAR1" or size < 12:
        raise UserError(f"{path} is truncated ({size} bytes, its end is missing): download it again")
    with undamaged(path):
        with pinned_path(path) as place:
            opened = pq.ParquetFile(place)
        rows = opened.metadata.num_rows
        held = sum(opened.metadata.row_group(k).num_rows for k in range(opened.num_row_groups))
        if rows != held or not 0 <= rows <= ROWS_A_BYTE * size:
            raise ValueError(f"it claims {rows} rows, its groups hold {held}, in {size} bytes")
        return opened


@contextmanager
def undamaged(path: Path) -> Iterator[None]:
    """Turn the library's exceptions into a UserError that names the file."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} is damaged: {reason_of(error)}; download it again") from error


@dataclass(frozen=True)
class Group:
    """One row group of one file."""

    path: Path
    number: int
    column: str
    rows: int


@dataclass(frozen=True)
class RowGroups:
    """Row groups of Parquet files as blocks of encoded images."""

    groups: list[Group]

    @property
    def sizes(self) -> list[int]:
        """Rows of each group."""
        return [group.rows for group in self.groups]

    def read(self, block: int) -> list[Item]:
        """The encoded images of one row group."""
        group = self.groups[block]
        with undamaged(group.path), pinned_path(group.path) as place, pq.ParquetFile(place) as file:
            most = max(LARGE, DENSEST * place.stat().st_size)
            items: list[Item] = []
            for batch in file.iter_batches(AT_ONCE, [group.number], [group.column]):
                array: Any = batch.column(0)
                if pa.types.is_struct(array.type):
                    array = array.flatten()[array.type.get_field_index("bytes")]
                most -= array.nbytes
                if most < 0:
                    raise ValueError(
                        f"row group {group.number} unpacks to more than {DENSEST} times its file"
                    )
                items += array.to_pylist()
            if len(items) != group.rows:
                raise ValueError(f"row group {group.number} has {len(items)} rows, not {group.rows}")
            return items

    def where(self, row: int) -> str:
        """The name of a row: its number within its file."""
        before = 0
        for group in self.groups:
            if row < before + group.rows:
                earlier = sum(g.rows for g in self.groups if g.path == group.path and g.number < group.number)
                return f"row {row - before + earlier} of {group.path.name}"
            before += group.rows
        raise IndexError(row)
