"""Turn signals and a time limit into a request to stop between two minibatches."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from bivallate.errors import UserError

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")


class Interrupted(UserError):
    """The run was asked to stop; it has saved its state, and the message says how to continue."""


class Request:
    """A request to stop the run, by a signal or by a time limit.

    Args:
        minutes: time limit from now on; None sets none.
    """

    def __init__(self, minutes: float | None = None) -> None:
        self.asked = False
        self._until = math.inf if minutes is None else time.monotonic() + 60 * minutes

    @property
    def late(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() >= self._until

    @property
    def made(self) -> bool:
        """Whether the run should stop."""
        return self.asked or self.late


@contextmanager
def interruptible(minutes: float | None = None) -> Iterator[Request]:
    """Turn the first signal to stop into a request; a second one raises KeyboardInterrupt at once.

    The signals are SIGINT, SIGTERM, SIGHUP and SIGUSR1, which cluster schedulers send before a job's time is
    up. A signal that is ignored, such as SIGHUP under nohup, stays ignored. Signals are handled in the main
    thread only.

    Args:
        minutes: time limit after which a stop is requested too; None sets none.
    """
    request = Request(minutes)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if request.asked:
            raise KeyboardInterrupt
        request.asked = True

    numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, ask) for number in heard}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
