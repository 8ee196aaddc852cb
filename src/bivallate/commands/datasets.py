"""`bivallate datasets`: which data sets there are, and what one of them holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from bivallate.commands.lists import one_a_line
from bivallate.commands.options import DataFolder, DataName, Flag, Settings
from bivallate.errors import UserError, listed
from bivallate.from_text import override, pair
from bivallate.parts import portable
from bivallate.quoting import command, line
from bivallate.terminal import NAME, literal_console, say_json

SHEETS = (".png", ".svg", ".pdf", ".jpg", ".jpeg", ".webp")  # a contact sheet's endings


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
    if name is None:
        _list(data_dir, json)
        return
    if sheet is not None and sheet.suffix.lower() not in SHEETS:
        raise UserError(f"--sheet is written as {listed(SHEETS)}, by its ending, got {sheet.name!r}")
    loaded = _loaded(name, data_dir, set_)
    if sheet is not None:
        from bivallate.data import contact_sheet

        contact_sheet(loaded, sheet)
    facts = _facts(loaded)
    if json:
        say_json(facts, 1)
        return
    _show(facts)
    drawn = str(sheet) if sheet is not None else _sheet_of(name, data_dir, set_)
    literal_console().print(f"contact sheet: {drawn}")


def _list(data_dir: str | None, json: bool) -> None:
    """The sets that are known by name, where they are and how large."""
    from bivallate.data import registry

    rows = [registry.describe(name, data_dir) for name in registry.names()]
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
    one_a_line(told, "datasets", "NAME")


def _loaded(name: str, data_dir: str | None, settings: tuple[str, ...]) -> Any:
    """A data set as a run with these settings and seed 0 would see it."""
    from bivallate.run.config import Data
    from bivallate.run.session import load_data

    spec = Data(name, data_dir=data_dir or "")
    for item in settings:
        key, value = pair(item, "data.size=64")
        spec = override(spec, key.removeprefix("data."), value)
    return load_data(spec, seed=0)


def _facts(loaded: Any) -> dict[str, Any]:
    """What is told of a data set, for programs and people alike."""
    splits = {"train": loaded.train, "validation": loaded.validation, "test": loaded.test}
    return {
        "name": loaded.name,
        "shape": list(loaded.shape),
        "mean": list(loaded.mean),
        "std": list(loaded.std),
        "augmentation": str(loaded.augment),
        "notes": list(loaded.notes),
        "counts": {k: s.counts(len(loaded.classes)) for k, s in splits.items() if s is not None},
        "classes": loaded.classes,
    }


def _show(facts: dict[str, Any]) -> None:
    console = literal_console()
    for key in ("name", "shape", "mean", "std", "augmentation", "notes"):
        console.print(f"{key:<14}{facts[key]}")
    table = Table("class", *facts["counts"])
    for i, label in enumerate(facts["classes"]):
        table.add_row(line(label, NAME), *(str(counts[i]) for counts in facts["counts"].values()))
    table.add_row("all", *(str(sum(counts)) for counts in facts["counts"].values()))
    console.print(table)


def _sheet_of(name: str, data_dir: str | None, settings: tuple[str, ...]) -> str:
    """The command that draws a set's contact sheet."""
    where = ["--data-dir", data_dir] if data_dir is not None else []
    how = [word for item in settings for word in ("--set", item)]
    return command("datasets", name, *where, *how, "--sheet", "sheet.png")
