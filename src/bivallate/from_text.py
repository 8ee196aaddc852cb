"""Read values from text: `--set KEY=VALUE`, parameters of methods and options of networks.

The type hint of the field or parameter determines how the text is read; without a hint, the type of the
present value does.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from typing import Any

from bivallate.errors import UserError, unknown
from bivallate.part_kinds import parts_for
from bivallate.parts import part_named, written
from bivallate.renamed import present_field
from bivallate.schema import PLAIN, fields_of, options_of

__all__ = ["literal", "override", "pair", "parse_number", "read", "whole_number"]


def parse_number(text: str | float, what: str = "eps") -> float:
    """A float from `0.03`, `8/255` or a number; `what` names the value in the error.

    Example:
        >>> round(parse_number("8/255"), 4)
        0.0314
    """
    if isinstance(text, int | float):
        return float(text)
    try:
        numerator, _, denominator = text.partition("/")
        return float(numerator) / float(denominator) if denominator else float(numerator)
    except (ValueError, ZeroDivisionError):
        raise UserError(f"{what} must be a number such as 0.03 or 8/255, got {text!r}") from None


def whole_number(text: str, what: str) -> int:
    """A whole number from `30`, `30.0`, `3e1`, `60/2` or `0x1e`; `what` names the value in the error.

    Digits alone are read exactly, however many. 2.9 is refused, not rounded.

    Example:
        >>> whole_number("3e1", "epochs"), whole_number("0x1e", "epochs")
        (30, 30)
    """
    based = text.strip().lower().lstrip("+-").startswith(("0x", "0o", "0b"))
    try:
        return int(text, 0 if based else 10)
    except ValueError:
        pass
    try:
        number = parse_number(text, what)
    except UserError:
        number = math.nan
    if not math.isfinite(number) or number != int(number):
        raise UserError(f"{what} must be a whole number, got {text!r}")
    return int(number)


def pair(item: str, such_as: str = "solver.steps=20", what: str = "--set") -> tuple[str, str]:
    """Split KEY=VALUE into KEY and VALUE. Raises UserError for anything else."""
    key, equals, value = item.partition("=")
    if not equals or not key.strip():
        raise UserError(f"{what} needs KEY=VALUE, such as {such_as}, got {item!r}")
    return key.strip(), value.strip()


def literal(text: str) -> Any:
    """Read a text by its looks, where nothing says which type it should have.

    The result is a number, a boolean, None, a list of these (with commas) or the text itself.

    Example:
        >>> literal("3"), literal("1/4"), literal("none"), literal("7, 7"), literal("same")
        (3, 0.25, None, [7, 7], 'same')
    """
    if "," in text:
        return [literal(item.strip()) for item in text.split(",") if item.strip()]
    if text.lower() in (words := {"true": True, "false": False, "none": None}):
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return parse_number(text) if re.fullmatch(r"\d+/[1-9]\d*", text) else text


def override(value: Any, path: str, text: Any) -> Any:
    """Return a copy of a part with one field, named by a dotted path, changed.

    Text is read by the field's type hint (see `read`); any other value is taken as it is. Raises UserError
    for an unknown path or a value that does not fit.
    """
    name, _, rest = path.partition(".")
    name, known = present_field(type(value), name), written(type(value))
    if name not in known:
        raise unknown(f"part or field of {type(value).__name__}", name, known)
    current = getattr(value, name)
    if rest:
        if not dataclasses.is_dataclass(current):
            raise UserError(f"{name} of {type(value).__name__} is {current!r}, which has no field {rest!r}")
        new = override(current, rest, text)
    else:
        new = text
        if isinstance(text, str):
            new = read(text, fields_of(type(value)).get(name), f"{type(value).__name__}.{name}", current)
    return dataclasses.replace(value, **{name: new})


def read(text: str, hint: Any, where: str, current: Any = None) -> Any:
    """Read a text as a value of the type `hint`.

    Numbers may be written as 8/255, booleans as true or false, None as none, tuples with commas, and a part
    by its kind (`coupling=Detached`) or in the short form that the part itself reads (`from_text`).

    Args:
        hint: a type hint, or None if there is none.
        where: names the value in errors.
        current: the present value; without a hint its type is used.

    Raises:
        UserError: the text cannot be read as that type.
    """
    options = options_of(hint)
    if not options:
        if current is None:
            return literal(text)
        options = [type(current)] if isinstance(current, str) else [type(current), types.NoneType]
    words = [word for option in options if _is_words(option) for word in typing.get_args(option)]
    parts = [option for option in options if _is_part(option)]
    if text in words:
        return text
    if text.lower() == "none" and types.NoneType in options:
        return None
    if parts and (made := part_named(text, where)) is not None:
        return made
    if bool in options:
        return _truth(text, where, words)
    if parts and text.isidentifier() and text.lower() not in ("inf", "nan") and bool not in options:
        return _short(text, parts, where, current)
    if float in options or int in options:
        return _real(text, where) if float in options else whole_number(text, where)
    for option in options:
        if tuple in (option, typing.get_origin(option)):
            return _several(text, option, where, current)
    return _short(text, parts, where, current) if parts else text


def _is_words(hint: Any) -> bool:
    return typing.get_origin(hint) is typing.Literal


def _is_part(hint: Any) -> bool:
    """Whether a hint asks for a part: a class that is not plain, or a function."""
    return hint not in (*PLAIN, tuple) and typing.get_origin(hint) not in (tuple, typing.Literal)


def _truth(text: str, where: str, words: list[str]) -> bool:
    if text.lower() not in ("true", "false"):
        others = "".join(f" or {word}" for word in words)
        raise UserError(f"{where} must be true or false{others}, got {text!r}")
    return text.lower() == "true"


def _real(text: str, where: str) -> float:
    number = parse_number(text, where)
    if math.isnan(number):
        raise UserError(f"{where} must be a number, got {text!r}")
    return number


def _several(text: str, hint: Any, where: str, current: Any) -> tuple[Any, ...]:
    """Read a tuple from items with commas between them; "none" is the empty tuple."""
    items = [] if text.lower() in ("", "none") else [item.strip() for item in text.split(",")]
    asked = typing.get_args(hint)
    if not asked:
        asked = (type(current[0]) if current else float, ...)
    hints = [asked[0]] * len(items) if asked[-1] is ... else asked
    if len(hints) != len(items):
        raise UserError(f"{where} holds {len(hints)} values with commas between them, got {text!r}")
    return tuple(read(item, hint, where) for item, hint in zip(items, hints, strict=True))


def _short(text: str, parts: list[Any], where: str, current: Any) -> Any:
    """Read the short form of a part by its `from_text`."""
    for kind in [type(current), *parts]:
        if hasattr(kind, "from_text"):
            return kind.from_text(text, where)
    raise unknown(f"part for {where}", text, parts_for(parts))
