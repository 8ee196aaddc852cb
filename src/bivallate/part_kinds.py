"""The parts by name, and which of them can serve in a field, by the role that its type hint asks for."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from typing import Any

from bivallate.errors import UserError, listed
from bivallate.roles import Role
from bivallate.schema import PLAIN, fields_of, of_package, options_of

KINDS: dict[str, type] = {}  # word in configurations -> part


def load_own() -> None:
    """Import all modules of the package that define parts: they are otherwise imported on demand."""
    package = sys.modules[__name__.partition(".")[0]]  # bivallate itself lists the modules of its parts
    for place in sorted(set(package._PLACES.values())):
        importlib.import_module(place)


def parts_for(hints: list[Any]) -> list[str]:
    """The names of the parts that a field of these types takes: of all parts where the types do not say.

    No part derives from a protocol: it takes the parts that have all of its methods, and whose `__call__` is
    annotated as the protocol's.
    """
    roles = [hint for hint in hints if isinstance(hint, type)]
    fitting = [name for name, kind in KINDS.items() if any(_plays(kind, role) for role in roles)]
    return fitting or list(KINDS)


def check_roles(value: Any) -> None:
    """Raise UserError for a field of a part that holds a part of another role than the field's.

    The message says which part was found, because a name may mean two things, and which parts fit.
    """
    for name, hint in fields_of(type(value)).items():
        given = getattr(value, name, None)
        roles = [option for option in options_of(hint) if option not in PLAIN]
        asked = roles and all(map(of_package, roles)) and not isinstance(given, PLAIN)
        if asked and not any(_serves(given, role) for role in roles):
            raise _misplaced(given, f"{name} of {type(value).__name__}", roles)


def _serves(given: Any, role: Any) -> bool:
    """Whether a value can serve in a role; a user's own that derives from none needs the methods alone."""
    if isinstance(given, type):
        return False
    if of_package(type(given)) or isinstance(given, Role):
        return _plays(type(given), role)
    protocol = [name for name in vars(role) if not name.startswith("_") or name == "__call__"]
    asked = protocol if _is_protocol(role) else getattr(role, "__abstractmethods__", ())
    return all(hasattr(given, name) for name in asked)


def _is_protocol(role: Any) -> bool:
    return getattr(role, "_is_protocol", False)


def _plays(kind: Any, role: type) -> bool:
    if not _is_protocol(role):
        return isinstance(kind, type) and issubclass(kind, role)
    own, asked = (getattr(each.__call__, "__annotations__", None) for each in (kind, role))
    if "__call__" in vars(role) and own != asked:
        return False
    # A field without a default is no attribute of the class.
    fields = {f.name for f in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()
    return all(name in fields or hasattr(kind, name) for name in vars(role) if not name.startswith("_"))


def _misplaced(given: Any, place: str, roles: list[Any]) -> UserError:
    """The error for a part in a place that takes others."""
    load_own()
    kind, known = type(given), sorted(parts_for(roles))
    if isinstance(given, type):
        return UserError(
            f"{given.__name__} cannot serve as the {place}: it is a class, write {given.__name__}(...). "
            f"Known: {listed(known)}"
        )
    own = next((f", a {cls.__name__}" for cls in kind.__mro__ if Role in cls.__bases__), "")
    alike = next((name for name in known if kind.__name__ in name or name in kind.__name__), None)
    meant = f"Did you mean {alike}? " if alike else ""
    derive = "".join(f" (your own derives from {r.__name__})" for r in roles if Role in r.__bases__)
    return UserError(
        f"{given!r} cannot serve as the {place}: it is {kind.__module__}.{kind.__qualname__}{own}. "
        f"{meant}Known: {listed(known)}{derive}"
    )
