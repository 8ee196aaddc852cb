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

# Signals that the terminal and schedulers send to a whole process group; only the parent acts on them.
SENT_TO_GROUPS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
)


class WorkersLost(UserError):
    """Raised if a worker process was killed or did not start."""


def start(workers: int, prepare: Callable[..., None], *arguments: Any) -> ProcessPoolExecutor:
    """Start a pool of spawned processes, each of which calls `prepare` first. Give it work by `submit`."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, context, _begin, (prepare, arguments))


def submit(pool: ProcessPoolExecutor, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """Give work to the pool.

    Signals to the group are blocked meanwhile. A process that the pool starts inherits this, so that a signal
    cannot interrupt it before it has run its first line.
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
    """Prepare a new worker: leave the terminal's process group; SIGTERM from the pool still ends it."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    if hasattr(os, "setsid"):
        os.setsid()
    for number in SENT_TO_GROUPS:
        signal.signal(number, signal.SIG_IGN)  # also drops signals that were blocked
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SENT_TO_GROUPS)
    prepare(*arguments)


def end_with_parent() -> None:
    """End this process when its parent has ended; it would otherwise wait for work for ever.

    Runs in a thread of the worker.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
