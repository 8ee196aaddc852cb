"""Standard output and error that survive a closed pipe or a full disk."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any


class SafeStream:
    """A text stream that drops text that cannot be written, and remembers the error.

    Attributes:
        find: returns the present stream. number: its file descriptor, 1 or 2, or None for another stream. It
            is redirected to the null device after the first error, so that text that is still buffered does
            not fail again at exit.
        lost: the first error, or None.
    """

    def __init__(self, find: Callable[[], Any], number: int | None = None) -> None:
        self.find, self.number = find, number
        self.lost: OSError | ValueError | None = None

    def write(self, text: str) -> int:
        """Write the text, or drop it; a character that the stream's encoding lacks becomes its number."""
        try:
            self._try(lambda stream: stream.write(text))
        except UnicodeEncodeError as error:
            plain = text.encode(error.encoding, "backslashreplace").decode(error.encoding)
            self._try(lambda stream: stream.write(plain))
        return len(text)

    def flush(self) -> None:
        """Write buffered text, or drop it."""
        self._try(lambda stream: stream.flush())

    def _try(self, work: Callable[[Any], Any]) -> None:
        stream = self.find()
        if self.lost is not None or stream is None:
            return
        try:
            work(stream)
        except (OSError, ValueError) as error:  # ValueError: it is closed
            if isinstance(error, UnicodeError):
                raise
            self.lost = error
            if self.number is not None:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.number)
                os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.find(), name)


@contextmanager
def safe_streams() -> Iterator[tuple[SafeStream, SafeStream]]:
    """Replace standard output and error by safe streams for the time of a command."""
    _occupy()
    before = sys.stdout, sys.stderr
    out, error = (SafeStream(lambda stream=stream: stream, _number(stream)) for stream in before)
    sys.stdout, sys.stderr = out, error  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield out, error
    finally:
        out.flush()
        error.flush()
        sys.stdout, sys.stderr = before


def _occupy() -> None:
    """Open the null device in place of closed standard streams.

    Otherwise the next file that is opened gets their descriptor and receives what is printed.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with suppress(OSError):
                os.open(os.devnull, os.O_RDWR)  # takes the lowest free number


def _number(stream: Any) -> int | None:
    try:
        number = stream.fileno()
    except (AttributeError, OSError, ValueError):
        return None
    return number if number in (1, 2) else None
