"""Show the progress of an evaluation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console

from bivallate.errors import UserError
from bivallate.quoting import line, visible
from bivallate.terminal import NAME_WIDTH, bar, literal_console

__all__ = ["ProgressState", "duration", "progress_callback", "shown_progress"]

EVERY = 30.0  # seconds between lines without a terminal
SHORT = 10.0  # seconds of work below which nothing is printed without a terminal


class ProgressState(Protocol):
    """The progress of an evaluation, an audit or a search, as it is shown."""

    @property
    def title(self) -> str:
        """The name of the present work."""
        ...

    @property
    def numbers(self) -> str:
        """Numbers found so far, as text."""
        ...

    @property
    def fraction(self) -> float:
        """The fraction of the work that is done, in [0, 1]."""
        ...

    @property
    def seconds_left(self) -> float | None:
        """The remaining time at the present pace; None if there is no estimate yet."""
        ...


def duration(seconds: float, digits: int = 0) -> str:
    """Format seconds with a unit; with `digits` decimals below hours, which have one.

    Example:
        >>> duration(8.4), duration(260), duration(9000)
        ('8 s', '4 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.{digits}f} s"
    return f"{seconds / 60:.{digits}f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class shown_progress:  # noqa: N801  a context manager, used like a function
    """Show progress on standard error.

    On a terminal it is a bar. Otherwise it is a line once the work is known to be long, and one every half
    minute.

    Args:
        silent: show nothing.
        label: text at the beginning, such as the name of a run.
    """

    def __init__(self, silent: bool = False, label: str = "", console: Console | None = None) -> None:
        self._console = console or literal_console(to_stderr=True, soft_wrap=True)
        self._silent, self._label = silent, label
        self._bar = bar(self._console, transient=True)
        self._spoken: float | None = None

    def __enter__(self) -> Callable[[ProgressState], None]:
        self._drawn = self._console.is_terminal and not self._silent
        if self._drawn:
            self._bar.start()
        self._task = self._bar.add_task(line(self._label, NAME_WIDTH), total=1.0, numbers="")
        return self._update

    def __exit__(self, *exception: object) -> None:
        if self._drawn:
            self._bar.stop()

    def _update(self, moment: ProgressState) -> None:
        left = moment.seconds_left
        title = f"{self._label}: {moment.title}" if self._label else moment.title
        numbers = moment.numbers + ("" if left is None else f", about {duration(left)} left")
        self._bar.update(
            self._task, description=line(title, NAME_WIDTH), completed=moment.fraction, numbers=numbers
        )
        if self._silent or self._console.is_terminal or left is None:
            return
        now = time.monotonic()
        if left > SHORT if self._spoken is None else now - self._spoken >= EVERY:
            self._spoken = now
            self._console.print(visible(f"{title}: {moment.fraction:.0%}, {numbers}"), markup=False)


@contextmanager
def progress_callback(
    progress: bool | Callable[[Any], object] | None,
) -> Iterator[Callable[[Any], object] | None]:
    """Yield the function to call with the progress: the caller's own, a bar for True, None for False.

    Raises:
        UserError: progress is none of these.
    """
    if progress is True:
        with shown_progress() as show:
            yield show
    elif callable(progress):
        yield progress
    elif progress is None or progress is False:
        yield None
    else:
        raise UserError(f"progress must be True, False or a function of a moment, got {progress!r}")
