"""Lists of methods, attacks and recipes, read from JSON files in `reports` without torch."""

from __future__ import annotations

import json
import sys
from functools import cache
from importlib.metadata import entry_points
from importlib.resources import files
from typing import Any

from bivallate.plugins import GROUP

__all__ = ["attacks", "methods", "recipe_plans", "recipes"]


def methods() -> list[dict[str, Any]]:
    """Every method as plain data, sorted by family and name.

    Methods of installed plugins can only be found by importing them, which is done if there are any.
    Methods that the user registered are included if the registry is loaded already.
    """
    if entry_points(group=GROUP) or "bivallate.methods.entries" in sys.modules:
        from bivallate.methods.entries import registry
        from bivallate.reports.catalogue_lists import method_rows

        return method_rows(registry().values())
    return _stored()["methods"]


def attacks() -> dict[str, str]:
    """Name pattern -> description of every attack, in the order of `bivallate.evaluation.named_attacks`."""
    return _stored()["attacks"]


def recipes() -> dict[str, str]:
    """Name -> method, epochs and summary of every recipe, for CIFAR-10 and the method of its paper."""
    return _stored()["recipes"]


def recipe_plans() -> dict[str, Any]:
    """Name -> configuration as plain data of every recipe, for CIFAR-10 and the method of its paper."""
    return _read("recipe_plans.json")


@cache
def _stored() -> dict[str, Any]:
    return _read("catalogue_lists.json")


def _read(name: str) -> dict[str, Any]:
    return json.loads(files("bivallate.reports").joinpath(name).read_text(encoding="utf-8"))
