"""Cache decoded images as memory-mapped files, under a key that changes when the sources do."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np

from bivallate.data.dataset import digest
from bivallate.errors import UserError
from bivallate.files import temporary
from bivallate.quoting import file_name
from bivallate.schema import read_json
from bivallate.untrusted_files import open_regular, reason_of

__all__ = ["Decoded", "cache_folder", "cached", "content_key", "files_key"]

FORMAT = 2
PEEK = 65536
WINDOWS = 8
MOST_PEEKED = 1024  # with more files only their sizes and times are read, not parts of their contents
STALE = 86400  # seconds after which an unfinished folder counts as left by a killed process


class Meta(TypedDict):
    """meta.json of a folder of the cache."""

    source: str
    mean: list[float]
    std: list[float]
    classes: NotRequired[list[str]]
    notes: NotRequired[list[str]]


@dataclass(frozen=True)
class Decoded:
    """The result of a decoder: images, labels and notes.

    Attributes:
        images: (M, C, H, W) uint8.
        labels: (M,) int64.
        rows: (N,) int64, the rows of the M that can be used.
        classes: names, or empty.
        source: hash of the content.
        mean, std: per channel, over the usable rows.
        notes: for the user, about the images.
    """

    images: np.ndarray
    labels: np.ndarray
    rows: np.ndarray
    classes: list[str]
    source: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    notes: tuple[str, ...] = ()


def cache_folder() -> Path:
    """The folder `BIVALLATE_CACHE`, or ~/.cache/bivallate."""
    chosen = os.environ.get("BIVALLATE_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "bivallate"


def files_key(files: Sequence[Path], *options: object, version: int = FORMAT) -> str:
    """Hash of path, size, time, head and tail of each file, and of the options; reads little."""
    parts: list[bytes | str] = [str(version), *map(repr, options)]
    peek = len(files) <= MOST_PEEKED
    for path in files:
        size, changed, windows = _look(path, 2 if peek else 0)
        parts += [os.fsencode(os.path.realpath(path)), str(size), str(changed), *windows]
    return digest(*parts)


def content_key(files: Sequence[Path], *options: object) -> str:
    """Hash of the files' contents, independent of their folder and of their times.

    It covers the names below their common folder, the sizes, and some windows of the bytes of at most
    `MOST_PEEKED` files.
    """
    root = os.path.commonpath([path.parent for path in files])
    peeked = {int(k) for k in np.linspace(0, len(files) - 1, min(len(files), MOST_PEEKED))}
    parts: list[bytes | str] = ["content", *map(repr, options)]
    for k, path in enumerate(files):
        size, _, windows = _look(path, WINDOWS if k in peeked else 0)
        name = os.fsencode(os.path.relpath(path, root).replace(os.sep, "/"))
        parts += [name, str(size), *windows]
    return digest(*parts)


def _look(path: Path, windows: int) -> tuple[int, int, list[bytes]]:
    """The file's size and time, and `windows` pieces of its bytes, from the first to the last.

    A broken link has none of these; its row is reported as bad when it is read.
    """
    if path.is_symlink() and not path.exists():
        return -1, -1, []
    try:
        if not windows:
            stat = path.stat()
            return stat.st_size, stat.st_mtime_ns, []
        with open_regular(path) as file:
            stat = os.fstat(file.fileno())
            last, pieces = max(0, stat.st_size - PEEK), []
            for place in range(windows):
                file.seek(last * place // (windows - 1))
                pieces.append(file.read(PEEK))
            return stat.st_size, stat.st_mtime_ns, pieces
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def cached(name: str, key: str, build: Callable[[Path], None]) -> Path:
    """The folder of this key; if it is missing, `build` fills a temporary folder, which is renamed to it."""
    final = cache_folder() / "data" / f"{file_name(name)}-{key}"
    if (final / "meta.json").exists():
        return final
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _sweep(final.parent)
        work = temporary(final.parent)
        work.mkdir()  # with the umask's permissions, because a cache may be shared
    except OSError as error:
        raise UserError(
            f"cannot write the cache {final.parent}: {error}; set BIVALLATE_CACHE to a folder"
        ) from None
    try:
        build(work)
        _settle(work, final)
    except OSError as error:
        raise UserError(
            f"cannot write the cache {final.parent}: {error}; set BIVALLATE_CACHE to a folder"
        ) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return final


def _sweep(folder: Path) -> None:
    """Remove unfinished folders of killed processes."""
    for left in folder.glob(".*"):
        if left.is_dir() and time.time() - left.stat().st_mtime > STALE:
            shutil.rmtree(left, ignore_errors=True)


def reserve(file: Path) -> None:
    """Allocate the space of a mapped file: writing to a map on a full disk would kill the process."""
    if hasattr(os, "posix_fallocate"):
        with file.open("r+b") as handle:
            os.posix_fallocate(handle.fileno(), 0, file.stat().st_size)


def _settle(work: Path, final: Path) -> None:
    """Rename a finished folder into place; if another process was faster, its folder stays."""
    try:
        os.rename(work, final)
    except OSError:
        if not (final / "meta.json").exists():
            raise


def save_meta(folder: Path, **meta: object) -> None:
    """Write meta.json. It is written last: its presence means that the other files are complete."""
    (folder / "meta.json").write_text(json.dumps(meta))


def open_decoded(folder: Path) -> Decoded:
    """Map the images of a cache folder into memory, read only."""
    try:
        meta = read_json(folder / "meta.json", "description", Meta)
        images = np.asarray(np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False))
        labels, rows = (np.load(folder / f"{n}.npy", allow_pickle=False) for n in ("labels", "rows"))
        _check_parts(images, labels, rows)
        mean, std = (tuple(map(float, meta[key])) for key in ("mean", "std"))
        names, notes = (meta.get(key, []) for key in ("classes", "notes"))
        return Decoded(images, labels, rows, names, meta["source"], mean, std, tuple(notes))
    except Exception as error:  # a damaged header or text fails in many ways
        raise UserError(
            f"the cache {folder} is damaged ({reason_of(error)}): delete that folder and run again"
        ) from error


def _check_parts(images: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> None:
    """Raise ValueError unless the three arrays of a cache folder belong together."""
    if images.ndim != 4 or images.dtype != np.uint8:
        raise ValueError(f"images {images.shape} of {images.dtype}")
    whole = labels.dtype == rows.dtype == np.int64 and labels.shape == (len(images),) and rows.ndim == 1
    if not whole or (rows.size and not 0 <= rows.min() <= rows.max() < len(images)):
        raise ValueError("labels or rows do not fit the images")
