"""A lock of a run's folder, which is released when its process ends, even if it is killed."""

from __future__ import annotations

import os
import platform
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypedDict

from bivallate.errors import UserError
from bivallate.files import temporary, write_json
from bivallate.processes import alive, namespace_id, started
from bivallate.schema import MEGABYTE, read_json

NAME = ".lock"
BEAT = 20.0  # seconds between two renewals of the lock's modification time
STALE = 120.0  # seconds without a renewal after which a holder on another machine counts as gone


@dataclass(frozen=True)
class Holder:
    """The process that holds a folder.

    Attributes:
        host, pid: name of the machine and number of the process, for messages.
        place, start: identifier of the machine and start time of the process, which together with pid show
            whether the process still runs.
        token: random, by which a process recognises its own lock.
    """

    host: str = field(default_factory=platform.node)
    pid: int = field(default_factory=os.getpid)
    place: str = field(default_factory=namespace_id)
    start: str = field(default_factory=lambda: started(os.getpid()))
    token: str = field(default_factory=lambda: secrets.token_hex(8))


class LockFile(TypedDict):
    """The lock's file: the fields of `Holder`."""

    host: str
    pid: int
    place: str
    start: str
    token: str


class Lock:
    """The lock of a folder; call `check_held` before writing there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file, self.holder = folder, folder / NAME, Holder()

    def check_held(self) -> None:
        """Raise UserError if the folder is gone or another process has locked it."""
        found = _read(self.file)
        if found is not None and found.token == self.holder.token:
            return
        if found is not None:
            raise UserError(
                f"process {found.pid} on {found.host} has taken {self.folder} over: this run stops"
            )
        raise UserError(
            f"{self.folder} was removed or emptied while the run was going on: it stops, and what it had not "
            "yet kept elsewhere is lost; train again"
        )

    def _release(self) -> None:
        if self.holder.pid == os.getpid():  # a forked child must not release its parent's lock
            with suppress(UserError, OSError):
                self.check_held()
                self.file.unlink()


@contextmanager
def lock_folder(folder: Path, tell: Callable[[str], None] = lambda text: None) -> Iterator[Lock]:
    """Lock an existing folder for the duration of the context.

    An earlier holder on this machine has ended if its process has. The process of a holder elsewhere (on
    another machine with a shared file system, in another container, or before a restart of the machine)
    cannot be seen. Such a holder renews the lock file's time every 20 seconds, and counts as gone after two
    minutes without a renewal. The function waits for that and says so through `tell`.

    Raises UserError if another process holds the folder.
    """
    lock, ended = Lock(folder), threading.Event()
    _take(lock, tell)
    beat = threading.Thread(target=_beat, args=(lock, ended), daemon=True)
    beat.start()
    try:
        yield lock
    finally:
        ended.set()
        lock._release()


def _take(lock: Lock, tell: Callable[[str], None]) -> None:
    seen: float | None = None
    while True:
        with _turn(lock.folder):
            there = lock.file.exists()
            found = _read(lock.file) if there else None
            beat = _time_of(lock.file)
            quiet = 0.0 if not there or _visible(found) else _now(lock.folder) - beat
            if not there or (_ended(found) if _visible(found) else quiet > STALE):
                write_json(lock.file, asdict(lock.holder), indent=None)
                return
        if _visible(found) or (seen is not None and beat != seen):
            raise UserError(_in_use(lock.folder, found))
        if seen is None:
            left = f"waiting up to {STALE - quiet:.0f} s for a sign of life"
            tell(f"{lock.folder} was last held by {_who(found)}, which cannot be seen from here; {left}")
        seen = beat
        time.sleep(min(BEAT / 4, max(0.05, STALE / 20)))


def _in_use(folder: Path, found: Holder | None) -> str:
    return (
        f"{folder} is in use: {_who(found)} is training there. Wait for it, stop it, or choose another "
        "folder with --out"
    )


def _who(found: Holder | None) -> str:
    return f"process {found.pid} on {found.host}" if found is not None else "a process that left no name"


def _visible(found: Holder | None) -> bool:
    return found is not None and found.place == namespace_id()


def _ended(found: Holder | None) -> bool:
    return found is not None and not (alive(found.pid) and started(found.pid) == found.start)


def _read(path: Path) -> Holder | None:
    """The holder in the lock's file; None if there is no file, or it cannot be read as one."""
    try:
        entry = read_json(path, "lock", LockFile, MEGABYTE)
    except UserError:
        return None
    return Holder(**entry) if entry.keys() == LockFile.__annotations__.keys() else None


def _time_of(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _now(folder: Path) -> float:
    """The present time by the file system's clock, which also gives the lock file its time."""
    probe = temporary(folder)
    try:
        probe.touch(exist_ok=False)
        return probe.stat().st_mtime
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            probe.unlink()


@contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Let one process of this machine at a time look at the lock file and write it.

    On a file system without locks two processes may write at once. The one whose file is overwritten then
    finds the other's token in `check_held`.
    """
    handle = None
    with suppress(ImportError, OSError):
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _beat(lock: Lock, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        with suppress(UserError, OSError):
            lock.check_held()
            os.utime(lock.file)
