"""Print text for people, with control characters escaped, and JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
from rich.text import Text

from bivallate.errors import UserError
from bivallate.quoting import visible

NARROWEST = 40  # columns: the layout is never narrower, and a narrower terminal wraps it
NAME_WIDTH = 60  # characters of a name in a table


def say(text: Any, *, to_stderr: bool = False) -> None:
    """Print a line on standard output, or with `to_stderr` on standard error."""
    print(visible(text), file=sys.stderr if to_stderr else sys.stdout, flush=to_stderr)


def text_callback(progress: bool | Callable[[str], object]) -> Callable[[str], object]:
    """The function that receives lines of progress: the caller's, one that prints them, or one that does not.

    They are printed on standard error.
    """
    if callable(progress):
        return progress
    return (lambda text: say(text, to_stderr=True)) if progress else (lambda text: None)


def say_json(value: Any, indent: int | None = None) -> None:
    """Print JSON on standard output, in ASCII."""
    print(to_json(value, indent))


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON in ASCII.

    Raises:
        UserError: a value that is no plain data, or is NaN or infinite, which JSON cannot write.
    """
    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"the result cannot be written as JSON: {error}") from error


class _Literal(Console):
    """A console for which all strings are text: no markup, no emoji names, nothing that moves the cursor."""

    def render_str(self, text: str, **options: Any) -> Text:
        options |= {"markup": False, "emoji": False, "highlight": False}
        return super().render_str(visible(text), **options)


def literal_console(*, to_stderr: bool = False, width: int | None = None, soft_wrap: bool = False) -> Console:
    """A rich console on standard output, or on standard error."""
    made = _Literal(
        stderr=to_stderr, width=width, highlight=False, markup=False, emoji=False, soft_wrap=soft_wrap
    )
    made.width = max(made.width, NARROWEST)
    return made


def bar(console: Console, *more: ProgressColumn, transient: bool = False) -> Progress:
    """A progress bar with a description and the field `numbers`. Pass all text through `visible` first."""
    description = TextColumn("{task.description}", markup=False)
    numbers = TextColumn("{task.fields[numbers]}", markup=False)
    return Progress(description, BarColumn(24), numbers, *more, console=console, transient=transient)
