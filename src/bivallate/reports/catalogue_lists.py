"""The lists of methods, attacks and recipes as plain data, and the configurations that the recipes give.

`catalogue_lists.json` and `recipe_plans.json` beside this file hold them: the command line shows them without
importing torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bivallate.evaluation.named_attacks import attacks
from bivallate.files import write_text
from bivallate.lower.threat import Linf
from bivallate.methods.entries import Entry, create, registry
from bivallate.parts import encode, portable
from bivallate.run.config import Config
from bivallate.run.recipes.published import RECIPES, recipe_for
from bivallate.terminal import to_json

STORED = Path(__file__).with_name("catalogue_lists.json")
PLANS = Path(__file__).with_name("recipe_plans.json")


def method_rows(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """One row a method, sorted by family and name."""
    return [method_row(entry) for entry in sorted(entries, key=lambda e: (e.family, e.name))]


def method_row(entry: Entry) -> dict[str, Any]:
    """Describe a method and its parameters' defaults."""
    row = {key: getattr(entry, key) for key in ("name", "family", "summary", "paper", "cost")}
    return portable(row | {"parameters": {name: _shown(value) for name, value in entry.parameters.items()}})


def recipe_lines(plans: Mapping[str, Config]) -> dict[str, str]:
    """Describe each recipe in a line: the method and the epochs of its configuration, and its summary."""
    return {n: f"{p.method.name}, {p.epochs} epochs: {RECIPES[n].summary}" for n, p in plans.items()}


def text() -> str:
    """What `catalogue_lists.json` has to hold."""
    own = [entry for entry in registry().values() if entry.make.__module__.startswith("bivallate.")]
    found = {"methods": method_rows(own), "attacks": attacks(), "recipes": recipe_lines(_plans())}
    return to_json(found, 1) + "\n"


def plans_text() -> str:
    """What `recipe_plans.json` has to hold: one recipe a line."""
    lines = [f"{to_json(name)}: {to_json(plan)}" for name, plan in plain_plans(_plans()).items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def plain_plans(plans: Mapping[str, Config]) -> dict[str, Any]:
    """Each recipe's configuration as plain data."""
    return {name: portable(encode(plan)) for name, plan in plans.items()}


def _plans() -> dict[str, Config]:
    return {n: recipe_for(n, create(r.method, Linf(8 / 255)), "cifar10") for n, r in RECIPES.items()}


def _shown(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6)
    return value if isinstance(value, str | int | bool) or value is None else str(value)


def write() -> None:
    """Write `catalogue_lists.json` and `recipe_plans.json`."""
    write_text(STORED, text())
    write_text(PLANS, plans_text())
