"""`bivallate methods`, `models`, `datasets`, `recipes`, `attacks`: what there is."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from rich.table import Table

from bivallate.commands.options import DataFolder, DataName, Flag, Settings
from bivallate.errors import UserError, listed, unknown
from bivallate.parts import portable
from bivallate.quoting import command, line
from bivallate.terminal import NAME, literal_console, say, say_json

SHEETS = (".png", ".svg", ".pdf", ".jpg", ".jpeg", ".webp")  # a contact sheet's endings


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
    from bivallate.commands.declared import methods as listed

    if name is None and not json:
        told = {row.name: f"{row.family}: {row.summary}" for row in listed()}
        _one_a_line(told, "methods", "NAME")
        return
    from bivallate.commands.settings import named
    from bivallate.methods.entries import registry
    from bivallate.reports.cards import card

    chosen = None if name is None else named(name)
    entries = registry()
    if chosen is not None and chosen not in entries:
        raise unknown("method", chosen, entries)
    if json:
        shown = (
            sorted(entries.values(), key=lambda e: (e.family, e.name))
            if chosen is None
            else [entries[chosen]]
        )
        say_json([portable(_row(entry, whole=chosen is not None)) for entry in shown], 1)
    elif chosen is not None:
        say(card(entries[chosen]))


def _row(entry: Any, *, whole: bool) -> dict[str, Any]:
    """A method, for programs; whole: with its parts and its card."""
    from bivallate.lower.threat import Linf

    row = {key: getattr(entry, key) for key in ("name", "family", "summary", "paper", "cost")}
    row["parameters"] = {k: _shown(v) for k, v in entry.parameters.items()}
    more = {"parts": entry.make(Linf(8 / 255)).to_dict(), "card": inspect.getdoc(entry.make)} if whole else {}
    return row | more


def _shown(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6)
    return value if isinstance(value, str | int | bool) or value is None else str(value)


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
    _one_a_line(told | {"timm:NAME": "one of timm's", "package.module:factory": "your own"}, "models", "NAME")


def _foreign(name: str) -> dict[str, Any]:
    """How a network that is not the package's is used; nothing is imported for it."""
    if name.startswith("timm:"):
        from bivallate.models.from_timm import OPTIONS

        summary = "timm's, without pretrained weights; needs pip install 'bivallate[timm]'"
        options = f"--set model.options.KEY=VALUE with {listed(sorted(OPTIONS))}"
    else:
        summary = "your own: a function or a class that returns the network"
        options = "num_classes and shape are given where it takes them, more by --set model.options.KEY=VALUE"
    return {
        "name": name,
        "summary": summary,
        "options": options,
        "use": command("train", "METHOD", "--model", name),
    }


def datasets(
    name: DataName | None = None,
    /,
    *,
    json: Flag = False,
    data_dir: DataFolder | None = None,
    sheet: Path | None = None,
    set_: Settings = (),
) -> None:
    """List the data sets, or show the counts, classes and statistics of one.

    Parameters
    ----------
    name
        of a set, a folder, an .npz, .zip or .tar, or hub:owner/name.
    json
        for programs.
    data_dir
        where named sets are looked for. [default: BIVALLATE_DATA]
    sheet
        write a contact sheet of NAME to this PNG, SVG or PDF file.
    set_
        how NAME is read, KEY=VALUE as in `bivallate train`, repeatable: data.size=64, data.on_bad=convert,
        data.image_column=photo, data.validation=0, data.imbalance=step:0.2; `data.` may be left out.
    """
    from bivallate.data import registry

    if name is None:
        _list_datasets([registry.describe(n, data_dir) for n in registry.names()], json)
        return
    if sheet is not None and sheet.suffix.lower() not in SHEETS:
        raise UserError(f"--sheet is written as {listed(SHEETS)}, by its ending, got {sheet.name!r}")
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
        from bivallate.data import contact_sheet

        contact_sheet(loaded, sheet)
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
        else f"contact sheet: {_sheet_of(name, data_dir, set_)}"
    )
    console.print(said)


def _sheet_of(name: str, data_dir: str | None, settings: tuple[str, ...]) -> str:
    """The command that draws a set's contact sheet."""
    where = ["--data-dir", data_dir] if data_dir is not None else []
    how = [word for item in settings for word in ("--set", item)]
    return command("datasets", name, *where, *how, "--sheet", "sheet.png")


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
    from bivallate.data.registry import usual
    from bivallate.lower.threat import threat
    from bivallate.methods.entries import create
    from bivallate.parts import encode
    from bivallate.run.recipes.published import RECIPES, recipe_for
    from bivallate.toml import to_toml

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
        told = {
            n: f"{plan.method.name}, {plan.epochs} epochs: {RECIPES[n].summary}" for n, plan in plans.items()
        }
        _one_a_line(told, "recipes", "NAME")


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
    from bivallate.commands.declared import attacks as known

    if name is not None:
        from bivallate.evaluation import parse
        from bivallate.parts import encode

        _details({"attack": name, "stages": [encode(stage) for stage in parse(name).stages]}, json)
        return
    if json:
        say_json([{"attack": name, "what": text} for name, text in known().items()], 1)
        return
    _one_a_line(known(), "attacks", "NAME")


def _list_datasets(rows: list[dict[str, Any]], json: bool) -> None:
    if json:
        say_json([portable(row) for row in rows], 1)
        return
    told = {}
    for row in rows:
        where = row["found"] or ("from the hub" if row["hub"] else "not found")
        size = "x".join(map(str, row["shape"]))
        told[row["name"]] = (
            f"{row['classes']} classes, {size}, {row['train']:,} + {row['test']:,} images: {where}"
        )
    _one_a_line(told, "datasets", "NAME")


def _one_a_line(rows: dict[str, str], command: str, argument: str) -> None:
    """Names and one line each, no wider than the terminal."""
    longest, width = max(map(len, rows)), literal_console().width
    for name, text in rows.items():
        told = line(f"{name:<{longest}}  {text}")
        say(told if len(told) <= width else f"{told[: width - 1]}…")
    say(f"more about one: bivallate {command} {argument}")


def _details(entry: dict[str, Any], json: bool) -> None:
    """One of a list, with all that is known of it."""
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
