"""Ctrl-C while a command's libraries are still being imported: one line, no traceback."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType


def _is_command() -> bool:
    """Whether this process is the command line, and not a script or a worker that imports the package."""
    told = sys.orig_argv
    module = told[told.index("-m") + 1 :][:1] if "-m" in told else []
    script = sys.argv[:1] if sys.argv[:1] and sys.argv[0] in told else []
    return module == ["bivallate"] or [os.path.basename(name) for name in script] == ["bivallate"]


def _leave(number: int, frame: FrameType | None) -> None:
    """Exit at once, without the traceback that KeyboardInterrupt would print in the middle of an import."""
    os.write(2, b"bivallate: interrupted\n")
    os._exit(130)


def hand_over_interrupts() -> None:
    """From now on let an interrupt raise KeyboardInterrupt, which the command handles."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


if (
    _is_command()
    and threading.current_thread() is threading.main_thread()
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
    signal.signal(signal.SIGINT, _leave)
