"""A request to stop is met between minibatches instead of in the middle of one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from bivallate.errors import UserError

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")


class Interrupted(UserError):
    """The run was asked to stop, saved its state, and says how to go on."""


class Request:
    """Whether somebody has asked the run to stop."""

    def __init__(self) -> None:
        self.made = False


@contextmanager
def interruptible() -> Iterator[Request]:
    """Turns the first SIGINT, SIGTERM, SIGHUP or SIGUSR1 (schedulers of clusters send it before time is up)
    into a request; a second one interrupts at once. One that is ignored, as under nohup, stays so. Main
    thread only."""
    request = Request()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if request.made:
            raise KeyboardInterrupt
        request.made = True

    numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, ask) for number in heard}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
