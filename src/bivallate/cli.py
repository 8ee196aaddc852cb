"""The command line: `bivallate COMMAND`.

A user's mistake ends with one message and exit status 2.
"""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Sequence

from cyclopts import App, CoercionError, CycloptsError, UnknownOptionError, ValidationError, _convert

from bivallate.commands import COMMANDS
from bivallate.errors import RankError, UserError
from bivallate.from_text import whole_number
from bivallate.run.signals import Interrupted
from bivallate.safe_streams import safe_streams
from bivallate.startup_interrupt import hand_over_interrupts
from bivallate.terminal import literal_console, say
from bivallate.version import __version__


def _whole(text: str) -> int:
    """Read a whole number as --set does; ValueError is what cyclopts expects for others."""
    try:
        return whole_number(text, "it")
    except UserError as error:
        raise ValueError(str(error)) from None


_convert._converters[int] = _whole  # pyright: ignore[reportPrivateUsage]  its own rounds; for every command

APP = App(
    name="bivallate",
    help="Train image classifiers that withstand adversarial perturbations, and measure how robust they are.",
    help_epilogue="With --debug, a command that fails shows where it failed.",
    version=__version__,
    result_action="return_value",
    suppress_keyboard_interrupt=False,  # `run` says that it was interrupted
)


def _register() -> None:
    """Make the commands known by name, once."""
    if COMMANDS.keys() <= set(APP):
        return
    for name, command in COMMANDS.items():
        examples = "".join(f"\n      bivallate {example}" for example in command.examples)
        APP.command(
            command.function(),
            name=name,
            usage=f"Usage: bivallate {name} {command.usage}",
            help_epilogue=f"    Examples:{examples}",
        )
    APP.register_install_completion_command(
        help="Let the shell complete commands and options (bash, zsh or fish)."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the command line.

    Exits with 0 for success, 1 for an unexpected error or if standard output could not be written, 2 for a
    user's mistake, and 130 for an interrupted run.
    """
    with safe_streams() as (out, _):
        try:
            hand_over_interrupts()
            status = run(sys.argv[1:] if arguments is None else list(arguments))
        except KeyboardInterrupt:
            _complain("interrupted")
            status = 130
        out.flush()
        if out.lost is not None and not isinstance(out.lost, BrokenPipeError):
            _complain(f"standard output could not be written ({out.lost}); what belongs into files is there")
            status = status or 1
        sys.exit(status)


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit status; print a traceback only with `--debug`."""
    words = list(arguments)
    end = words.index("--") if "--" in words else len(words)
    debug = "--debug" in words[:end]
    words = [word for k, word in enumerate(words) if word != "--debug" or k > end]
    try:
        return _command(words)
    except Exception as error:  # the one place that turns any error into a line and an exit status
        if debug:
            traceback.print_exc()
        return _explained(error, words)
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130


def _command(words: list[str]) -> int:
    """Find the command and run it."""
    _register()
    status = APP(words, console=literal_console(), exit_on_error=False, print_error=False)
    return status if isinstance(status, int) else 0


def _explained(error: Exception, words: Sequence[str]) -> int:
    """Print the error in one line; return 2 for a user's mistake, 1 for an unexpected error."""
    if isinstance(error, CycloptsError):
        return _complain(_misread(error, words))
    if isinstance(error, UserError) and not isinstance(error, Interrupted):
        return 2 if isinstance(error, RankError) else _complain(str(error))
    from bivallate.collective import peer_is_gone, rank  # torch is slow, and what is mistyped is told at once

    if isinstance(error, Interrupted):
        return 130 if rank() else _complain(str(error), 130)
    if isinstance(error, BrokenPipeError):
        # text that is still buffered goes nowhere, and does not fail again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if isinstance(error, OSError):
        return _complain(f"cannot use {error.filename or 'a file'}: {error.strerror or error}")
    if peer_is_gone(error):
        return _complain(
            "another process of this group has ended, so this one ends too; what it said stands above, or in "
            "its own log. The last checkpoint is whole: resume on as many processes",
            1,
        )
    reason = (str(error).strip() or "no reason given").splitlines()[0]
    _complain(f"unexpected {type(error).__name__}: {reason}. Where it happened stands in {_kept(error)}")
    return 1


def _misread(error: CycloptsError, words: Sequence[str]) -> str:
    """What is wrong with the words of a command line."""
    if isinstance(error, ValidationError) and error.argument is not None and error.exception_message:
        return f"{error.argument.name} {error.exception_message}"
    if isinstance(error, UnknownOptionError) and (hint := _instead(error, words)):
        return hint
    about = f"(see `bivallate {' '.join(words[:1])} --help`)"
    if isinstance(error, CoercionError) and error.target_type in (int, int | None):
        token = error.token
        if token is not None and token.keyword:
            return f"{token.keyword} must be a whole number, got {token.value!r} {about}"
    return f"{error} {about}"


def _instead(error: UnknownOptionError, words: Sequence[str]) -> str:
    """The hint for an option that only another command has; empty if there is none."""
    option = error.token.keyword or ""
    command = COMMANDS.get(words[0]) if words else None
    serves = command.instead.get(option.replace("_", "-")) if command is not None else None
    return f"{words[0]} has no {option}: {serves} (see `bivallate {words[0]} --help`)" if serves else ""


def _kept(error: Exception) -> str:
    """Write the traceback to a new file and return its path: the failed run may have taken hours."""
    place, name = tempfile.mkstemp(prefix="bivallate-", suffix=".txt")
    with os.fdopen(place, "w", encoding="utf-8", errors="backslashreplace") as stream:
        stream.writelines(traceback.format_exception(error))
    return name


def _complain(message: str, status: int = 2) -> int:
    say(f"bivallate: {message}", to_stderr=True)
    return status
