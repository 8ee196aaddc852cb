"""Methods by the names given to commands, and which of `--set KEY=VALUE` are their parameters."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from bivallate.errors import UserError, unknown
from bivallate.from_text import read
from bivallate.method import Method, check_method
from bivallate.methods.entries import register, registry
from bivallate.models.foreign import imported
from bivallate.run.config import METHOD_PARTS, Config

__all__ = ["named", "own_parameters"]


def named(method: str) -> str:
    """Return the name of a method, and register one of the user's own, package.module:function.

    Such a method is imported, so only names from the command line may be given here, never names that a
    file holds.

    Raises:
        UserError: it cannot be imported, or is not a function.
    """
    if ":" not in method or method in registry():
        return method
    make = imported(method, "a function (threat, **parameters) that returns a Method")

    @functools.wraps(make)
    def guarded(threat: Any, **parameters: Any) -> Method:
        try:
            return check_method(make(threat, **parameters))
        except UserError as error:
            raise UserError(f"{method}: {error}") from error
        except Exception as error:  # a user's function may fail in its own way
            raise UserError(f"{method} failed with {type(error).__name__}: {error}") from error

    register(method)(guarded)
    return method


def own_parameters(method: str, pairs: list[tuple[str, str]]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Split settings into parameters of the method's function and paths into the configuration.

    Args:
        pairs: (key, value), both as text.

    Returns:
        The parameters, converted to their types, and the other pairs.

    Raises:
        UserError: a key that is neither; the message names the nearest one.
    """
    entries = registry()
    if method not in entries:
        return {}, pairs  # `create` raises for an unknown method
    known = entries[method].parameters
    others = [*(f.name for f in dataclasses.fields(Config)), *METHOD_PARTS]
    for key, _ in pairs:
        first = key.partition(".")[0]
        if first not in (*known, *others, "amp"):  # `Config.set` accepts this older name
            raise unknown(f"parameter of {method} or configuration key", first, [*known, *others])
    hints = entries[method].hints
    own = {k: read(v, hints.get(k), k, known[k]) for k, v in pairs if k in known}
    return own, [(k, v) for k, v in pairs if k not in known]
