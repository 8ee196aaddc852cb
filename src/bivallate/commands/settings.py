"""Methods by the names given to commands, and which of `--set KEY=VALUE` are their parameters."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from bivallate.errors import UserError, unknown
from bivallate.from_text import read
from bivallate.method import Method, check_method
from bivallate.methods.entries import Entry, register, registry
from bivallate.models.foreign import imported
from bivallate.run.config import METHOD_PARTS, Config
from bivallate.schema import fields_of
from bivallate.terminal import say

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

    A key that both have is the parameter's if the value fits it, and the configuration's otherwise:
    `rate=0.2` is WAT's, `rate=Cycles` the learning rate's. `method.KEY` and `config.KEY` say which is meant.

    Args:
        pairs: (key, value), both as text.

    Returns:
        The parameters, converted to their types, and the other pairs.

    Raises:
        UserError: a key that is neither, with the nearest one, or a value that fits neither.
    """
    entries = registry()
    if method not in entries:
        return {}, pairs  # `create` raises for an unknown method
    entry, known = entries[method], entries[method].parameters
    fields = [*(f.name for f in dataclasses.fields(Config)), *METHOD_PARTS]
    own, others = {}, []
    for path, text in pairs:
        first, _, rest = path.partition(".")
        if first not in (*known, *fields, "amp", "config"):  # `Config.set` accepts this older name
            raise unknown(f"parameter of {method} or configuration key", first, [*known, *fields])
        key = rest if first == "method" and rest not in METHOD_PARTS else path
        if key in known and not (key == path and key in fields and _for_configuration(entry, key, text)):
            own[key] = read(text, entry.hints.get(key), key, known[key])
        else:
            others.append((path, text))
    return own, others


def _for_configuration(entry: Entry, key: str, text: str) -> bool:
    """Whether a value of a key that the method and the configuration share is for the configuration.

    Prints a note if it could be for either, and is taken for the method. Raises UserError if it fits neither.
    """
    hints = fields_of(Method) | fields_of(Config)
    why = _misfit(lambda: entry.check(key, read(text, entry.hints.get(key), key, entry.parameters[key])))
    other = _misfit(lambda: read(text, hints[key], key))
    if why is not None and other is not None:
        raise UserError(f"{why} (config.{key}, which is not of the method: {other})") from why
    if why is None and other is None and key not in METHOD_PARTS:
        ways = f"write method.{key}={text} or config.{key}={text} to say which"
        say(
            f"note: {key}={text} is taken for {entry.name}; the configuration has one too: {ways}",
            to_stderr=True,
        )
    return why is not None


def _misfit(read_it: Callable[[], Any]) -> UserError | None:
    """The error that reading a value raises; None if it fits."""
    try:
        read_it()
    except UserError as error:
        return error
    return None
