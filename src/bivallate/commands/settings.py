"""Methods by the names that were typed, and which of `--set KEY=VALUE` are their parameters."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from bivallate.errors import UserError, unknown
from bivallate.from_text import read
from bivallate.method import Method, checked
from bivallate.methods.entries import register, registry
from bivallate.models.foreign import imported
from bivallate.run.config import METHOD_PARTS, Config

__all__ = ["named", "own_parameters"]


def named(method: str) -> str:
    """The name of a method; one of the user's own is imported and entered.

    A method of the user's own, package.module:function, becomes known by that name. Only what was typed may
    be given here, never what a file holds.

    Raises:
        UserError: it cannot be imported, or is no function.
    """
    if ":" not in method or method in registry():
        return method
    make = imported(method, "a function (threat, **parameters) that returns a Method")

    @functools.wraps(make)
    def guarded(threat: Any, **parameters: Any) -> Method:
        try:
            return checked(make(threat, **parameters))
        except UserError as error:
            raise UserError(f"{method}: {error}") from error
        except Exception as error:  # a user's function may fail in its own way
            raise UserError(f"{method} failed with {type(error).__name__}: {error}") from error

    register(method)(guarded)
    return method


def own_parameters(method: str, pairs: list[tuple[str, str]]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Parameters of the method's function, and the rest, which are paths into the configuration.

    Raises:
        UserError: a key that is neither, with the nearest of both.
    """
    entries = registry()
    if method not in entries:
        return {}, pairs  # `create` says what is wrong
    known = entries[method].parameters
    others = [*(f.name for f in dataclasses.fields(Config)), *METHOD_PARTS]
    for key, _ in pairs:
        first = key.partition(".")[0]
        if first not in (*known, *others, "amp"):  # an older name, which `Config.set` reads
            raise unknown(f"parameter of {method} or configuration key", first, [*known, *others])
    hints = entries[method].hints
    own = {k: read(v, hints.get(k), k, known[k]) for k, v in pairs if k in known}
    return own, [(k, v) for k, v in pairs if k not in known]
