"""Errors that the user can correct: the command line prints them without a traceback and exits with 2."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    import torch


Function = TypeVar("Function", bound=Callable[..., Any])


class UserError(Exception):
    """An error that the user can correct: the message says what is wrong, what was given and what to do."""


class RankError(UserError):
    """An error that another rank raised, raised again on this one."""


def check_range(what: str, value: object, low: float, high: float = math.inf) -> None:
    """Raise UserError for a number that is not finite or not between low and high.

    Of a schedule its `extremes` are checked. Anything else passes, such as a schedule without them.
    """
    for number in getattr(value, "extremes", (value,)):
        if not isinstance(number, int | float):
            continue
        if not low <= number <= high:
            top = "" if math.isinf(high) else f" and at most {high:g}"
            raise UserError(f"{what} must be at least {low:g}{top}, got {number!r}")
        if number == math.inf:
            raise UserError(f"{what} must be finite, got {number!r}")


def check_decays(**decays: float) -> None:
    """Raise UserError for a momentum or beta that is not in [0, 1)."""
    for name, value in decays.items():
        if not 0 <= value < 1:
            raise UserError(f"{name} must be at least 0 and below 1, such as 0.9, got {value!r}")


def to_python(value: Any) -> Any:
    """Turn a number of NumPy or torch, or those in a list or tuple, into Python's; keep anything else.

    Example:
        >>> import numpy as np
        >>> to_python(np.int64(3)), to_python((np.float32(0.5), "x"))
        (3, (0.5, 'x'))
    """
    if type(value) in (tuple, list):
        return type(value)(to_python(item) for item in value)
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value


def python_arguments(function: Function) -> Function:
    """Decorator: turn numbers of NumPy or torch among a function's arguments into Python's."""

    @functools.wraps(function)
    def given(*args: Any, **options: Any) -> Any:
        return function(*map(_number, args), **{name: _number(value) for name, value in options.items()})

    return cast(Function, given)


def _number(value: Any) -> Any:
    """As `to_python`, but leave tuples and lists alone: data is a tuple of tensors or arrays."""
    return value if type(value) in (tuple, list) else to_python(value)


def check_whole(what: str, value: Any, least: int = 1) -> None:
    """Raise UserError unless the value is a whole number of at least `least`; booleans are refused."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{what} must be a whole number of at least {least}, got {value!r}")


def check_seed(seed: object) -> int:
    """Return the seed, a whole number from 0 to 2^63 - 1. Raises UserError for anything else."""
    seed = to_python(seed)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 1 << 63:
        raise UserError(f"seed must be a whole number from 0 to 2^63 - 1, got {seed!r}")
    return seed


def check_number(what: str, value: Any) -> None:
    """Raise UserError unless the value is a number; booleans are refused."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{what} must be a number, got {value!r}")


def check_path(what: str, value: Any) -> Path:
    """Return the value as a path. Raises UserError for what is no path."""
    if not isinstance(value, str | os.PathLike):
        raise UserError(f"{what} must be a path, got {value!r}")
    return Path(value)


def check_device(name: torch.device | str, instead: str) -> torch.device:
    """Return the device of that name. Raises UserError, which ends with `instead`, if it cannot be used."""
    import torch

    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:  # torch's own message lists every type of device there is
        raise UserError(
            f"device {name!r} cannot be used: devices are cpu, cuda, cuda:N, mps; {instead}"
        ) from error
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device {name!r} cannot be used: {reason}; {instead}") from error
    return device


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device; torch has no single type for it."""
    import torch

    words = ("DefaultCPUAllocator", "not enough memory", "bad_alloc", "Unable to allocate")
    plain = isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    return plain or isinstance(error, MemoryError | torch.OutOfMemoryError)


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that is not in a list: it suggests the nearest one and names the rest.

    Example:
        >>> print(unknown("method", "fast-bta", ["fast-at", "fast-bat"]))
        unknown method 'fast-bta': did you mean 'fast-bat'? Known: fast-at, fast-bat
    """
    names = sorted(set(known))
    close = nearest(name, names)
    hint = f": did you mean {close!r}?" if close else "."
    return UserError(f"unknown {kind} {name!r}{hint} Known: {listed(names)}")


def listed(names: Iterable[object]) -> str:
    """Join names for a message, each once and in their order; "none" if there are none.

    Example:
        >>> listed(["b", "a", "b"]), listed([])
        ('b, a', 'none')
    """
    return ", ".join(dict.fromkeys(map(str, names))) or "none"


def check_options(what: str, given: Iterable[str], function: Callable[..., Any], **called: str) -> None:
    """Raise UserError for an option that a function does not take.

    Args:
        what: names the function in the error. called: other names of options -> their names in Python.
    """
    known = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for name in given:
        if name in called:
            raise UserError(f"{name} of {what} is called {called[name]} in Python")
        if name not in known:
            raise unknown(f"option of {what}", name, known)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most similar to `name`, ignoring case; None if none is similar."""
    plain = {other.lower(): other for other in known}
    close = difflib.get_close_matches(name.lower(), plain, n=1, cutoff=0.5)
    return plain[close[0]] if close else None
