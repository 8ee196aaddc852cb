"""Whether a run or a record is of a cell as it is defined now: definitions change, and old results stay."""

from __future__ import annotations

import dataclasses
from typing import Any

from bivallate.errors import UserError
from bivallate.parts import decode, from_portable
from bivallate.reproduce.cell import Cell, configure
from bivallate.run.config import Config
from bivallate.run.sentinel import Sentinel

__all__ = ["anywhere", "has_columns", "trained_as"]


def anywhere(config: Config) -> Config:
    """The configuration without what leaves the weights as they are: where and how fast it is computed, and a
    sentinel that only watches."""
    config = config.set("device", "auto").set("threads", 0).set("data.data_dir", "")
    return config if config.sentinel.rollback else dataclasses.replace(config, sentinel=Sentinel())


def trained_as(entry: dict[str, Any], cell: Cell, seed: int) -> bool:
    """Whether a record's training is the cell's: configuration, training rows, and which weights count.

    Settings that a record does not know, because they are younger, are taken to have been at their default.
    """
    if (entry["data"]["rows"], entry["weights"]) != (cell.rows, cell.weights):
        return False
    try:
        then = decode(from_portable(entry["config"]))
    except (UserError, TypeError, ValueError):  # a part that is no more, or is another
        return False
    return anywhere(then) == anywhere(configure(cell, seed))


def has_columns(entry: dict[str, Any], cell: Cell) -> bool:
    """Whether a record has every column of the cell, each from the evaluation that the cell asks for."""
    kept = {name: (column["what"], column.get("score")) for name, column in entry["columns"].items()}
    asked = {m.column: (m.what, None if m.what == "seconds" else m.key) for m in cell.measures}
    return asked.items() <= kept.items()
