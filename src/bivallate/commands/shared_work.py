"""Commands whose work several processes share; only the first process prints."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import wraps
from typing import Any

__all__ = ["shared_work"]


def shared_work(command: Callable[..., None]) -> Callable[..., None]:
    """Decorate a command so that the processes of torchrun share its work.

    All processes run it, and the output of all but the first is discarded. A single process runs the
    command unchanged.
    """

    @wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        from bivallate import collective

        collective.join()
        if collective.rank() == 0:
            return command(*arguments, **options)
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            return command(*arguments, **options)

    return run
