"""`bivallate methods`, `models`, `datasets`, `recipes`, `attacks`: what there is."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.table import Table

from bivallate.cli import APP
from bivallate.errors import UserError, unknown
from bivallate.parts import portable
from bivallate.quoting import line
from bivallate.terminal import NAME, literal_console, say, say_json

Json = Annotated[bool, Parameter(negative=())]


@APP.command
def methods(name: str | None = None, *, json: Json = False) -> None:
    """List the methods by family with their cost, or show the card of one.

    Parameters
    ----------
    name
        of a method, for its card: objective, parts, parameters, cost, weaknesses, deviations, reference.
    json
        for programs.
    """
    from bivallate.lower.threat import Linf
    from bivallate.method import registry
    from bivallate.parts import portable
    from bivallate.reports.cards import card

    entries = registry()
    if name is not None:
        if name not in entries:
            raise unknown("method", name, entries)
        entries = {name: entries[name]}
    rows = [
        {
            "name": e.name,
            "family": e.family,
            "summary": e.summary,
            "paper": e.paper,
            "cost": e.cost,
            "parameters": {k: _shown(v) for k, v in e.parameters.items()},
            **(
                {"parts": portable(e.make(Linf(8 / 255)).to_dict()), "card": inspect.getdoc(e.make)}
                if name
                else {}
            ),
        }
        for e in sorted(entries.values(), key=lambda e: (e.family, e.name))
    ]
    if json:
        say_json([portable(row) for row in rows], 1)
        return
    if name is not None:
        say(card(entries[name]))
        return
    table = Table(title="F, B: forward and backward passes per example; K attack steps", title_justify="left")
    for column in ("family", "method", "cost", "summary", "paper", "parameters"):
        table.add_column(column, overflow="fold")
    for row in rows:
        defaults = ", ".join(f"{k}={v}" for k, v in row["parameters"].items())
        texts = (row["family"], row["name"], row["cost"], row["summary"], row["paper"], defaults)
        table.add_row(*texts)
    literal_console().print(table)


def _shown(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else str(value)
    return value if isinstance(value, str | int | bool) or value is None else str(value)


@APP.command
def models(*, json: Json = False) -> None:
    """List the architectures.

    Parameters
    ----------
    json
        for programs.
    """
    from bivallate import models as architectures

    rows = [architectures.describe(name) for name in architectures.names()]
    _show(rows, json, "architectures; also timm:NAME and package.module:factory")


@APP.command
def datasets(
    name: str | None = None,
    *,
    json: Json = False,
    data_dir: str | None = None,
    sheet: Path | None = None,
    set_: Annotated[tuple[str, ...], Parameter(name="--set", negative=())] = (),
) -> None:
    """List the data sets, or show the counts, classes and statistics of one.

    Parameters
    ----------
    name
        of a set, a folder, an .npz or hub:owner/name.
    json
        for programs.
    data_dir
        where named sets are looked for. [default: BIVALLATE_DATA]
    sheet
        write a contact sheet of NAME to this PNG or SVG file.
    set_
        how NAME is read, KEY=VALUE as in `bivallate train`, repeatable: data.size=64, data.on_bad=convert,
        data.image_column=photo, data.validation=0, data.imbalance=step:0.2; `data.` may be left out.
    """
    from bivallate.data import registry

    if name is None:
        _show([registry.describe(n, data_dir) for n in registry.names()], json, "data sets")
        return
    loaded = _loaded(name, data_dir, set_)
    splits = {"train": loaded.train, "validation": loaded.validation, "test": loaded.test}
    facts: dict[str, Any] = {
        "name": loaded.name,
        "shape": list(loaded.shape),
        "mean": list(loaded.mean),
        "std": list(loaded.std),
        "augmentation": str(loaded.augment),
        "notes": list(loaded.notes),
        "counts": {k: s.counts(len(loaded.classes)) for k, s in splits.items() if s is not None},
        "classes": loaded.classes,
    }
    if sheet is not None:
        registry.contact_sheet(loaded, sheet)
    if json:
        say_json(facts, 1)
        return
    console = literal_console()
    for key in ("name", "shape", "mean", "std", "augmentation", "notes"):
        console.print(f"{key:<14}{facts[key]}")
    table = Table("class", *facts["counts"])
    for i, label in enumerate(loaded.classes):
        table.add_row(line(label, NAME), *(str(counts[i]) for counts in facts["counts"].values()))
    table.add_row("all", *(str(sum(counts)) for counts in facts["counts"].values()))
    console.print(table)
    said = (
        f"contact sheet: {sheet}"
        if sheet is not None
        else f"contact sheet: bivallate datasets {name} --sheet x.png"
    )
    console.print(said)


def _loaded(name: str, data_dir: str | None, settings: tuple[str, ...]) -> Any:
    """A data set as a run with these settings and seed 0 would see it."""
    from bivallate.parts import override
    from bivallate.run.config import Data
    from bivallate.run.session import load_data

    spec = Data(name, data_dir=data_dir or "")
    for item in settings:
        key, equals, value = item.partition("=")
        if not equals:
            raise UserError(f"--set needs KEY=VALUE, such as data.size=64, got {item!r}")
        spec = override(spec, key.strip().removeprefix("data."), value.strip())
    return load_data(spec, seed=0)


@APP.command
def recipes(
    name: str | None = None,
    *,
    method: str | None = None,
    data: str = "cifar10",
    eps: str | None = None,
    json: Json = False,
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
    from bivallate.data.registry import usual
    from bivallate.lower.threat import threat
    from bivallate.method import create
    from bivallate.parts import encode
    from bivallate.run.config import to_toml
    from bivallate.run.recipes import RECIPES, recipe_for

    if name is not None and name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    radius = threat("linf", eps if eps is not None else usual(data).eps)
    chosen = RECIPES if name is None else {name: RECIPES[name]}
    plans = {n: recipe_for(n, create(method or r.method, radius), data) for n, r in chosen.items()}
    if json:
        say_json({n: portable(encode(plan)) for n, plan in plans.items()}, 1)
    elif name is not None:
        say("\n".join(f"# {line}".rstrip() for line in RECIPES[name].about.splitlines()))
        say(to_toml(encode(plans[name])))
    else:
        rows = [
            {
                "recipe": n,
                "method": plan.method.name,
                "model": plan.model.name,
                "epochs": plan.epochs,
                "peak rate": f"{plan.optimizer.lr:g}",
                "what": RECIPES[n].summary,
            }
            for n, plan in plans.items()
        ]
        _show(rows, False, f"recipes, for {data}; `bivallate recipes NAME` prints one")


@APP.command
def attacks(*, json: Json = False) -> None:
    """List the attacks that `bivallate evaluate` knows.

    Parameters
    ----------
    json
        for programs.
    """
    from bivallate.evaluate import attacks as known

    rows = [{"attack": name, "what": text} for name, text in known().items()]
    _show(rows, json, "attacks; N steps, R restarts")


def _show(rows: list[dict[str, Any]], json: bool, title: str) -> None:
    if json:
        say_json([portable(row) for row in rows], 1)
        return
    table = Table(title=title, title_justify="left")
    for column in rows[0]:
        table.add_column(str(column), overflow="fold")
    for row in rows:
        table.add_row(*("-" if value is None else str(value) for value in row.values()))
    literal_console().print(table)
