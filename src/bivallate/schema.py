"""Check plain data against type hints, and read the files that hold it.

The contents of each kind of file are declared once, beside its reader, as a dataclass or a `TypedDict`; a
range is part of the hint: `Annotated[int, Range(1)]`. An error is one line that names the file and the key.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import math
import numbers
import os
import reprlib
import sys
import tomllib
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from bivallate.errors import UserError, unknown
from bivallate.untrusted_files import HEAD, kind_of, open_regular

LARGEST = 3.4e38  # of a float32; infinities are allowed besides
DEEPEST = 50  # tables within tables
MEGABYTE = 1 << 20
PLAIN = (bool, int, float, str, types.NoneType)


@dataclass(frozen=True)
class Range:
    """A range of numbers, or of lengths of text and lists: low <= value <= high."""

    low: float = -math.inf
    high: float = math.inf

    def __call__(self, value: Any, where: str) -> None:
        """Raise UserError for a number outside of the range."""
        size = value if isinstance(value, int | float) else len(value) if hasattr(value, "__len__") else None
        if size is not None and not self.low <= size <= self.high:
            top = "" if math.isinf(self.high) else f" and at most {self.high:g}"
            what = f"{where} must be" if size is value else f"the length of {where} must be"
            raise UserError(f"{what} at least {self.low:g}{top}, got {reprlib.repr(size)}")


@dataclass(frozen=True)
class Digits:
    """Text that is a whole number: a key of a JSON object that counts something."""

    def __call__(self, value: str, where: str) -> None:
        """Raise UserError for text that is no whole number."""
        if not (value.isascii() and value.isdigit() and len(value) < 19):
            raise UserError(f"a key of {where} must be a whole number, got {reprlib.repr(value)}")


Count = Annotated[int, Range(1, 2**31 - 1)]
Whole = Annotated[int, Range(0, 2**63 - 1)]
Amount = Annotated[float, Range(0, LARGEST)]  # finite
Share = Annotated[float, Range(0, 1)]


def check_fits(hint: Any, value: Any, where: str) -> Any:
    """Return the value if it fits the hint, with NumPy's numbers as Python's.

    Raises:
        UserError: the value does not fit; the message names `where` and the key within it. Text is never read
            as a number or boolean, nor a boolean as a number; NaN and finite numbers beyond the range of a
            float32 are refused.
    """
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        value = check_fits(options[0], value, where)
        for limit in options[1:]:
            limit(value, where)
        return value
    if origin is typing.Union or isinstance(hint, types.UnionType):
        return _either(options, value, where)
    if origin is typing.Literal:
        if not any(value == o and type(value) is type(o) for o in options):
            owner, _, name = where.rpartition(".")
            of = f" of {owner}" if owner else ""
            raise unknown(name.replace("_", " ") + of, str(value), [str(o) for o in options])
        return value
    if hint is None or hint is types.NoneType:
        return _demand(value is None, value, "nothing", where)
    if hint in _PLAIN:
        return _PLAIN[hint](value, where)
    if origin in (tuple, list):
        return _sequence(origin, options, value, where)
    if origin is dict:
        _demand(isinstance(value, dict), value, "a table", where)
        return {
            check_fits(options[0], k, where): check_fits(options[1], v, f"{where}.{k}")
            for k, v in value.items()
        }
    if typing.is_typeddict(hint):
        return _table(hint, value, where)
    if of_package(hint):
        plain = isinstance(value, str | bool | int | float | list | tuple | dict | types.NoneType)
        return _demand(not plain, value, f"a part such as {hint.__name__} names", where)
    return value


def of_package(hint: Any) -> bool:
    """Whether a hint is a class or protocol of this package."""
    return isinstance(hint, type) and hint.__module__.startswith("bivallate.")


def _demand(right: bool, value: Any, wanted: str, where: str) -> Any:
    if not right:
        raise UserError(f"{where} must be {wanted}, got {reprlib.repr(value)}")
    return value


def _truth(value: Any, where: str) -> bool:
    return bool(_demand(type(value).__name__ in ("bool", "bool_"), value, "true or false", where))


def _whole(value: Any, where: str) -> int:
    right = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    number = int(_demand(right, value, "a whole number", where))
    _demand(-(2**63) <= number < 2**63, value, "a whole number of 64 bits", where)
    return number


def _number(value: Any, where: str) -> float | int:
    right = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if isinstance(value, int) and right:
        return _demand(abs(value) <= LARGEST, value, "a number that fits 32 bits", where)
    number = float(_demand(right, value, "a number", where))
    _demand(not math.isnan(number), value, "a finite number", where)
    _demand(abs(number) <= LARGEST or math.isinf(number), value, "a number that fits 32 bits", where)
    return number


def _text(value: Any, where: str) -> str:
    return _demand(isinstance(value, str), value, "text", where)


_PLAIN: dict[Any, Callable[[Any, str], Any]] = {bool: _truth, int: _whole, float: _number, str: _text}


def _either(options: tuple[Any, ...], value: Any, where: str) -> Any:
    reasons = []
    for option in options:
        try:
            return check_fits(option, value, where)
        except UserError as error:
            reasons.append(str(error))
    raise UserError("; or ".join(reasons))


def _sequence(kind: type, options: tuple[Any, ...], value: Any, where: str) -> Any:
    right = isinstance(value, list | tuple)
    _demand(right, value, "a list", where)
    if kind is tuple and options[-1:] != (...,):
        _demand(len(value) == len(options), value, f"a list of {len(options)}", where)
    hints = options if kind is tuple and options[-1:] != (...,) else [options[0]] * len(value)
    return type(value)(
        check_fits(h, v, f"{where}[{k}]") for k, (h, v) in enumerate(zip(hints, value, strict=True))
    )


def _table(hint: Any, value: Any, where: str) -> Any:
    _demand(isinstance(value, dict), value, "a table", where)
    keys = _keys(hint)
    absent = sorted(key for key, (_, optional) in keys.items() if not optional and key not in value)
    if absent:
        raise UserError(f"{where} lacks {', '.join(absent)}")
    return {k: check_fits(keys[k][0], v, f"{where}.{k}") if k in keys else v for k, v in value.items()}


@functools.cache
def _keys(hint: Any) -> dict[str, tuple[Any, bool]]:
    """Key -> its hint, and whether it is optional, which `TypedDict` misses in string annotations."""
    found = {}
    for key, asked in typing.get_type_hints(hint, include_extras=True).items():
        optional = typing.get_origin(asked) is typing.NotRequired
        found[key] = (typing.get_args(asked)[0] if optional else asked), optional
    return found


@functools.cache
def fields_of(cls: type) -> dict[str, Any]:
    """Field of a dataclass -> its hint; fields whose hint only a type checker can resolve are left out."""
    found = {}
    for f in dataclasses.fields(cls):
        home = next(c for c in cls.__mro__ if f.name in inspect.get_annotations(c))
        # one field at a time, so that a hint that cannot be resolved does not hide the others
        alone = type(f.name, (), {"__annotations__": {f.name: f.type}})
        try:
            names = vars(sys.modules[home.__module__])
            found[f.name] = typing.get_type_hints(alone, names, include_extras=True)[f.name]
        except Exception:  # a user's part may name what only a type checker sees
            continue
    return found


def options_of(hint: Any) -> list[Any]:
    """The members of a union type hint; an empty list for None and Any."""
    if typing.get_origin(hint) is Annotated:
        return options_of(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [option for choice in typing.get_args(hint) for option in options_of(choice)]
    return [] if hint is None or hint is Any else [hint]


def check_fields(value: Any) -> None:
    """Check the fields of a frozen dataclass against their hints; numbers of NumPy become Python's."""
    for name, hint in fields_of(type(value)).items():
        if hasattr(value, name):
            given = getattr(value, name)
            plain = check_fits(hint, given, f"{type(value).__name__}.{name}")
            if plain is not given:
                object.__setattr__(value, name, plain)


