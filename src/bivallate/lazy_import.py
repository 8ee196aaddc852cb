"""A package whose names are imported when they are first asked for (PEP 562)."""

from __future__ import annotations

import functools
import importlib
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

__all__ = ["former_arguments", "former_names", "lazy_attributes"]

Function = TypeVar("Function", bound=Callable[..., Any])


def lazy_attributes(
    package: str, places: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package.

    Args:
        places: public name -> module that defines it. Any other name is looked for among the modules of the
            package itself.
    """
    own = sys.modules[package].__dict__

    def __getattr__(name: str) -> Any:  # noqa: N807
        if name in places:
            found = getattr(importlib.import_module(places[name]), name)
        elif name.startswith("_"):
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        else:
            found = _module(package, name)
        own[name] = found
        return found

    def __dir__() -> list[str]:  # noqa: N807
        return sorted({*own, *places})

    return __getattr__, __dir__


def _module(package: str, name: str) -> Any:
    try:
        return importlib.import_module(f"{package}.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"{package}.{name}":
            raise
        raise AttributeError(f"module {package!r} has no attribute {name!r}") from None


def former_names(module: str, renamed: Mapping[str, str]) -> Callable[[str], Any]:
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


def former_arguments(**renamed: str) -> Callable[[Function], Function]:
    """Decorate a function with renamed keywords: an old one still works, with a DeprecationWarning.

    Args:
        renamed: old keyword -> present keyword.
    """

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def call(*args: Any, **keywords: Any) -> Any:
            for old in renamed.keys() & keywords.keys():
                text = f"{old} of {function.__name__} is now called {renamed[old]}"
                warnings.warn(text, DeprecationWarning, stacklevel=2)
                keywords[renamed[old]] = keywords.pop(old)
            return function(*args, **keywords)

        return cast(Function, call)

    return decorate
