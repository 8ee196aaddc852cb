"""Parts: frozen values whose name and fields are their entry in a configuration.

`@part` makes a frozen dataclass and remembers it by name, so that any composition of parts can be written
down as plain data, read back, overridden by path and sent to another process. Users' own parts register in
the same way.
"""

from __future__ import annotations

import dataclasses
import math
import os
import warnings
from typing import Any, dataclass_transform

from bivallate import plugins
from bivallate.errors import UserError, nearest, to_python, unknown
from bivallate.part_kinds import KINDS, check_roles, load_own
from bivallate.schema import check_fields

NONE = "@none"  # TOML has no null
OF_EPOCHS = {"of_epochs": True}  # metadata of a field: it is a fraction of the run's epochs
# Other names of parts -> the words of files: names in older files, and classes with a `WRITTEN_AS`.
RENAMED = {
    "Helped": "HelperLabels",
    "GuidedCrossEntropy": "Guiding",
    "SmoothedCrossEntropy": "Smoothed",
}


@dataclass_transform(frozen_default=True)
def part(cls: type) -> Any:
    """Class decorator: a frozen dataclass that configurations know by its name.

    A part is known once its module is imported. Of the package, configurations know the modules in `_PLACES`
    of __init__.py and what they import: a new one needs a public name, or a method in methods/ that uses it.

    The fields are checked against their annotations whenever a value is made.

    Raises:
        UserError: another part has the name; when a value is made, a field of the wrong type or range.

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
        load_own()  # so that the package's own names are taken, also those not imported yet
    other = KINDS.get(word_of(cls))
    if other is not None and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
        raise UserError(f"the name {cls.__name__} is taken by {other.__module__}; give your part another one")
    own = cls.__dict__.get("__post_init__")

    def __post_init__(self: Any) -> None:  # noqa: N807  dataclasses call it so
        _take_plain_numbers(self)
        _take_none(self)
        check_fields(self)
        check_roles(self)
        if own is not None:
            own(self)
        elif (inherited := getattr(super(frozen, self), "__post_init__", None)) is not None:
            inherited()

    cls.__post_init__ = __post_init__  # pyright: ignore[reportAttributeAccessIssue]
    frozen = dataclasses.dataclass(frozen=True)(cls)
    KINDS[word_of(cls)] = frozen
    return frozen


def word_of(cls: type) -> str:
    """The word by which configurations know a part: its class's name, or another in `WRITTEN_AS`."""
    return vars(cls).get("WRITTEN_AS", cls.__name__)


def _take_plain_numbers(value: Any) -> None:
    """Turn numbers of NumPy or torch into Python's, so that the part can be written and compared."""
    for f in dataclasses.fields(value):
        number = getattr(value, f.name, None)
        if (own := to_python(number)) is not number:
            object.__setattr__(value, f.name, own)


def _take_none(value: Any) -> None:
    """Turn the word by which files write None for a field (`WRITTEN_NONE`) into None."""
    for name, word in getattr(type(value), "WRITTEN_NONE", {}).items():
        content = getattr(value, name)
        if type(content) is type(word) and content == word:
            object.__setattr__(value, name, None)


