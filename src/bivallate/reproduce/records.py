"""Records of finished cells: one JSON file for each cell and seed, with the verdict on every point."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bivallate.errors import UserError
from bivallate.evaluation.evaluation_file import in_range, unpacked, within
from bivallate.evaluation.point_columns import CLEAN, ROBUST
from bivallate.evaluation.statistics import bootstrap_tail
from bivallate.reproduce.cell import TRANSFERRED, slug, weights_of
from bivallate.reproduce.measuring import seconds_an_epoch
from bivallate.reproduce.record_file import RecordFile
from bivallate.reproduce.running import SCHEMA
from bivallate.schema import MEGABYTE, check_fits, read_json

__all__ = ["Record", "RecordedPoints", "read_record", "read_records"]

TAIL = 30  # per cent of the classes in the tail
LOWEST = ("tail", "worst")  # measures of the weakest classes; which classes these are depends on the points
MEANS = ("clean", "robust", "gap")  # measures that are the mean over the points
MOST = 2**15 - 1  # highest number of a class
ALIKE = 0.95  # effective sample size, as a fraction, from which on weights count as nearly equal


@dataclass(frozen=True)
class RecordedPoints:
    """One number for each test point: a verdict (0 or 1), clean minus robust verdict, or FOSC.

    Attributes:
        value: (n,) the numbers.
        y: (n,) labels; empty if none were kept.
        index: (n,) rows of the test set.
        data: fingerprint of the points; of transferred examples, that of the images that they are made of.
        source: fingerprint of the network that transferred examples are made on; empty if not recorded.
    """

    value: np.ndarray
    y: np.ndarray
    index: np.ndarray
    data: str
    source: str = ""

    def same_points(self, other: RecordedPoints) -> bool:
        """Whether both are numbers of the same images in the same order."""
        return self.data == other.data and np.array_equal(self.index, other.index)

    def pairs_with(self, other: RecordedPoints) -> bool:
        """Whether both are numbers of the same points: of examples made on one network, if transferred."""
        return self.source == other.source and self.same_points(other)


def paired_differences(
    pairs: Sequence[tuple[RecordedPoints | None, RecordedPoints | None]],
) -> np.ndarray | None:
    """First minus second of each pair, (pairs, n); None without pairs, or if points differ or are missing."""
    kept = [(a, b) for a, b in pairs if a is not None and b is not None and a.pairs_with(b)]
    if not pairs or len(kept) < len(pairs) or not all(a.same_points(kept[0][0]) for a, _ in kept):
        return None
    return np.stack([a.value.astype(float) - b.value for a, b in kept])


def has_worst_class(attack: str) -> bool:
    """Whether a table shows the worst class beside the accuracy under this attack: it does for AutoAttack."""
    return attack.startswith("autoattack")


def worst_class_of(column: str) -> str:
    """The column of the worst class beside one of robust accuracy."""
    return f"{column} worst class"


@dataclass(frozen=True)
class Record:
    """The record of a finished cell with one seed.

    Attributes:
        entry: content of the file.
        path: the file.
    """

    entry: dict[str, Any]
    path: Path

    @property
    def row(self) -> str:
        """The row of the cell."""
        return self.entry["row"]

    @property
    def group(self) -> str:
        """The group of columns of the cell."""
        return self.entry["group"]

    @property
    def seed(self) -> int:
        """The seed of training."""
        return self.entry["seed"]

    @property
    def moved(self) -> bool:
        """Whether the training was begun on a GPU and ended on a processor, which alone the record names."""
        begun = str(self.entry.get("config", {}).get("device", ""))
        return begun.startswith("cuda") and not self.entry["machine"]["gpu"]

    @property
    def trained_on(self) -> str:
        """Fingerprint of the data set; empty if the record has none."""
        return self.entry.get("data", {}).get("fingerprint", "")

    @property
    def chosen(self) -> dict[str, Any]:
        """The epoch of the reported weights.

        With the effective sample size of its example weights, and the held-out robust accuracy in it and in
        the last epoch.
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
        """Forward and backward passes per example of the whole training; None if not recorded."""
        training = self.entry.get("training")
        return training["forward_per_row"] + training["backward_per_row"] if training else None

    @property
    def unweighted(self) -> bool:
        """Whether the method weights examples, but its weights were nearly equal.

        That is, in every epoch up to that of the reported weights. Weights of classes never count as such:
        one class of ten with half as much weight again leaves an effective size of 98 %.
        """
        weighting = self.entry.get("config", {}).get("method", {}).get("weighting", {"kind": "Equal"})
        before = self._history[: self.chosen["epoch"]]
        even = [line.get("effective", 0) >= ALIKE for line in before]
        of_examples = weighting["kind"] != "Equal" and not weighting["kind"].startswith("Class")
        return of_examples and bool(even) and all(even)

    @property
    def _history(self) -> list[dict[str, Any]]:
        return self.entry.get("training", {}).get("history", [])

    @cached_property
    def columns(self) -> dict[str, dict[str, Any]]:
        """Column -> value, interval_95, unit, what.

        Times are computed from the epochs, and intervals of tails and worst classes from the points, rather
        than read from the record, so that old records follow the present definitions. The worst class under
        AutoAttack is computed from the points where it is no column of the record.
        """
        columns = {name: dict(column) for name, column in self.entry["columns"].items()}
        for name, column in self.entry["columns"].items():
            attack = self.entry["scores"].get(column.get("score", ""), {}).get("attack", "")
            if column["what"] == "robust" and has_worst_class(attack):
                columns.setdefault(worst_class_of(name), column | {"what": "worst"})
        for name, column in columns.items():
            if column["what"] == "seconds" and "training" in self.entry:
                column["value"] = seconds_an_epoch(self.entry["training"]["history"])
            points = self._points_of(column, name) if column["what"] in LOWEST else None
            if points is not None:
                hits, counts = (np.bincount(points.y, weights) for weights in (points.value, None))
                if column["what"] == "worst":
                    column["value"] = float((hits[counts > 0] / counts[counts > 0]).min())
                share = TAIL if column["what"] == "tail" else 100 / int((counts > 0).sum())
                column["interval_95"] = list(bootstrap_tail(hits.astype(int), counts, share))
        return columns

    def answers(self, column: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Labels and predicted classes, (n,) each, of clean images by the network that a column measures.

        If the column is of another network's examples, or of FOSC, they are of the first evaluation of the
        same weights that is of neither. None if there is none, or for a column without points (seconds).
        """
        scores, own = self.entry["scores"], self._entry_of(column).get("score", "")
        for key in [own, *scores] if own in scores else []:
            points = scores[key]["points"]
            other = TRANSFERRED in key or weights_of(key) != weights_of(own)
            if other or not {"y", "predicted"} <= points.keys():
                continue
            kept = {n: unpacked(points[n], f"{key}.{n}") for n in ("y", "stage", "predicted")}
            within(len(kept["y"]), **kept)
            in_range(y=(kept["y"], 0, MOST), predicted=(kept["predicted"], 0, MOST))
            y, stage, predicted = (of.long().numpy() for of in kept.values())
            return y, np.where(stage == CLEAN, predicted, y)  # of a right image it is what attacks make of it
        return None

    def points(self, column: str) -> RecordedPoints | None:
        """The numbers of a column on the test points; None for a column without points (seconds)."""
        return self._points_of(self._entry_of(column), column)

    def _entry_of(self, column: str) -> dict[str, Any]:
        """The column as it is in the file, whose value may be of an older definition; or as computed."""
        return self.entry["columns"].get(column) or self.columns[column]

    def _points_of(self, entry: dict[str, Any], column: str) -> RecordedPoints | None:
        score = self.entry["scores"].get(entry.get("score", ""))
        if score is None:
            return None
        wanted = ("index", "fosc") if entry["what"].startswith("fosc") else ("index", "stage", "y")
        absent = [name for name in wanted if name not in score["points"]]
        if absent:
            raise UserError(f"{column} lacks the points' {', '.join(absent)}")
        kept = {name: unpacked(score["points"][name], f"{column}.{name}") for name in wanted}
        within(len(kept["index"]), **kept)
        index, origin = kept["index"].numpy(), self._origin(entry["score"])
        if entry["what"].startswith("fosc"):
            return RecordedPoints(kept["fosc"].numpy(), np.zeros(0), index, *origin)
        stage, y = kept["stage"].numpy(), kept["y"].numpy()
        robust, clean = stage == ROBUST, stage != CLEAN
        value = {"clean": clean, "gap": clean & ~robust}.get(entry["what"], robust)
        return RecordedPoints(value.astype(np.int64), y, index, *origin)

    def _origin(self, key: str) -> tuple[str, str]:
        """Fingerprints of an evaluation's images, and of the network that its examples were made on.

        Examples made twice on a GPU differ by rounding, and so do their fingerprints: transferred ones have
        those of the images that the other evaluations attack. The data's own depend on the seed, which
        chooses the held-out images.
        """
        scores, (_, other, source) = self.entry["scores"], key.partition(TRANSFERRED)
        if not other:
            return scores[key]["data_fingerprint"], ""
        images = {score["data_fingerprint"] for name, score in scores.items() if TRANSFERRED not in name}
        images |= set() if images else {self.trained_on}
        made_on = (
            of.get("fingerprint", "")
            for name, of in self.entry.get("sources", {}).items()
            if f"{source}-of-".startswith(f"{slug(name)}-of-")
        )
        return f"made of {', '.join(sorted(images))}", next(made_on, "")


def read_records(out: Path, table: str, scale: str) -> list[Record]:
    """Read all records of a table at a scale, in the order of their names; none if there is no folder.

    Raises UserError for a file that is not a record, and for two records of one cell and seed.
    """
    found: dict[tuple[str, int], Record] = {}
    for path in sorted((out / table / scale).glob("*-seed*.json")):
        record = read_record(path)
        first = found.setdefault((slug(f"{record.row} {record.group}"), record.seed), record)
        if first is not record:
            raise UserError(
                f"{first.path} and {path.name} are both of {record.row}, {record.group}, seed {record.seed}, "
                "and would count as two seeds: move one of them out of the results"
            )
    return list(found.values())


def read_record(path: Path) -> Record:
    """Read a record. Raises UserError for a file that is not a record."""
    entry = read_json(path, "record", dict[str, Any], 256 * MEGABYTE)
    if entry.get("schema") != SCHEMA:
        raise UserError(f"{path} is not a record of {SCHEMA}: move it out of the results")
    try:
        record = Record(check_fits(RecordFile, entry, "record"), path)
        if "training" in record.entry and not record.entry["training"]["history"]:
            raise ValueError("its training has no epoch")
        for name, column in record.entry["columns"].items():
            record.answers(name)
            points = record.points(name)
            mean = column["value"] if points is None else float(points.value.mean())
            if column["what"] in MEANS and abs(column["value"] - mean) > 1e-6:
                raise ValueError(f"{name} is {column['value']:g}, and {mean:g} by its points")
    except (UserError, ValueError) as error:
        raise UserError(
            f"{path} is not a readable record ({error}): remove it and run the cell again"
        ) from error
    return record


def of_cell(records: Iterable[Record], row: str, group: str) -> list[Record]:
    """The records of one cell, by seed."""
    wanted = slug(f"{row} {group}")
    return sorted((r for r in records if slug(f"{r.row} {r.group}") == wanted), key=lambda r: r.seed)
