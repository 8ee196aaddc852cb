"""Run code in a separate process in which `torch.cuda` is the stand-in, to spare other tests."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from tests.ranks import PRELOADED

ANSWER = 240  # seconds


class Card:
    """Functions of modules, called where there is a device. They return what can be pickled."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()

    def __call__(self, work: Callable[..., Any], *args: Any) -> Any:
        """What the function returns there; what it raises there is an AssertionError with its traceback."""
        self.pipe.send((work, args))
        assert self.pipe.poll(ANSWER), f"{work.__name__}{args} does not end"
        good, found = self.pipe.recv()
        assert good, found
        return found

    def close(self) -> None:
        """Ends the process."""
        self.pipe.close()
        self.process.join(10)
        self.process.kill()


def _serve(pipe: Connection) -> None:
    import torch
    from tests.device import standin

    torch.set_num_threads(1)
    with standin.cuda():
        while True:
            try:
                work, args = pipe.recv()
            except EOFError:
                return
            for counter in vars(standin.log).values():
                counter.clear()
            try:
                pipe.send((True, work(*args)))
            except BaseException:  # reported where it was asked
                pipe.send((False, traceback.format_exc()))
