"""The file of a command's result, tested for writing before the work begins."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bivallate.commands.options import Subset, WeightsSource
from bivallate.errors import UserError
from bivallate.terminal import say

__all__ = ["chosen", "confirm_kept", "result_file", "saved_result", "unusual"]


def result_file(default: Path, out: Path | None) -> Path | None:
    """Choose the file of a result: `out` if it is given, else `default`, which is in a run's folder.

    Returns:
        The file; None, with a warning, if the run's folder cannot be written to. The result is then only
        printed, and `saved_result` ends the command with status 2.

    Raises:
        UserError: `out` cannot be written.
    """
    place = default if out is None else out
    fault = _fault(place)
    if not fault:
        return place
    if out is not None:
        raise UserError(f"cannot write --out {out}: {fault}; name another place")
    say(
        f"warning: {default} cannot be written ({fault}): the result is printed and not kept; "
        "name a place with --out",
        to_stderr=True,
    )
    return None


@contextmanager
def saved_result(
    place: Path | None,
    save: Callable[[Path], object],
    *,
    silent: bool = False,
) -> Iterator[None]:
    """Save a result, run the block that prints it, and print where it was saved.

    The block runs even if saving fails, so that no result is lost.

    Args:
        place: the file; None if there is none.
        save: writes the result to a file.
        silent: do not print the place.

    Raises:
        UserError: after the block, if the result could not be saved.
    """
    fault: UserError | None = None
    try:
        from bivallate.collective import rank

        if place is not None and rank() == 0:
            save(place)
    except UserError as error:
        fault = error
    yield
    confirm_kept(place, fault, silent=silent)


def confirm_kept(place: Path | None, fault: UserError | None, *, silent: bool = False) -> None:
    """Print where a result was saved, or raise the reason why it was not.

    Args:
        place: the file; None if the run's folder cannot be written to.
        fault: the error of saving it, if there was one.
        silent: do not print the place.

    Raises:
        UserError: the result was not saved.
    """
    if place is None:
        fault = UserError("the result was printed, but cannot be kept in the run's folder: say --out")
    if fault is not None:
        raise fault
    if not silent:
        say(f"kept in {place}")


def unusual(source: WeightsSource, subset: Subset) -> str:
    """What a default file name says of weights, points and seed where they are not the usual ones."""
    said = {"n": subset.n, "first": subset.first, "seed": source.seed or None}
    words = [] if source.weights == "best" else [source.weights]
    return "".join(f"-{word}" for word in [*words, *(f"{k}{v}" for k, v in said.items() if v is not None)])


def chosen(source: WeightsSource, subset: Subset) -> dict[str, Any]:
    """The weights, the points (all of them if both are None) and the seed of a result, for its JSON."""
    return {"weights": source.weights, "seed": source.seed, "subset": subset.n, "first": subset.first}


def _fault(place: Path) -> str:
    """The reason why no file can be written there, or ""; tries it with a temporary file."""
    if place.is_dir():
        return "it is a folder"
    folder = next((p for p in place.absolute().parents if os.path.lexists(p)), place.absolute().parent)
    try:
        handle, name = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=folder)
        os.close(handle)
        os.unlink(name)
    except OSError as error:
        return error.strerror or str(error)
    return ""
