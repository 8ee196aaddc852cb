"""Ctrl-C between minibatches instead of in the middle of one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from bivallate.errors import UserError


class Interrupted(UserError):
    """The run was asked to stop, saved its state, and says how to go on."""


class Request:
    """Whether somebody has asked the run to stop."""

    def __init__(self) -> None:
        self.made = False


@contextmanager
def interruptible() -> Iterator[Request]:
    """Turns the first SIGINT or SIGTERM into a request; a second one interrupts at once. Main thread only."""
    request = Request()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if request.made:
            raise KeyboardInterrupt
        request.made = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
