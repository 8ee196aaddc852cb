"""Read `.npz` files safely: declared sizes are compared with stored bytes before memory is allocated."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from bivallate.errors import UserError
from bivallate.untrusted_files import kind_hint, open_regular, reason_of

__all__ = ["Archive", "open_npz"]

LARGE = 1 << 28  # bytes; the compression of smaller arrays is not limited
DENSEST = 200  # largest compression: drawings reach 50 times, and a file of zeros 1,000 times
KINDS = "biufcSU"  # types of plain arrays; one of objects would be a pickle


class Archive:
    """The arrays of an open `.npz` file, each read on access."""

    def __init__(self, path: Path, file: zipfile.ZipFile, stored: int) -> None:
        self.path, self.file, self.stored = path, file, stored
        self.entries = {i.filename.removesuffix(".npy"): i for i in file.infolist()}

    def __getitem__(self, name: str) -> np.ndarray:
        """Read an array. Raises ValueError if its header does not fit the file, or it is no plain array."""
        entry = self.entries[name]
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"array {name!r} is packed in a way that NumPy does not write")
        self._check_density(name, entry)
        with self.file.open(entry) as stream:
            shape, dtype = _header(stream)
            claimed, held = prod(shape) * dtype.itemsize, entry.file_size - stream.tell()
        if dtype.kind not in KINDS or (claimed and dtype.itemsize > held):
            raise ValueError(f"array {name!r} holds {dtype}, not plain numbers or text")
        if claimed != held:
            raise ValueError(
                f"the header of array {name!r} says shape {shape} of {dtype}, {claimed} bytes, "
                f"but {held} are there"
            )
        with self.file.open(entry) as stream:
            return npy.read_array(stream, allow_pickle=False)

    def _check_density(self, name: str, entry: zipfile.ZipInfo) -> None:
        packed = min(entry.compress_size, self.stored)
        if entry.file_size > max(LARGE, DENSEST * packed):
            raise ValueError(
                f"array {name!r} would unpack from {packed} to {entry.file_size} bytes, more than "
                f"{DENSEST} times: images are not so empty"
            )
        if (memory := _memory()) is not None and entry.file_size > memory:
            raise ValueError(
                f"array {name!r} has {entry.file_size} bytes, this machine's memory {memory}: "
                "use Parquet files or a folder of images"
            )


def _header(stream: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = npy.read_magic(stream)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(stream)
    return shape, dtype


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


@contextmanager
def open_npz(path: Path) -> Iterator[Archive]:
    """Open an archive.

    Raises:
        UserError: a missing file, one that is not regular, or one that is damaged or holds no plain arrays.
    """
    try:
        with open_regular(path) as raw, zipfile.ZipFile(raw) as file:
            yield Archive(path, file, os.fstat(raw.fileno()).st_size)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except Exception as error:  # whatever zipfile, zlib and NumPy raise on a damaged file
        said = f"{reason_of(error)}{kind_hint(path)}"
        raise UserError(f"{path} is not a readable .npz file of plain arrays: {said}") from error