def read_text(path: str | os.PathLike[str], what: str, limit: int) -> str:
    """Read a text file in UTF-8, with or without a byte order mark.

    Raises:
        UserError: the file is missing, not a regular file, larger than `limit` bytes, or not UTF-8.
    """
    place = Path(path)
    try:
        with open_regular(place) as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise UserError(f"cannot read the {what} {path}: {error.strerror or error}") from error
    if len(data) > limit:
        raise UserError(f"{path} is too large: {what}s have at most {limit:,} bytes")
    found = kind_of(data[:HEAD])
    if found is not None:
        raise UserError(f"{path} is not a readable {what}: it is {found}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no {what}: byte {error.start} is not UTF-8 text") from error


def parse(
    text: str, path: object, what: str, hint: Any, language: str = "JSON", *, finite: bool = True
) -> Any:
    """Parse JSON or TOML and check the data against a hint.

    Args:
        path: of the file, for errors. what: the kind of file, for errors.
        finite: whether to refuse NaN and infinities, which are not JSON but which Python writes.

    Raises:
        UserError: text that cannot be parsed or does not fit the hint; the message names file and key.
    """
    constant = _no_number if finite else float
    try:
        value = tomllib.loads(text) if language == "TOML" else json.loads(text, parse_constant=constant)
    except UserError as error:
        raise UserError(f"{path} is not a readable {what}: {error}") from error
    except RecursionError as error:
        raise UserError(f"{path} is not a readable {what}: it is nested too deeply") from error
    except ValueError as error:
        raise UserError(
            f"{path} is not a readable {what}: it is damaged, not valid {language}: {error}"
        ) from error
    _shallow(value, path, what)
    try:
        return check_fits(hint, value, what)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _no_number(name: str) -> Any:
    raise UserError(f"{name} is no number of JSON")


def _shallow(value: Any, path: object, what: str) -> None:
    """Raise UserError for data nested too deeply for the recursive functions that follow."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > DEEPEST:
            raise UserError(f"{path} is not a readable {what}: it is nested more than {DEEPEST} deep")
        level = [
            item
            for node in level
            if isinstance(node, dict | list)
            for item in (node.values() if isinstance(node, dict) else node)
            if isinstance(item, dict | list)
        ]


def read_json(path: str | os.PathLike[str], what: str, hint: Any, limit: int = 64 * MEGABYTE) -> Any:
    """Read a JSON file and check it against a hint. Raises UserError that names the file and the key."""
    return parse(read_text(path, what, limit), path, what, hint)
