"""A package whose names are imported when they are first asked for (PEP 562)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["lazy_attributes"]


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