def encode(value: Any) -> Any:
    """A part, and everything in it, as dictionaries, lists, strings and numbers.

    None becomes "@none", or the word that the part's `WRITTEN_NONE` has for the field.

    Raises UserError for a value that is neither a part nor plain data.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        if word_of(type(value)) not in KINDS:
            raise UserError(
                f"{type(value).__name__} cannot be written into a configuration; "
                "declare it with @bivallate.part"
            )
        fields = {name: encode(getattr(value, name)) for name in written(type(value))}
        words = getattr(type(value), "WRITTEN_NONE", {})
        fields |= {name: word for name, word in words.items() if getattr(value, name) is None}
        return {"kind": word_of(type(value)), **fields}
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
        fields = {name: item for name, item in entry.items() if name != "kind"}
        fields = _as_now(cls, fields, where)
        known = written(cls)
        for name in fields:
            if name not in known:
                raise unknown(f"field of {_at(where, cls.__name__)}", name, known)
        values = {name: decode(item, f"{where}.{name}" if where else name) for name, item in fields.items()}
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


def _as_now(cls: Any, fields: dict[str, Any], where: str) -> dict[str, Any]:
    """Convert the fields that an older version wrote to those of the present part."""
    try:
        return cls.read_older(fields) if hasattr(cls, "read_older") else fields
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise UserError(f"{_at(where, cls.__name__)} does not take its values: {error!r}") from error


def _kind(kind: Any, where: str) -> type:
    """The part of this name, or of the name that it had in an older version."""
    kind = RENAMED.get(kind, kind) if isinstance(kind, str) else kind
    if isinstance(kind, str) and kind not in KINDS:
        load_own()
        plugins.loaded()  # a part of the user's own project may not be imported yet
    if not isinstance(kind, str) or kind not in KINDS:
        close = nearest(str(kind), KINDS)
        hint = f": did you mean {close!r}?" if close else "."
        raise UserError(
            f"{where + ': ' if where else ''}unknown part {str(kind)!r}{hint} A part of your own must be "
            "imported: import its module, on the command line name its method package.module:function, or "
            "declare that as an entry point in the group bivallate.methods"
        )
    return KINDS[kind]


def _at(where: str, name: str) -> str:
    return f"{where} ({name})" if where else name


def written(cls: type) -> list[str]:
    """The fields of a part that configurations hold.

    These are the arguments of its constructor, except those with the metadata {"written": False}.
    """
    return [f.name for f in dataclasses.fields(cls) if f.init and f.metadata.get("written", True)]


def rebased(own: Any, old: Any, new: Any, path: str = "") -> tuple[Any, list[str]]:
    """Replace every value in `own` that equals `old`'s by `new`'s, at any depth.

    Returns the result and the dotted paths that could not be replaced: there `new` differs from `old`, and
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
        return own, [path] if step_sizes(own, path) else []
    values, stuck = {}, []
    for name in written(type(own)):
        deeper = f"{path}.{name}" if path else name
        values[name], more = rebased(getattr(own, name), getattr(old, name), getattr(new, name), deeper)
        stuck += more
    return dataclasses.replace(own, **values), stuck


def step_sizes(part: Any, path: str) -> list[str]:
    """The dotted paths of all step sizes in a part that stands at `path`."""
    if not dataclasses.is_dataclass(part) or isinstance(part, type):
        return []
    inner = [
        found for name in written(type(part)) for found in step_sizes(getattr(part, name), f"{path}.{name}")
    ]
    return [f"{path}.step_size"] * ("step_size" in written(type(part))) + inner


def portable(config: dict[str, Any]) -> dict[str, Any]:
    """A copy of an encoded configuration that JSON can hold and other machines can read.

    Infinities become text, and absolute paths of data and weights lose their folders.

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
    """The last component of an absolute path; anything else unchanged."""
    return os.path.basename(place) if os.path.isabs(str(place)) else place


def from_portable(value: Any) -> Any:
    """The inverse of `portable`, except for paths: the texts inf and -inf become infinities."""
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
    """The part of the kind `text` with its defaults, or None if there is no such kind.

    A kind's other names are understood (`RENAMED`), the former ones with a DeprecationWarning.

    Raises UserError for a part with fields that have no default.
    """
    if text.isidentifier() and text not in KINDS:
        load_own()
    word = text if text in KINDS else RENAMED.get(text, text)
    if word not in KINDS:
        return None
    if text not in (word, KINDS[word].__name__):
        warnings.warn(f"the part {text} is now called {word}", DeprecationWarning, stacklevel=2)
    try:
        return KINDS[word]()
    except TypeError as error:
        raise UserError(f"{where}={text} needs values of its own: {error}") from None
