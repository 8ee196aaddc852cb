"""Worker processes that ignore signals to their group and end with their parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any

from bivallate.errors import UserError

__all__ = ["WorkersLost", "end_with_parent", "start", "submit"]

# What the terminal and schedulers send to a whole group; the parent alone decides what it means.
SENT_TO_GROUPS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
)


class WorkersLost(UserError):
    """A worker process was killed or did not start."""


def start(workers: int, prepare: Callable[..., None], *arguments: Any) -> ProcessPoolExecutor:
    """A pool of spawned processes, each of which calls `prepare` first. Give it work by `submit`."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, context, _begin, (prepare, arguments))


def submit(pool: ProcessPoolExecutor, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """Give work to the pool.

    A process that this starts inherits that signals to the group are held back, as it could be interrupted
    before it has run a line.
    """
    with _held_back():
        return pool.submit(work, *arguments)


@contextmanager
def _held_back() -> Iterator[None]:
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SENT_TO_GROUPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(prepare: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Leave the terminal's process group, in a new process; SIGTERM from the pool still ends it."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    if hasattr(os, "setsid"):
        os.setsid()
    for number in SENT_TO_GROUPS:
        signal.signal(number, signal.SIG_IGN)  # drops what was held back
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SENT_TO_GROUPS)
    prepare(*arguments)


def end_with_parent() -> None:
    """End this process when its parent has ended.

    For a thread of a process that would otherwise wait for work for ever.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
