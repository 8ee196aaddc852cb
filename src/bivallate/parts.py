"""Parts: frozen values whose name and fields are their entry in a configuration.

`@part` makes a frozen dataclass and remembers it by name, so that any composition of parts can be written
down as plain data, read back, overridden by path and sent to another process. Users' own parts register in
the same way.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import os
import sys
from typing import Any, dataclass_transform

from bivallate import plugins
from bivallate.errors import UserError, to_python, unknown
from bivallate.schema import check_fields

_KINDS: dict[str, type] = {}
NONE = "@none"  # TOML has no null


@dataclass_transform(frozen_default=True)
def part(cls: type) -> Any:
    """Class decorator: a frozen dataclass that configurations know by its name.

    Its values have the types that its fields are annotated with, wherever they come from.

    Example:
        >>> @part
        ... class Half:
        ...     of: float = 2.0
        >>> encode(Half(of=3.0))
        {'kind': 'Half', 'of': 3.0}
        >>> decode({'kind': 'Half', 'of': 3.0})
        Half(of=3.0)
    """
    if not cls.__module__.startswith("bivallate."):
        _load_own()  # a name of the package's is not to be had, whether or not that is imported yet
    there = _KINDS.get(cls.__name__)
    if there is not None and (there.__module__, there.__qualname__) != (cls.__module__, cls.__qualname__):
        raise UserError(f"the name {cls.__name__} is taken by {there.__module__}; give your part another one")
    own = cls.__dict__.get("__post_init__")

    def __post_init__(self: Any) -> None:  # noqa: N807  dataclasses call it so
        _take_plain_numbers(self)
        _take_none(self)
        check_fields(self)
        if own is not None:
            own(self)
        elif (inherited := getattr(super(made, self), "__post_init__", None)) is not None:
            inherited()

    cls.__post_init__ = __post_init__  # pyright: ignore[reportAttributeAccessIssue]
    made = dataclasses.dataclass(frozen=True)(cls)
    _KINDS[cls.__name__] = made
    return made


def _take_plain_numbers(value: Any) -> None:
    """Let a part hold Python's numbers where it is given NumPy's or torch's: it is written and compared."""
    for f in dataclasses.fields(value):
        given = getattr(value, f.name, None)
        if (own := to_python(given)) is not given:
            object.__setattr__(value, f.name, own)


def _take_none(value: Any) -> None:
    """Let a part hold None where it is given the word by which a field's None is written."""
    for name, word in getattr(type(value), "WRITTEN_NONE", {}).items():
        given = getattr(value, name)
        if type(given) is type(word) and given == word:
            object.__setattr__(value, name, None)


