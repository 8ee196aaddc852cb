"""Processes that end at a chosen file operation, as if power were lost."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bivallate import checksummed

END = 9
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.utime", "os.link", "os.symlink"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Counter:
    """Counts the operations that change files below a folder, and ends the process at one of them.

    Attributes:
        at: the operation before which the process ends; 0 for none. seen: operations so far.
    """

    def __init__(self, folder: Path, at: int = 0) -> None:
        self.folder, self.at, self.seen = str(folder), at, 0

    def start(self) -> None:
        """From now on, and for the rest of this process: an audit hook cannot be taken back."""
        sys.addaudithook(self._audit)
        fsync, save_file = os.fsync, checksummed.save_file

        def synced(handle: int) -> None:
            self._next()
            fsync(handle)

        def half_saved(tensors: Any, place: Path, metadata: dict[str, str]) -> None:
            last = self.seen + 1 == self.at
            save_file(tensors, place, metadata) if last else self._next()
            if last:  # the file is half written when the process ends
                os.truncate(place, place.stat().st_size // 2)
                self._next()
            save_file(tensors, place, metadata)

        os.fsync, checksummed.save_file = synced, half_saved

    def _next(self) -> None:
        self.seen += 1
        if self.seen == self.at:
            os._exit(END)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & WRITES and self._own(path):
                self._next()
        elif event in CHANGES and self._own(arguments[0]):
            self._next()

    def _own(self, path: Any) -> bool:
        return isinstance(path, str | os.PathLike) and os.fspath(path).startswith(self.folder)


def in_child(work: Callable[[], object]) -> int:
    """Runs work in a process of its own and returns how that ended: 0, END at a crash, -N by signal N, 1
    where it raised."""
    number = started(work)
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def started(work: Callable[[], object]) -> int:
    """The number of a process that runs work."""
    number = os.fork()
    if number:
        return number
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        work()
    except BaseException:
        os._exit(1)
    os._exit(0)


def operations(work: Callable[[], object], folder: Path) -> int:
    """How many operations on files work makes."""
    ready, done = os.pipe()

    def counted() -> None:
        counter = Counter(folder)
        counter.start()
        work()
        os.write(done, str(counter.seen).encode())

    assert in_child(counted) == 0
    found = int(os.read(ready, 16))
    os.close(ready)
    os.close(done)
    return found


def crash(work: Callable[[], object], folder: Path, at: int) -> int:
    """Ends a process that works before its operation number `at`."""

    def dying() -> None:
        Counter(folder, at).start()
        work()

    return in_child(dying)


def kill(work: Callable[[], object], after: float, number: int = signal.SIGKILL) -> int:
    """Sends a process that works a signal after so many seconds."""
    child = started(work)
    time.sleep(after)
    os.kill(child, number)  # it is not yet waited for, so the number is still its own
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
