"""Unpack `.zip` and `.tar` archives of images into the cache, under limits, and never outside of it."""

from __future__ import annotations

import bz2
import gzip
import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypedDict

from bivallate.data.archive import DENSEST
from bivallate.data.cache import cached, files_key, save_meta
from bivallate.data.layout import readable
from bivallate.errors import UserError
from bivallate.quoting import file_name
from bivallate.schema import read_json
from bivallate.untrusted_files import HEAD, open_regular, reason_of

__all__ = ["is_archive", "unpacked"]

PACKED: dict[bytes, Callable[[Any], Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open}
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)
FREE = 1 << 30  # bytes; the compression of archives that unpack to less is not limited
MOST_FILES = 5_000_000
CHUNK = 1 << 20
LONGEST = 255  # bytes of a name
SHOWN = 5

Entry = tuple[str, int, Callable[[], Any]]  # name, size in bytes, function that opens it


class Unpacked(TypedDict):
    """meta.json of an unpacked archive."""

    notes: list[str]


def is_archive(path: Path) -> bool:
    """Whether a file is a zip or tar archive, by its first bytes; `.npz` files are zip archives of arrays."""
    if path.suffix.lower() == ".npz":
        return False
    try:
        with open_regular(path) as file:
            head = file.read(HEAD)
    except OSError:
        return False
    packed = head.startswith(tuple(PACKED)) and path.name.lower().endswith((".tgz", ".tbz2", ".gz", ".bz2"))
    return head.startswith(b"PK\x03\x04") or head[257:262] == b"ustar" or packed


def unpacked(path: Path) -> tuple[Path, tuple[str, ...]]:
    """Unpack an archive once; return its folder in the cache, and notes on what was left out.

    Raises:
        UserError: the archive is damaged or encrypted, claims more than its bytes can hold, is larger than
            the disk has room for, or has a name that leads out of the folder. The message names archive and
            entry.
    """
    stem = file_name(path.name.partition(".")[0])

    def build(work: Path) -> None:
        inside = work / stem
        inside.mkdir()
        left: list[str] = []
        try:
            with open_regular(path) as raw:
                size = os.fstat(raw.fileno()).st_size
                with _opened(raw, work / "unpacked.tar", size) as archive:
                    entries = (
                        _zipped(archive, left)
                        if isinstance(archive, zipfile.ZipFile)
                        else _tarred(archive, left)
                    )
                    _write(list(entries), inside, size)
        except (UserError, OSError):
            raise
        except Exception as error:  # whatever zipfile, tarfile and zlib raise on a damaged file
            raise UserError(f"it is not a readable archive: {reason_of(error)}") from error
        save_meta(work, notes=[_said(left)] if left else [])

    try:
        folder = cached(f"{stem}-unpacked", files_key([path]), build)
    except UserError as error:
        raise UserError(f"{readable(path)}: {error}") from error
    about = read_json(folder / "meta.json", "description", Unpacked)
    return folder / stem, tuple(about["notes"])


def _said(left: list[str]) -> str:
    more = f" and {len(left) - SHOWN} more" if len(left) > SHOWN else ""
    return f"left out, links and devices in the archive: {len(left):,} ({', '.join(left[:SHOWN])}{more})"


@contextmanager
def _opened(raw: BinaryIO, place: Path, size: int) -> Iterator[zipfile.ZipFile | tarfile.TarFile]:
    head = raw.read(HEAD)
    raw.seek(0)
    if head.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(raw) as archive:
            yield archive
        return
    packed = next((opened for mark, opened in PACKED.items() if head.startswith(mark)), None)
    if packed is not None:
        with packed(raw) as stream, place.open("xb") as target:
            _copy(stream, target, _most(size), exact=False)
    try:
        with raw if packed is None else place.open("rb") as plain:
            careful: Any = LimitedReader(plain)
            with tarfile.open(fileobj=careful, mode="r:") as archive:
                yield archive
    finally:
        place.unlink(missing_ok=True)


class LimitedReader:
    """A file that refuses to read more at once than a header can have.

    tarfile reads as many bytes as a header claims, which could fill memory.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        """Read at most a chunk. Raises ValueError for more."""
        if not 0 <= size <= CHUNK:
            raise ValueError(f"a header claims {size} bytes")
        return self.file.read(size)


def _zipped(archive: zipfile.ZipFile, left: list[str]) -> Iterator[Entry]:
    for info in archive.infolist():
        mode = info.external_attr >> 16
        if info.is_dir() or info.filename.endswith("\\"):
            continue
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            left.append(readable(info.filename))
            continue
        if info.flag_bits & 1:
            raise UserError(f"{info.filename!r} is encrypted: unpack the archive and name the folder")
        if info.compress_type not in METHODS:
            raise UserError(
                f"{info.filename!r} is packed by a rare method: unpack the archive and name the folder"
            )
        yield info.filename, info.file_size, lambda info=info: archive.open(info)


def _tarred(archive: tarfile.TarFile, left: list[str]) -> Iterator[Entry]:
    for member in archive:
        if member.isdir():
            continue
        if not member.isreg() or member.issparse():
            left.append(readable(member.name))
            continue
        yield member.name, member.size, lambda member=member: archive.extractfile(member)
    file: Any = archive.fileobj
    file.seek(archive.offset)
    # tarfile takes any damaged header for the end; the true end is a block of zeros
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise UserError("it is cut off or damaged, its end is missing: download it again")


def _most(size: int) -> int:
    """The largest number of bytes that an archive of this size may unpack to."""
    return max(FREE, DENSEST * size)


def _write(entries: list[Entry], folder: Path, size: int) -> None:
    total = sum(claimed for _, claimed, _ in entries)
    if len(entries) > MOST_FILES:
        raise UserError(f"it holds {len(entries):,} files: at most {MOST_FILES:,} are unpacked")
    if total > _most(size):
        raise UserError(f"it would unpack from {size:,} to {total:,} bytes: images are not so empty")
    if total > (free := shutil.disk_usage(folder).free):
        raise UserError(
            f"it needs {total:,} bytes in the cache, where {free:,} are free: set BIVALLATE_CACHE to a "
            "folder with room"
        )
    for name, claimed, opened in entries:
        place = _place(name, folder)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            target = place.open("xb")
        except (FileExistsError, NotADirectoryError):
            raise UserError(f"it holds {name!r} twice, or as a file and a folder") from None
        with target, opened() as source:
            _copy(source, target, claimed, exact=True)


def _place(name: str, folder: Path) -> Path:
    """The path of an entry. Raises UserError for a name that leads out of the folder."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    drive = parts and parts[0].endswith(":")
    if (
        not parts
        or drive
        or ".." in parts
        or parts[0] == "/"
        or any(len(os.fsencode(p)) > LONGEST for p in parts)
    ):
        raise UserError(f"the name {name!r} leads out of the folder, or is none: it is not unpacked")
    return folder.joinpath(*parts)


def _copy(source: Any, target: BinaryIO, most: int, *, exact: bool) -> None:
    """Copy at most `most` bytes, in chunks; `exact` demands that there are so many, as a header claims."""
    left = most
    while chunk := source.read(min(CHUNK, left + 1) if exact else CHUNK):
        left -= len(chunk)
        if left < 0:
            raise UserError(f"it unpacks to more than {most:,} bytes: images are not so empty")
        target.write(chunk)
    if exact and left:
        raise UserError(f"it ends {left:,} bytes early: download it again")
