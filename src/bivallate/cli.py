"""The command line: `bivallate COMMAND`. Errors that are the user's to mend end with one message and status
2."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError

APP = App(
    name="bivallate",
    help="Train image classifiers that withstand adversarial perturbations, and measure how robust they are.",
    result_action="return_value",
)


def _register() -> None:
    """Imports the commands, which put themselves into the application."""
    from bivallate.commands import (  # noqa: F401
        attack,
        auditing,
        comparing,
        diagnosing,
        evaluating,
        lists,
        predict,
        reporting,
        reproducing,
        sweeping,
        training,
        transferring,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: exits with 0, with 2 for a user's mistake, with 130 for an interrupted run."""
    sys.exit(run(sys.argv[1:] if arguments is None else list(arguments)))


def run(arguments: Sequence[str]) -> int:
    """Runs one command and returns its exit status; prints no traceback for a user's mistake."""
    from bivallate import __version__
    from bivallate.errors import UserError
    from bivallate.run.interrupt import Interrupted

    _register()
    APP.version = __version__
    try:
        status = APP(list(arguments), exit_on_error=False, print_error=False)
    except CycloptsError as error:
        return _complain(f"{error} (see `bivallate {' '.join(arguments[:1])} --help`)")
    except Interrupted as error:
        _complain(str(error))
        return 130
    except UserError as error:
        return _complain(str(error))
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        return _complain(f"cannot use {error.filename or 'a file'}: {error.strerror or error}")
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130
    return status if isinstance(status, int) else 0


def _complain(message: str) -> int:
    print(f"bivallate: {message}", file=sys.stderr)
    return 2
