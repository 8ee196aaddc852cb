"""Atomic writes: a file is complete or not there at all, also after a loss of power."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from bivallate.errors import UserError
from bivallate.processes import alive, namespace_id

UNSUPPORTED = {errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM, errno.EBADF, errno.EISDIR}
FORGOTTEN = 24 * 3600  # seconds after which temporary files of another machine count as abandoned
TEMPORARY = re.compile(r"\.bivallate-(?P<place>[0-9a-f]{12})-(?P<pid>[0-9]+)-[0-9a-f]{16}\.tmp")
EARLIER = re.compile(r"\..+\.(?P<pid>[0-9]+)\.tmp")  # as versions before 0.2 named them


def write_whole(path: Path, write: Callable[[Path], Any], *, durable: bool = True) -> None:
    """Write a file completely or not at all.

    The function `write` fills a temporary file beside `path`, which is then moved into place; the old file
    stays until then. With `durable` this also holds after a loss of power.

    The temporary file lies in a folder of its own that only this user can open and whose name cannot be
    guessed, so that nobody can plant a link there. If `path` is a link, the link is replaced and its target
    is left alone. The mode is what the umask leaves of 0666, whatever the library that writes would choose.

    Raises UserError when there is no space or no permission.
    """
    work = temporary(path.parent)
    filled = work / path.name
    try:
        make_folder(path.parent)
        work.mkdir(mode=0o700)
        mode = _reserve(filled)
        write(filled)
        _settle(filled, mode, durable=durable)
        filled.replace(path)
        if durable:
            sync_folder(path.parent)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def temporary(folder: Path) -> Path:
    """A temporary path that cannot be guessed, with the process it belongs to in its name."""
    return folder / f".bivallate-{namespace_id()}-{os.getpid()}-{secrets.token_hex(8)}.tmp"


def _reserve(path: Path) -> int:
    """Create an empty file, which must not exist, and return the mode that the umask leaves it."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o666)
    try:
        return stat.S_IMODE(os.fstat(handle).st_mode)
    finally:
        os.close(handle)


def _settle(path: Path, mode: int, *, durable: bool) -> None:
    """Give a written file its mode, and if `durable` flush it to the disk."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    try:
        if stat.S_IMODE(os.fstat(handle).st_mode) != mode:
            os.fchmod(handle, mode) if hasattr(os, "fchmod") else os.chmod(path, mode)
        if durable:
            os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(path: Path) -> None:
    """Flush a folder's entries to the disk, where the file system can."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError as error:
        if error.errno in UNSUPPORTED:
            return
        raise
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
    finally:
        os.close(handle)


def make_folder(path: Path) -> None:
    """Create a folder and missing folders above it, and flush their entries to the disk."""
    if path.is_dir():
        return
    missing = [place for place in (path, *path.parents) if not place.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for place in missing:
        sync_folder(place.parent)


def write_text(path: Path, text: str) -> None:
    """Write text in UTF-8, completely or not at all."""
    write_whole(path, lambda place: place.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any, *, indent: int | None = 1, durable: bool = True) -> None:
    """Write JSON, completely or not at all; NaN and infinities, which are not JSON, raise ValueError."""
    text = json.dumps(value, indent=indent, allow_nan=False) + "\n"
    write_whole(path, lambda place: place.write_text(text, encoding="utf-8"), durable=durable)


def remove(path: Path) -> None:
    """Remove a file, a link (never its target) or a folder with its contents.

    A path that does not exist is no error. Raises UserError for what cannot be removed.
    """
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot remove {error.filename or path}: {error.strerror or error}") from error


def json_files(folder: Path) -> list[Path]:
    """The JSON files in a folder, by name, without hidden ones such as the `._x.json` of macOS."""
    return sorted(path for path in folder.glob("*.json") if not path.name.startswith("."))


def is_temporary(name: str) -> bool:
    """Whether a name is that of an unfinished temporary file of `write_whole`."""
    return bool(TEMPORARY.fullmatch(name) or EARLIER.fullmatch(name))


def sweep(folder: Path) -> None:
    """Remove the temporary files of processes that have ended; those of living ones stay."""
    with suppress(OSError):  # they are garbage: what cannot be removed may stay
        for left in folder.iterdir():
            if _abandoned(left):
                shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)


def _abandoned(path: Path) -> bool:
    ours = TEMPORARY.fullmatch(path.name)
    found = ours or EARLIER.fullmatch(path.name)
    if found is None:
        return False
    if ours is not None and ours["place"] == namespace_id():
        return not alive(int(ours["pid"]))
    return time.time() - path.lstat().st_mtime > FORGOTTEN
