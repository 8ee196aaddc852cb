"""Open files that others made: only regular ones, whose kind the first bytes tell."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from bivallate.errors import UserError
from bivallate.quoting import line

__all__ = [
    "check_regular",
    "kind_at",
    "kind_hint",
    "kind_of",
    "not_weights",
    "open_regular",
    "pinned_path",
    "reason_of",
]

HEAD = 264  # bytes by which a file is recognised
OTHER_TYPES = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
ARCHIVE = "a zip archive, such as .npz or weights of torch.save"
PICKLE = "a pickle, which could run code and is never opened"
SAFETENSORS = "a safetensors file"
TAR = "a tar archive"
MARKS: tuple[tuple[int, bytes, str], ...] = (
    (
        0,
        b"version https://git-lfs",
        "a Git LFS pointer, the file itself was not downloaded: run git lfs pull",
    ),
    (0, b"%!PS", "PostScript, a program that is not run"),
    (0, b"\xc5\xd0\xd3\xc6", "PostScript, a program that is not run"),
    (0, b"%PDF", "a PDF"),
    (0, b"PAR1", "a Parquet file"),
    (0, b"\x93NUMPY", "an .npy array"),
    (0, b"PK\x03\x04", ARCHIVE),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"\xfd7zXZ", "an xz archive"),
    (257, b"ustar", TAR),
    (0, b"\x89HDF", "an HDF5 file"),
    (0, b"\x89PNG", "a PNG image"),
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"GIF8", "a GIF image"),
    (0, b"II*\0", "a TIFF image"),
    (0, b"MM\0*", "a TIFF image"),
    (8, b"WEBP", "a WebP image"),
    (0, b"DDS ", "a DDS texture"),
    (0, b"8BPS", "a Photoshop document"),
    (4, b"jP  \r\n", "a JPEG 2000 image"),
    (4, b"ftyp", "a HEIC or AVIF image, or a video"),
)
HTML = (b"<!doctype html", b"<html", b"<head")
LONGEST_HEADER = 100_000_000  # of safetensors files, by their own library


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file, or a link to one, for reading; refuse what may block or never end.

    Raises:
        UserError: for a folder, named pipe, device or socket.
        OSError: as `open` does.
    """
    _check_regular(path, path.stat())
    nonblocking = getattr(os, "O_NONBLOCK", 0)  # in case a pipe has replaced it since
    descriptor = os.open(path, os.O_RDONLY | nonblocking | getattr(os, "O_BINARY", 0))
    file = os.fdopen(descriptor, "rb")
    try:
        _check_regular(path, os.fstat(descriptor))
    except UserError:
        file.close()
        raise
    return file


@contextmanager
def pinned_path(path: Path) -> Iterator[Path]:
    """A path by which a library opens again the very file that was checked.

    It leads there even if another file has been put at `path` since. On systems without /proc it is `path`
    itself. Raises as `open_regular` does.
    """
    with open_regular(path) as file:
        own = Path(f"/proc/self/fd/{file.fileno()}")
        yield own if sys.platform == "linux" and own.exists() else path


def check_regular(path: Path) -> None:
    """Raise UserError where `open_regular` would; a missing file is no error."""
    with suppress(FileNotFoundError):
        _check_regular(path, path.stat())


def _check_regular(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        what = OTHER_TYPES.get(stat.S_IFMT(found.st_mode), "of a special type")
        raise UserError(f"{path} is {what}: only regular files are read")


def kind_of(head: bytes) -> str | None:
    """The kind of a file by its first bytes (`HEAD` or more, if it has so many); None: unknown.

    Example:
        >>> kind_of(b"<!DOCTYPE html><title>404</title>")
        'an HTML page'
    """
    for offset, mark, kind in MARKS:
        if head.startswith(mark, offset):
            return kind
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(HTML):
        return "an HTML page"
    if text.startswith((b"<?xml", b"<svg")):
        return "XML, such as an SVG drawing"
    if len(head) > 2 and head[0] == 0x80 and head[1] in (2, 3, 4, 5):
        return PICKLE
    if head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= LONGEST_HEADER:
        return SAFETENSORS
    return None


def reason_of(error: BaseException) -> str:
    """The first line of an exception's message, or the exception's name if it has none."""
    text = line(str(error).strip().partition("\n")[0], 300)
    return text or type(error).__name__


def kind_hint(path: Path) -> str:
    """The end of a message about a file, "; it is ...", or nothing if its kind is unknown."""
    kind = kind_at(path)
    return f"; it is {kind}" if kind else ""


def kind_at(path: Path) -> str | None:
    """The kind of a file by its first bytes; None if it cannot be read or its kind is unknown."""
    try:
        with open_regular(path) as file:
            return kind_of(file.read(HEAD))
    except (OSError, UserError):
        return None


def not_weights(path: Path) -> str | None:
    """Why a file cannot be weights written by torch.save; None if it may be."""
    kind = kind_at(path)
    if kind == SAFETENSORS:
        return f"{path} is a safetensors file under another name: call it {path.stem}.safetensors"
    if kind in (None, ARCHIVE, PICKLE, TAR):
        return None
    return f"{path} does not hold weights; it is {kind}"
