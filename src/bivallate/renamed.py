"""Names of earlier versions: of a module, keyword, method or field. They work with a DeprecationWarning."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

__all__ = ["present_field", "renamed_arguments", "renamed_fields", "renamed_methods", "renamed_names"]

Function = TypeVar("Function", bound=Callable[..., Any])
Class = TypeVar("Class", bound=type)


def renamed_names(module: str, renamed: Mapping[str, str]) -> Callable[[str], Any]:
    """`__getattr__` of a module with renamed names: an old name still works, with a DeprecationWarning.

    Args:
        renamed: old name -> present name in the same module.
    """

    def __getattr__(name: str) -> Any:  # noqa: N807
        if name not in renamed:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warnings.warn(f"{module}.{name} is now called {renamed[name]}", DeprecationWarning, stacklevel=2)
        return getattr(sys.modules[module], renamed[name])

    return __getattr__


def renamed_arguments(**renamed: str) -> Callable[[Function], Function]:
    """Decorate a function with renamed keywords: an old one still works, with a DeprecationWarning.

    Args:
        renamed: old keyword -> present keyword.
    """

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def call(*args: Any, **keywords: Any) -> Any:
            for old in renamed.keys() & keywords.keys():
                text = f"{old} of {function.__qualname__} is now called {renamed[old]}"
                warnings.warn(text, DeprecationWarning, stacklevel=2)
                keywords[renamed[old]] = keywords.pop(old)
            return function(*args, **keywords)

        return cast(Function, call)

    return decorate


def renamed_methods(**renamed: str) -> Callable[[Class], Class]:
    """Decorate a class with renamed methods: an old one still works, with a DeprecationWarning.

    Args:
        renamed: old name -> present name.
    """

    def decorate(cls: Class) -> Class:
        for old, present in renamed.items():
            setattr(cls, old, _former(old, present))
        return cls

    return decorate


def renamed_fields(**renamed: str) -> Callable[[Class], Class]:
    """Decorate a dataclass with renamed fields: an old one is read and given with a DeprecationWarning.

    Args:
        renamed: old field -> present field; `present_field` finds it in the class's `RENAMED_FIELDS`.
    """

    def decorate(cls: Class) -> Class:
        cls.RENAMED_FIELDS = renamed  # pyright: ignore[reportAttributeAccessIssue]
        cls.__init__ = renamed_arguments(**renamed)(cls.__init__)
        for old, present in renamed.items():
            setattr(cls, old, property(_former_field(old, present)))
        return cls

    return decorate


def present_field(cls: type, name: str) -> str:
    """The present name of a field, with a DeprecationWarning if it was renamed; other names unchanged."""
    present = getattr(cls, "RENAMED_FIELDS", {}).get(name, name)
    if present != name:
        text = f"{name} of {cls.__name__} is now called {present}"
        warnings.warn(text, DeprecationWarning, stacklevel=2)
    return present


def _former_field(old: str, present: str) -> Callable[[Any], Any]:
    def read(self: Any) -> Any:
        text = f"{type(self).__name__}.{old} is now called {present}"
        warnings.warn(text, DeprecationWarning, stacklevel=2)
        return getattr(self, present)

    return read


def _former(old: str, present: str) -> Callable[..., Any]:
    def call(self: Any, *args: Any, **keywords: Any) -> Any:
        text = f"{type(self).__name__}.{old} is now called {present}"
        warnings.warn(text, DeprecationWarning, stacklevel=2)
        return getattr(self, present)(*args, **keywords)

    return call
