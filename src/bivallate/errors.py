"""Errors that are the user's to mend: the command line prints them without a traceback and exits with 2."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class UserError(Exception):
    """Says what was wrong, what was got and what to do."""


def check_range(what: str, value: float, low: float, high: float = math.inf) -> None:
    """Raises UserError unless low <= value <= high; NaN is never in range."""
    if isinstance(value, int | float) and not low <= value <= high:
        top = "" if math.isinf(high) else f" and at most {high:g}"
        raise UserError(f"{what} must be at least {low:g}{top}, got {value!r}")


def check_seed(seed: object) -> int:
    """A whole number from 0 to 2^63 - 1. Raises UserError for anything else."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 1 << 63:
        raise UserError(f"seed must be a whole number from 0 to 2^63 - 1, got {seed!r}")
    return seed


def check_device(name: torch.device | str, instead: str) -> torch.device:
    """The device of that name. Raises UserError, which says what to do `instead`, where there is none."""
    import torch

    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device {name!r} cannot be used: {reason}; {instead}") from error
    return device


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that is not in a list: it suggests the nearest one and names the rest.

    Example:
        >>> print(unknown("method", "fast-bta", ["fast-at", "fast-bat"]))
        unknown method 'fast-bta': did you mean 'fast-bat'? Known: fast-at, fast-bat
    """
    names = sorted(known)
    close = nearest(name, names)
    hint = f"did you mean {close!r}? " if close else ""
    return UserError(f"unknown {kind} {name!r}: {hint}Known: {', '.join(names)}")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The name that was probably meant, whatever its case; None if none is alike."""
    plain = {other.lower(): other for other in known}
    close = difflib.get_close_matches(name.lower(), plain, n=1, cutoff=0.5)
    return plain[close[0]] if close else None
