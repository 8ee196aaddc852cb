"""`bivallate datasets`: list the data sets, describe one, and search it for near-duplicates."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from bivallate.commands.lists import one_a_line
from bivallate.commands.options import DataFolder, DataName, Flag, Settings
from bivallate.data import registry
from bivallate.errors import UserError, listed
from bivallate.from_text import override, pair
from bivallate.parts import portable
from bivallate.quoting import command, line
from bivallate.terminal import NAME_WIDTH, literal_console, say, say_json

SHEETS = (".png", ".svg", ".pdf", ".jpg", ".jpeg", ".webp")  # file types of a contact sheet
SHOWN = 10  # number of near-duplicates that are printed


def datasets(
    name: DataName | None = None,
    /,
    *,
    json: Flag = False,
    data_dir: DataFolder | None = None,
    sheet: Path | None = None,
    check: Flag = False,
    features: str | None = None,
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
        write a contact sheet of NAME to this PNG, SVG or PDF file; with --check, of the pairs found.
    check
        search for test images that the training data (data.extra included) hold too, unchanged, mirrored or
        slightly changed.
    features
        with --check: a run's folder or zoo:NAME; its network compares the images too and finds further
        pairs, such as two crops of the same photograph.
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
    if features is not None and not check:
        raise UserError("--features goes with --check")
    if check:
        _check(loaded, sheet, json, features)
        return
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


def _check(loaded: Any, sheet: Path | None, json: bool, features: str | None) -> None:
    """Print which test images have near-duplicates in the training data, and draw the pairs."""
    from bivallate.data.duplicates import near_duplicates
    from bivallate.data.pairs_sheet import caption, pairs_sheet
    from bivallate.evaluation.progress_display import duration

    if not len(loaded.train) or not len(loaded.test):
        raise UserError(f"{loaded.name} has no two splits to compare: training and test images are needed")
    began = time.perf_counter()
    pairs = near_duplicates(loaded.train, loaded.test)
    pairs += _by_features(loaded, features, {pair.test for pair in pairs}) if features is not None else []
    took = duration(time.perf_counter() - began, 1)
    if sheet is not None:
        pairs_sheet(loaded, pairs, sheet)
    if json:
        found = {"train": len(loaded.train), "test": len(loaded.test), "pairs": [asdict(p) for p in pairs]}
        say_json({"name": loaded.name, **found})
        return
    of = f"of {len(loaded.test):,} test images, {len(loaded.train):,} training images looked at in {took}"
    say(f"{len(pairs):,} near-duplicates ({len(pairs) / len(loaded.test):.2%}) {of}")
    if features is not None:
        say(f"{sum(p.by_features for p in pairs):,} of them found by the features of {features} alone")
    copies = sum(p.kind != "near" for p in pairs)
    extra = sum(p.extra for p in pairs)
    other = sum(p.labels[0] != p.labels[1] for p in pairs)
    if pairs:
        say(f"{copies:,} copies or mirror images, {extra:,} of the extra data, {other:,} of another class")
        say("test row | training row, likeness, class:")
    for found in pairs[:SHOWN]:
        say(f"  {caption(found, loaded.classes)}  {found.kind}")
    if pairs:
        drawn = f"drawn in {sheet}" if sheet is not None else "--sheet pairs.png draws them"
        say(f"judge them by eye: {drawn}")


def _by_features(loaded: Any, source: str, known: set[int]) -> list[Any]:
    """Find the pairs that only a network's features show.

    Args:
        source: a run's folder or zoo:NAME.
        known: rows of test images that are paired already.

    Raises:
        UserError: the network takes images of another shape.
    """

    from bivallate.data.feature_duplicates import feature_duplicates
    from bivallate.models.layers import last_features
    from bivallate.run.load_model import load

    model = load(source)
    if tuple(model.shape) != tuple(loaded.shape):
        raise UserError(f"{source} is for images of shape {tuple(model.shape)}, not {tuple(loaded.shape)}")
    pairs = feature_duplicates(last_features(model), loaded.train, loaded.test)
    return [replace(pair, by_features=True) for pair in pairs if pair.test not in known]


def _list(data_dir: str | None, json: bool) -> None:
    """Print the data sets that are known by name, with their places and sizes."""
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
    """Load a data set as a run with these settings and seed 0 would, with the run's augmentation."""
    from bivallate.data import Augment
    from bivallate.run.config import Data
    from bivallate.run.from_config import load_data

    spec = Data(name, data_dir=data_dir or "")
    for item in settings:
        key, value = pair(item, "data.size=64")
        spec = override(spec, key.removeprefix("data."), value)
    loaded = load_data(spec, seed=0)
    return loaded if spec.augment == "default" else loaded.but(augment=Augment.parse(spec.augment))


def _facts(loaded: Any) -> dict[str, Any]:
    """The description of a data set that is printed as JSON or as text."""
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
        table.add_row(line(label, NAME_WIDTH), *(str(counts[i]) for counts in facts["counts"].values()))
    table.add_row("all", *(str(sum(counts)) for counts in facts["counts"].values()))
    console.print(table)


def _sheet_of(name: str, data_dir: str | None, settings: tuple[str, ...]) -> str:
    """The command that draws a set's contact sheet."""
    where = ["--data-dir", data_dir] if data_dir is not None else []
    how = [word for item in settings for word in ("--set", item)]
    return command("datasets", name, *where, *how, "--sheet", "sheet.png")
