"""Methods and attacks that the package declares by decorators, read from its source without torch.

A test compares the lists with the registries that the decorators fill.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from importlib.resources import files
from typing import Any

from bivallate.plugins import GROUP

__all__ = ["DeclaredMethod", "attacks", "in_the_source", "methods"]


@dataclass(frozen=True)
class DeclaredMethod:
    """Name, family and summary of a method, as a list shows them."""

    name: str
    family: str
    summary: str


def methods() -> list[DeclaredMethod]:
    """All methods, sorted by family and name.

    Methods of installed plugins can only be found by importing them, which is done if there are any.
    Methods that the user registered are included if the registry is loaded already.
    """
    if entry_points(group=GROUP) or "bivallate.methods.entries" in sys.modules:
        from bivallate.methods.entries import registry

        found = [DeclaredMethod(e.name, e.family, e.summary) for e in registry().values()]
    else:
        found = in_the_source()
    return sorted(found, key=lambda e: (e.family, e.name))


def in_the_source() -> list[DeclaredMethod]:
    """The package's own methods, read from its source."""
    return [
        DeclaredMethod(given[0], named.get("family", "user"), _summary(function))
        for given, named, function in _decorated("methods", "register")
    ]


def attacks() -> dict[str, str]:
    """Name pattern -> description of every attack, in the order of `bivallate.evaluation.named_attacks`."""
    return {given[1]: given[2] for given, _, _ in _decorated("evaluation", "family")}


def _summary(function: ast.FunctionDef) -> str:
    return inspect.cleandoc(ast.get_docstring(function) or "").partition("\n")[0]


def _decorated(package: str, decorator: str) -> Iterator[tuple[list[Any], dict[str, Any], ast.FunctionDef]]:
    """Yield (arguments, keyword arguments, function) of every use of a decorator in a package's modules."""
    for file in sorted(files("bivallate").joinpath(package).iterdir(), key=lambda file: file.name):
        if not file.name.endswith(".py"):
            continue
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            for call in node.decorator_list if isinstance(node, ast.FunctionDef) else ():
                if isinstance(call, ast.Call) and getattr(call.func, "id", "") == decorator:
                    named = {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg}
                    yield [ast.literal_eval(a) for a in call.args], named, node  # pyright: ignore