def encode(value: Any) -> Any:
    """A part, and everything in it, as dictionaries, lists, strings and numbers.

    None becomes "@none", or the word that the part's `WRITTEN_NONE` has for the field, as files have it.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        if type(value).__name__ not in _KINDS:
            raise UserError(
                f"{type(value).__name__} cannot be written into a configuration; "
                "declare it with @bivallate.part"
            )
        fields = {name: encode(getattr(value, name)) for name in written(type(value))}
        words = getattr(type(value), "WRITTEN_NONE", {})
        fields |= {name: word for name, word in words.items() if getattr(value, name) is None}
        return {"kind": type(value).__name__, **fields}
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    if value is None:
        return NONE
    if isinstance(value, str | bool | int | float):
        return value
    raise UserError(
        f"a part may hold numbers, strings, tuples and parts, got {type(value).__name__}: {value!r}"
    )


def decode(entry: Any, where: str = "") -> Any:
    """The inverse of `encode`.

    Raises:
        UserError: an unknown kind or field, with the nearest name; a value that does not fit, with the key
            within the entry.
    """
    if isinstance(entry, dict):
        cls = _kind(entry.get("kind"), where)
        given = {name: item for name, item in entry.items() if name != "kind"}
        given = _as_now(cls, given, where)
        known = written(cls)
        for name in given:
            if name not in known:
                raise unknown(f"field of {_at(where, cls.__name__)}", name, known)
        values = {name: decode(item, f"{where}.{name}" if where else name) for name, item in given.items()}
        try:
            return cls(**values)
        except TypeError as error:
            raise UserError(f"{_at(where, cls.__name__)} is not complete: {error}") from error
        except UserError as error:
            raise UserError(f"{where}: {error}" if where else str(error)) from error
        except Exception as error:  # a user's part may fail in its own way at what a file gives it
            raise UserError(f"{_at(where, cls.__name__)} does not take its values: {error!r}") from error
    if isinstance(entry, list):
        return tuple(decode(item, f"{where}[{k}]") for k, item in enumerate(entry))
    return None if entry == NONE else entry


def _as_now(cls: Any, given: dict[str, Any], where: str) -> dict[str, Any]:
    """The fields of a part as it is now, where an older version wrote them."""
    try:
        return cls.read_older(given) if hasattr(cls, "read_older") else given
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise UserError(f"{_at(where, cls.__name__)} does not take its values: {error!r}") from error


def _kind(kind: Any, where: str) -> type:
    """The part of this name."""
    if isinstance(kind, str) and kind not in _KINDS:
        _load_own()
        plugins.loaded()  # a part of the user's own project may not be imported yet
    if not isinstance(kind, str) or kind not in _KINDS:
        raise UserError(
            f"{where + ': ' if where else ''}{unknown('part', str(kind), _KINDS)}. A part of your own must "
            "be imported: import its module, or declare its method as an entry point in the group "
            "bivallate.methods"
        )
    return _KINDS[kind]


def _load_own() -> None:
    """Make all parts of the package known, which is imported piece by piece."""
    package = sys.modules[__name__.partition(".")[0]]  # loaded before, lists its parts' places
    for place in sorted(set(package._PLACES.values())):
        importlib.import_module(place)


def _at(where: str, name: str) -> str:
    return f"{where} ({name})" if where else name


def written(cls: type) -> list[str]:
    """The fields of a part that configurations hold.

    All that can be given, but for those whose metadata says {"written": False}.
    """
    return [f.name for f in dataclasses.fields(cls) if f.init and f.metadata.get("written", True)]


def rebased(own: Any, old: Any, new: Any, path: str = "") -> tuple[Any, list[str]]:
    """`own` with all that it has of `old` replaced by what `new` has there, however deep.

    Returns the value, and the dotted paths of what could not follow: `new` differs from `old` there, and
    `own` from both.

    Example:
        >>> from bivallate import PGD
        >>> rebased(PGD(7, 0.025), PGD(10, 0.025), PGD(10, 0.05))[0].step_size
        0.05
    """
    if own == old or old == new:
        return (new if own == old else own), []
    if not dataclasses.is_dataclass(own) or isinstance(own, type):
        return own, [path]
    if not type(own) is type(old) is type(new):
        return own, [path] if _has_steps(own) else []
    values, stuck = {}, []
    for name in written(type(own)):
        deeper = f"{path}.{name}" if path else name
        values[name], more = rebased(getattr(own, name), getattr(old, name), getattr(new, name), deeper)
        stuck += more
    return dataclasses.replace(own, **values), stuck


def _has_steps(part: Any) -> bool:
    names = written(type(part))
    deeper = (getattr(part, name) for name in names)
    return "step_size" in names or any(_has_steps(d) for d in deeper if dataclasses.is_dataclass(d))


def portable(config: dict[str, Any]) -> dict[str, Any]:
    """A copy of an encoded configuration that JSON can hold and other machines can read.

    Infinities are text, and the place of the data, which is the machine's own matter, is left out.

    Example:
        >>> portable({"data": {"name": "/home/me/cats", "data_dir": "/home/me"}, "clip": float("inf")})
        {'data': {'name': 'cats', 'data_dir': ''}, 'clip': 'inf'}
    """
    copy = _finite(config)
    if isinstance(data := copy.get("data"), dict):
        for key in {"name", "extra"} & set(data):
            data[key] = _bare(data[key])
        if "data_dir" in data:
            data["data_dir"] = ""
    if isinstance(init := copy.get("init"), dict) and "weights" in init:
        init["weights"] = _bare(init["weights"])
    return copy


def _bare(place: Any) -> Any:
    """The name of what lies at an absolute path; anything else as it is."""
    return os.path.basename(place) if os.path.isabs(str(place)) else place


def from_portable(value: Any) -> Any:
    """The inverse of `portable`, but for the place of the data.

    Text that says inf was an infinity.
    """
    if isinstance(value, dict):
        return {key: from_portable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [from_portable(item) for item in value]
    return {"inf": math.inf, "-inf": -math.inf}.get(value, value) if isinstance(value, str) else value


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def part_named(text: str, where: str) -> Any:
    """The part of that kind with its defaults, or None where no kind is called so.

    Raises UserError for one that needs values of its own.
    """
    if text.isidentifier() and text not in _KINDS:
        _load_own()
    if text not in _KINDS:
        return None
    try:
        return _KINDS[text]()
    except TypeError as error:
        raise UserError(f"{where}={text} needs values of its own: {error}") from None


def fitting(hints: list[Any]) -> list[str]:
    """The names of the parts that a field of these types takes.

    All of them where it is a protocol, which none derives from.
    """
    roles = tuple(h for h in hints if isinstance(h, type) and not getattr(h, "_is_protocol", False))
    return [name for name, kind in _KINDS.items() if issubclass(kind, roles)] or list(_KINDS)
