"""Cells of several tables with the same training, which is made and evaluated once."""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bivallate.errors import UserError
from bivallate.from_text import parse_number
from bivallate.models.description import read_manifest
from bivallate.parts import encode, portable
from bivallate.reproduce.cell import Cell, configure
from bivallate.reproduce.definition import without_machine
from bivallate.reproduce.paper_table import Scale
from bivallate.reproduce.papers.catalogue import tables
from bivallate.reproduce.scaling import at_scale
from bivallate.run.config import Config
from bivallate.run.folder import RunFolder

__all__ = ["find_equal_run", "grouped_by_training", "training_of", "with_all_kept"]


def training_of(cell: Cell, seed: int) -> str:
    """A text of everything that determines a cell's training.

    It is equal for cells that are trained alike, even with other names, columns and reported weights.
    """
    return json.dumps([portable(encode(without_machine(configure(cell, seed)))), cell.rows], sort_keys=True)


def grouped_by_training(scale: Scale) -> list[list[tuple[str, Cell]]]:
    """Groups of two or more cells (with their tables) that share a training, in the tables' order."""
    found: dict[str, list[tuple[str, Cell]]] = defaultdict(list)
    for alike in _alike(scale).values():
        for name, cell in alike if len(alike) > 1 else ():
            found[training_of(cell, 0)].append((name, cell))
    return [group for group in found.values() if len(group) > 1]


def with_all_kept(cell: Cell, scale: Scale) -> Cell:
    """The cell, with the epochs that cells of the same training keep added to its own."""
    alike = [c for _, c in _alike(scale).get(_looks(cell), ()) if not set(c.keep) <= set(cell.keep)]
    own = training_of(cell, 0) if alike else ""
    kept = {part for other in alike if training_of(other, 0) == own for part in other.keep}
    return cell.but(keep=tuple(sorted({*cell.keep, *kept})))


@functools.cache
def _alike(scale: Scale) -> dict[tuple[Any, ...], list[tuple[str, Cell]]]:
    """The cells of all tables, grouped by properties that are quick to compare."""
    found: dict[tuple[Any, ...], list[tuple[str, Cell]]] = defaultdict(list)
    for name, table in tables().items():
        for cell in at_scale(table, scale):
            found[_looks(cell)].append((name, cell))
    return found


def _looks(cell: Cell) -> tuple[Any, ...]:
    return cell.method, cell.data, cell.model, cell.norm, parse_number(cell.eps), cell.rows


def find_equal_run(place: Path, config: Config, data: str) -> RunFolder | None:
    """Find a run of a configuration: the cell's own, or one of another cell at the same scale.

    The run with most epochs is taken; None if there is no such run.

    Args:
        place: folder RUNS/TABLE/SCALE/CELL of the cell's own run.
        config: the configuration.
        data: fingerprint of the data set.
    """
    found = [folder for folder in _candidates(place) if _is_of(folder, config, data)]
    done = [len(folder.read_metrics()) for folder in found]
    return found[max(range(len(found)), key=done.__getitem__)] if found else None


def _candidates(place: Path) -> Iterator[RunFolder]:
    yield RunFolder(place)
    for other in sorted(place.parents[2].glob(f"*/{place.parent.name}/*")):
        # a run has no manifest, and so no fingerprint of its data, before the end of its first epoch
        if other != place and ".before-" not in other.name and (other / "model.json").exists():
            yield RunFolder(other)


def _is_of(folder: RunFolder, config: Config, data: str) -> bool:
    """Whether the folder holds a run of this configuration and data that can be continued."""
    if not folder.config.exists() or not any(folder.checkpoints.glob("*.safetensors")):
        return False
    manifest = folder.path / "model.json"  # exists from the end of the first epoch on
    try:
        if manifest.exists() and read_manifest(manifest).get("data_fingerprint") != data:
            return False
        return without_machine(Config.read(folder.config)) == without_machine(config)
    except UserError:
        return False
