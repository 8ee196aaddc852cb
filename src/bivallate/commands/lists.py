"""`bivallate methods`, `models`, `recipes` and `attacks`: lists, and the details of one entry."""

from __future__ import annotations

import inspect
from typing import Any

from bivallate.commands import stored_lists
from bivallate.commands.options import DataName, Flag
from bivallate.data.registry import training_defaults
from bivallate.errors import listed, unknown
from bivallate.parts import encode, portable
from bivallate.quoting import command, line
from bivallate.terminal import literal_console, say, say_json
from bivallate.toml import to_toml


def methods(name: str | None = None, /, *, json: Flag = False) -> None:
    """List the methods by family with their cost, or show the card of one.

    Parameters
    ----------
    name
        of a method, or package.module:function of your own, for its card: objective, parts, parameters, cost,
        weaknesses, deviations, reference.
    json
        for programs.
    """
    if name is None:
        rows = stored_lists.methods()
        if json:
            say_json(rows, 1)
        else:
            told = {row["name"]: f"{row['family']}: {row['summary']}" for row in rows}
            one_a_line(told, "methods", "NAME")
        return
    from bivallate.commands.settings import named
    from bivallate.methods.entries import registry
    from bivallate.reports.cards import card

    chosen, entries = named(name), registry()
    if chosen not in entries:
        raise unknown("method", chosen, entries)
    if json:
        say_json([_whole(entries[chosen])], 1)
    else:
        say(card(entries[chosen]))


def _whole(entry: Any) -> dict[str, Any]:
    """Describe a method as plain data, with its parts and its card."""
    from bivallate.lower.threat import Linf
    from bivallate.reports.catalogue_lists import method_row

    more = {"parts": entry.make(Linf(8 / 255)).to_dict(), "card": inspect.getdoc(entry.make)}
    return method_row(entry) | portable(more)


def models(name: str | None = None, /, *, json: Flag = False) -> None:
    """List the architectures, or show the options of one.

    Parameters
    ----------
    name
        of an architecture.
    json
        for programs.
    """
    from bivallate import models as architectures

    if name is not None:
        _details(_foreign(name) if ":" in name else architectures.describe(name), json)
        return
    rows = [architectures.describe(name) for name in architectures.names()]
    if json:
        say_json(rows, 1)
        return
    told = {row["name"]: f"{row['parameters'] / 1e6:.2f} M parameters: {row['summary']}" for row in rows}
    one_a_line(told | {"timm:NAME": "one of timm's", "package.module:factory": "your own"}, "models", "NAME")


def _foreign(name: str) -> dict[str, Any]:
    """Describe how a network from outside the package is used, without importing it."""
    if name.startswith("timm:"):
        from bivallate.models.from_timm import OPTIONS

        summary = "timm's, without pretrained weights; needs pip install 'bivallate[timm]'"
        options = f"--set model.options.KEY=VALUE with {listed(sorted(OPTIONS))}"
    else:
        summary = "your own: a function or a class that returns the network"
        options = "num_classes and shape are given where it takes them; other arguments need defaults"
    return {
        "name": name,
        "summary": summary,
        "options": options,
        "use": command("train", "METHOD", "--model", name),
    }


def recipes(
    name: str | None = None,
    /,
    *,
    method: str | None = None,
    data: DataName = "cifar10",
    eps: str | None = None,
    json: Flag = False,
) -> None:
    """List the papers' training recipes, or print the configuration that one of them gives.

    What is printed is a file for `bivallate train --config`.

    Parameters
    ----------
    name
        of a recipe.
    method
        to train with. [default: that of the recipe's paper]
    data
        data set: networks, and some schedules, depend on it.
    eps
        radius of the perturbations. [default: as in `bivallate train`]
    json
        for programs.
    """
    if (name, method, data, eps) == (None, None, "cifar10", None):
        if json:
            say_json(stored_lists.recipe_plans(), 1)
        else:
            one_a_line(stored_lists.recipes(), "recipes", "NAME")
        return
    from bivallate.lower.threat import threat
    from bivallate.methods.entries import create
    from bivallate.reports.catalogue_lists import plain_plans, recipe_lines
    from bivallate.run.recipes.published import RECIPES, recipe_for

    if name is not None and name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    radius = threat("linf", eps if eps is not None else training_defaults(data).eps)
    chosen = RECIPES if name is None else {name: RECIPES[name]}
    plans = {n: recipe_for(n, create(method or r.method, radius), data) for n, r in chosen.items()}
    if json:
        say_json(plain_plans(plans), 1)
    elif name is not None:
        say("\n".join(f"# {line}".rstrip() for line in RECIPES[name].about.splitlines()))
        say(to_toml(encode(plans[name])))
    else:
        one_a_line(recipe_lines(plans), "recipes", "NAME")


def attacks(name: str | None = None, /, *, json: Flag = False) -> None:
    """List the attacks that `bivallate evaluate` knows, or show the stages of one.

    N: steps; R: restarts.

    Parameters
    ----------
    name
        of an attack, as `bivallate evaluate` takes it.
    json
        for programs.
    """
    if name is not None:
        from bivallate.evaluation import attack_named

        _details({"attack": name, "stages": [encode(stage) for stage in attack_named(name).stages]}, json)
        return
    if json:
        say_json([{"attack": name, "what": text} for name, text in stored_lists.attacks().items()], 1)
        return
    one_a_line(stored_lists.attacks(), "attacks", "NAME")


def one_a_line(rows: dict[str, str], command: str, argument: str) -> None:
    """Print names with one line each, cut to the width of the terminal.

    Args:
        rows: name -> description.
        command, argument: `bivallate COMMAND ARGUMENT` shows more.
    """
    longest, width = max(map(len, rows)), literal_console().width
    for name, text in rows.items():
        told = line(f"{name:<{longest}}  {text}")
        say(told if len(told) <= width else f"{told[: width - 1]}…")
    say(f"more about one: bivallate {command} {argument}")


def _details(entry: dict[str, Any], json: bool) -> None:
    """Print all fields of one entry of a list."""
    if json:
        say_json(entry, 1)
        return
    for key, value in entry.items():
        told = value if isinstance(value, list) else [value]
        for k, item in enumerate(told):
            say(f"{key if k == 0 else '':<14}{_written(item)}")


def _written(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k}={_written(v)}" for k, v in value.items())
    return str(value)
