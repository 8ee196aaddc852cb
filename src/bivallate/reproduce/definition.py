"""Check whether a stored run or record matches the present definition of its cell."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from bivallate.errors import UserError
from bivallate.parts import decode, encode, from_portable, portable
from bivallate.reproduce.cell import Cell, configure
from bivallate.run.config import OF_THE_MACHINE, Config
from bivallate.run.sentinel import Sentinel

__all__ = ["SOURCE_SEED", "is_of_cell", "lacking", "recorded_training", "source_names", "without_machine"]

SOURCE_SEED = 1000  # added to the seed for the network that adversarial examples are transferred from


def without_machine(config: Config) -> Config:
    """Drop the settings that leave the weights as they are, or change them no more than another seed does.

    They are those of the machine, and the sentinel if it never rolls back.
    """
    for setting, usual in OF_THE_MACHINE.items():
        config = config.set(setting, usual)
    return config if config.sentinel.rollback else dataclasses.replace(config, sentinel=Sentinel())


def recorded_training(config: Config, cell: Cell) -> dict[str, Any]:
    """What a record keeps of a training: configuration, number of training rows, and name of the weights."""
    return {"config": portable(encode(config)), "rows": cell.rows, "weights": cell.weights}


def is_of_cell(entry: dict[str, Any], cell: Cell, seed: int, sources: Mapping[str, Cell]) -> bool:
    """Whether a record's training, and those of its sources, match the definitions of the cells.

    Sources are the networks on which adversarial examples for transfer are made. Settings that an older
    record does not have count as the defaults.
    """
    try:
        own = {"config": entry["config"], "rows": entry["data"]["rows"], "weights": entry["weights"]}
        others = {name: (entry["sources"][name], sources[name]) for name in source_names(cell)}
        return _as(own, cell, seed) and all(_as(*pair, seed + SOURCE_SEED) for pair in others.values())
    except (KeyError, TypeError, ValueError, UserError):  # incomplete, or with a part that no longer exists
        return False


def source_names(cell: Cell) -> set[str]:
    """Names of the other networks that a cell's transfer columns need."""
    return {measure.source for measure in cell.measures if measure.source is not None}


def _as(kept: dict[str, Any], cell: Cell, seed: int) -> bool:
    if (kept["rows"], kept["weights"]) != (cell.rows, cell.weights):
        return False
    return without_machine(decode(from_portable(kept["config"]))) == without_machine(configure(cell, seed))


def lacking(entry: dict[str, Any], cell: Cell) -> list[str]:
    """The columns of the cell that a record lacks, or has from another evaluation than the cell asks for."""
    kept = {name: (column["what"], column.get("score")) for name, column in entry["columns"].items()}
    asked = {m.column: (m.what, None if m.what == "seconds" else m.key) for m in cell.measures}
    return [column for column, measured in asked.items() if kept.get(column) != measured]
