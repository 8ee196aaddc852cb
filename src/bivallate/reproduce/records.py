"""Records of finished cells: one JSON file each, with the verdict on every point."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np

from bivallate.errors import UserError
from bivallate.evaluation.evaluation_file import Packed, unpacked, within
from bivallate.evaluation.statistics import bootstrap_tail
from bivallate.reproduce.cell import What, slug
from bivallate.reproduce.measuring import seconds_an_epoch
from bivallate.reproduce.running import SCHEMA
from bivallate.schema import MEGABYTE, Amount, Whole, check, read_json

__all__ = ["Record", "RecordedPoints", "read_record", "read_records"]

TAIL = 30  # per cent of the classes
LOWEST = ("tail", "worst")  # measures of the lowest classes, which the points themselves choose
ALIKE = 0.95  # effective sample size from which weights are called nearly equal


@dataclass(frozen=True)
class RecordedPoints:
    """One number a test point: a verdict (0 or 1), clean minus robust, or FOSC.

    Attributes:
        value: (n,). y: (n,) labels, empty where none were kept. index: (n,) rows. data: fingerprint of the
            points.
    """

    value: np.ndarray
    y: np.ndarray
    index: np.ndarray
    data: str

    def same_points(self, other: RecordedPoints) -> bool:
        """Whether both are of the same images in the same order."""
        return self.data == other.data and np.array_equal(self.index, other.index)


class Column(TypedDict):
    """One number of a record."""

    what: What
    value: float | None
    interval_95: tuple[float, float] | None
    unit: str
    score: NotRequired[str]


class KeptPoints(TypedDict):
    """The points of an evaluation."""

    points: dict[str, Packed]
    data_fingerprint: str


class Epoch(TypedDict):
    """What is read of an epoch."""

    seconds: Amount
    effective: NotRequired[float | None]
    robust: NotRequired[float | None]


class RecordedTraining(TypedDict):
    """What was spent, epoch by epoch."""

    forward_per_row: Amount
    backward_per_row: Amount
    history: list[Epoch]


class RecordedPart(TypedDict):
    """A part, of which only the name is read."""

    kind: str


class RecordedMethod(TypedDict):
    """What is read of a method."""

    weighting: NotRequired[RecordedPart]


class RecordedData(TypedDict):
    """What is read of a data set."""

    name: str


class RecordedConfig(TypedDict):
    """What is read of a configuration without decoding it: definitions change, and old results stay."""

    method: NotRequired[RecordedMethod]
    data: NotRequired[RecordedData]


class RecordFile(TypedDict):
    """A record, as far as it is read."""

    row: str
    group: str
    seed: Whole
    weights: NotRequired[str]
    columns: dict[str, Column]
    scores: dict[str, KeptPoints]
    training: NotRequired[RecordedTraining]
    config: NotRequired[RecordedConfig]
    machine: NotRequired[dict[str, str | int | float | None]]
    commit: NotRequired[dict[str, str | bool | None]]


@dataclass(frozen=True)
class Record:
    """A finished cell with one seed, as it was written."""

    entry: dict[str, Any]
    path: Path

    @property
    def row(self) -> str:
        """The method's row."""
        return self.entry["row"]

    @property
    def group(self) -> str:
        """The group of columns."""
        return self.entry["group"]

    @property
    def seed(self) -> int:
        """Of training."""
        return self.entry["seed"]

    @property
    def chosen(self) -> dict[str, Any]:
        """The epoch of the reported weights, and what was known of it.

        How evenly the examples counted in it (effective sample size), and what the held-out data said of it
        and of the last.
        """
        history = self._history
        held_out = [line["robust"] for line in history if line.get("robust") is not None]
        best = self.entry.get("weights") == "best" and len(held_out) == len(history) > 0
        epoch = max(range(len(history)), key=held_out.__getitem__) if best else len(history) - 1
        return {
            "seed": self.seed,
            "epoch": epoch + 1,
            "epochs": len(history),
            "effective": history[epoch].get("effective") if history else None,
            "held_out": held_out[epoch] if len(held_out) == len(history) > 0 else None,
            "held_out_last": held_out[-1] if held_out else None,
        }

    @property
    def passes(self) -> float | None:
        """Forward and backward passes of the whole training, an example; None where none is recorded."""
        training = self.entry.get("training")
        return training["forward_per_row"] + training["backward_per_row"] if training else None

    @property
    def unweighted(self) -> bool:
        """Whether the method weighs examples, but hardly did so.

        In any epoch up to that of the reported weights.
        """
        weighting = self.entry.get("config", {}).get("method", {}).get("weighting", {"kind": "Equal"})
        before = self._history[: self.chosen["epoch"]]
        even = [line.get("effective", 0) >= ALIKE for line in before]
        return weighting["kind"] != "Equal" and bool(even) and all(even)

    @property
    def _history(self) -> list[dict[str, Any]]:
        return self.entry.get("training", {}).get("history", [])

    @cached_property
    def columns(self) -> dict[str, dict[str, Any]]:
        """Column -> value, interval_95, unit, what.

        Times are taken anew from the epochs, and intervals of tails and worst classes from the points.
        """
        columns = {name: dict(column) for name, column in self.entry["columns"].items()}
        for name, column in columns.items():
            if column["what"] == "seconds" and "training" in self.entry:
                column["value"] = seconds_an_epoch(self.entry["training"]["history"])
            points = self.points(name) if column["what"] in LOWEST else None
            if points is not None:
                hits, counts = (np.bincount(points.y, weights) for weights in (points.value, None))
                share = TAIL if column["what"] == "tail" else 100 / int((counts > 0).sum())
                column["interval_95"] = list(bootstrap_tail(hits.astype(int), counts, share))
        return columns

    def points(self, column: str) -> RecordedPoints | None:
        """The numbers behind a column, or None where it has none (seconds)."""
        entry = self.entry["columns"][column]
        score = self.entry["scores"].get(entry.get("score", ""))
        if score is None:
            return None
        wanted = ("index", "fosc") if entry["what"].startswith("fosc") else ("index", "stage", "y")
        absent = [name for name in wanted if name not in score["points"]]
        if absent:
            raise UserError(f"{column} lacks the points' {', '.join(absent)}")
        kept = {name: unpacked(score["points"][name], f"{column}.{name}") for name in wanted}
        within(len(kept["index"]), **kept)
        index = kept["index"].numpy()
        if entry["what"].startswith("fosc"):
            return RecordedPoints(kept["fosc"].numpy(), np.zeros(0), index, score["data_fingerprint"])
        stage, y = kept["stage"].numpy(), kept["y"].numpy()
        robust, clean = stage == -1, stage != 0
        value = {"clean": clean, "gap": clean & ~robust}.get(entry["what"], robust)
        return RecordedPoints(value.astype(np.int64), y, index, score["data_fingerprint"])


def read_records(out: Path, table: str, scale: str) -> list[Record]:
    """All records of a table at a scale, in the order of their names; none if there is no folder.

    Raises UserError for a file that is not a record.
    """
    return [read_record(path) for path in sorted((out / table / scale).glob("*-seed*.json"))]


def read_record(path: Path) -> Record:
    """One record. Raises UserError for a file that is none."""
    entry = read_json(path, "record", dict[str, Any], 256 * MEGABYTE)
    if entry.get("schema") != SCHEMA:
        raise UserError(f"{path} is not a record of {SCHEMA}: move it out of the results")
    try:
        record = Record(check(RecordFile, entry, "record"), path)
        for name in record.entry["columns"]:
            record.points(name)
    except (UserError, ValueError) as error:
        raise UserError(
            f"{path} is not a readable record ({error}): remove it and run the cell again"
        ) from error
    return record


def of_cell(records: Iterable[Record], row: str, group: str) -> list[Record]:
    """The records of one cell, by seed."""
    wanted = slug(f"{row} {group}")
    return sorted((r for r in records if slug(f"{r.row} {r.group}") == wanted), key=lambda r: r.seed)
