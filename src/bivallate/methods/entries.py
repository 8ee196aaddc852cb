"""The registry of methods: register one by name, look it up, create it."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bivallate import plugins
from bivallate.errors import UserError, unknown
from bivallate.lower.threat import Threat
from bivallate.method import MAKERS, Method
from bivallate.schema import check_fits


def no_parameters(threat: Threat) -> dict[str, Any]:
    """The parameters that an example of a method needs whose defaults are complete: none."""
    return {}


@dataclass(frozen=True)
class Entry:
    """A named method of the catalogue.

    Attributes:
        make: (threat, **parameters) -> Method.
        family, paper, cost: shown in lists and cards; cost is in forward (F) and backward (B) passes per
            example.
        example: (threat) -> parameters of an example, of a method that its defaults alone do not complete.
    """

    name: str
    make: Callable[..., Method]
    family: str
    paper: str
    cost: str
    example: Callable[[Threat], dict[str, Any]] = no_parameters

    def illustration(self, threat: Threat) -> Method:
        """A method that can be trained: the defaults, and the example's parameters."""
        return self.make(threat, **self.example(threat))

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return (inspect.getdoc(self.make) or "").partition("\n")[0]

    @property
    def parameters(self) -> dict[str, Any]:
        """Names and defaults of the parameters, without the threat."""
        signature = inspect.signature(self.make).parameters
        return {n: p.default for n, p in signature.items() if n != "threat"}

    @property
    def hints(self) -> dict[str, Any]:
        """Names and type hints of the parameters; empty where only a type checker can resolve them."""
        return _hints(inspect.unwrap(self.make))

    def check(self, parameter: str, value: Any) -> None:
        """Raise UserError for a value that does not fit the parameter's annotation."""
        _checked(inspect.unwrap(self.make), {parameter: value})


_REGISTRY: dict[str, Entry] = {}


def register(
    name: str,
    *,
    family: str = "user",
    paper: str = "",
    cost: str = "",
    example: Callable[[Threat], dict[str, Any]] = no_parameters,
):
    """Decorator: register a function (threat, **parameters) -> Method by name, also for the command line.

    Args:
        name: of the method.
        family, paper, cost: shown in lists and cards.
        example: parameters of an example, see `Entry`.

    The decorated function checks its parameters against their annotations and raises UserError for values
    that do not fit.
    """

    def enter(make: Callable[..., Method]) -> Callable[..., Method]:
        def named(threat: Threat, **parameters: Any) -> Method:
            if not isinstance(threat, Threat):
                raise UserError(f"{name} needs a threat such as Linf(8 / 255), got {threat!r}")
            parameters = _checked(make, parameters)
            return dataclasses.replace(make(threat, **parameters), name=name, made=(name, parameters))

        named.__doc__, named.__name__, named.__module__ = make.__doc__, make.__name__, make.__module__
        named.__signature__ = inspect.signature(make)  # pyright: ignore[reportFunctionMemberAccess]
        named.__wrapped__ = make  # pyright: ignore[reportFunctionMemberAccess]
        _REGISTRY[name] = Entry(name, named, family, paper, cost, example)
        MAKERS[name] = named
        return named

    return enter


def _checked(make: Callable[..., Method], parameters: dict[str, Any]) -> dict[str, Any]:
    """Check parameters against their annotations, and turn NumPy's numbers into Python's.

    Raises UserError for a value of another type, or one that is not among the choices of a Literal.
    """
    found = {}
    for name, value in parameters.items():
        hint = _hints(make).get(name, Any)
        choices = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()
        if choices and value not in choices:
            raise unknown(name, str(value), [str(c) for c in choices])
        found[name] = check_fits(hint, value, name)
    return found


@functools.cache
def _hints(make: Callable[..., Method]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(make)
    except Exception:  # a user's function may annotate with names that only a type checker sees
        return {}


def registry() -> dict[str, Entry]:
    """All methods by name: the package's own, and those that installed projects declare as entry points."""
    for name, make in plugins.loaded().items():
        if name not in _REGISTRY and callable(make):
            register(name)(make)  # pyright: ignore[reportArgumentType]
    return dict(_REGISTRY)


def create(name: str, threat: Threat, **parameters: Any) -> Method:
    """Create a method by name. Raises UserError for an unknown name or parameter, with the nearest one."""
    entries = registry()
    if name not in entries:
        raise unknown("method", name, entries)
    entry = entries[name]
    for parameter in parameters:
        if parameter not in entry.parameters:
            raise unknown(f"parameter of {name}", parameter, entry.parameters)
    return entry.make(threat, **parameters)
