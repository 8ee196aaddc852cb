"""Read every measured accuracy in results/ as one list, with a row for each training, threat and attack."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.catalogue import worst
from benchmarks.contest_page import shown
from benchmarks.contest_trials import SETTINGS
from benchmarks.threats import SEVERAL, SHOWN, share
from bivallate.evaluation.statistics import wilson
from bivallate.reproduce.cell import TRANSFERRED, slug, weights_of
from bivallate.reproduce.definition import is_of_cell
from bivallate.reproduce.paper_table import Scale
from bivallate.reproduce.papers.catalogue import tables
from bivallate.reproduce.records import RecordedPoints, read_records
from bivallate.reproduce.scaling import at_scale, sources_at_scale

SCALES: tuple[Scale, ...] = ("full", "cpu")
PAGES = {
    "catalogue": "methods",
    "defaults": "defaults",
    "bastion": "bastion",
    "contest": "contest",
    "threats": "threats",
}  # whose tables the records make


@dataclass(frozen=True)
class Row:
    """One network under one attack.

    Attributes:
        origin: table or folder of the record. page: of docs/, which describes the experiment.
        images: number of training images, 0 for all. judged: "test" or "held out".
        points: number of images that were attacked. clean, robust: accuracies in [0, 1].
        low, high: 95 % interval of `robust` for the sampling of points.
        passes: forward and backward passes of the whole training, for each image.
        weights: which weights of the run. commit: of the code, with a + if files had been changed.
        worst: lowest robust accuracy of a class; None if the record does not have it.
        variant: name of the row in its table, where it is not the method's.
        verdicts: the verdict on every point, where the record has it.
        trained: threats of the training, where they are not the attack's alone.
    """

    origin: str
    page: str
    method: str
    data: str
    images: int
    network: str
    threat: str
    attack: str
    judged: str
    points: int
    clean: float
    robust: float
    low: float
    high: float
    passes: float
    seed: int
    weights: str
    commit: str
    worst: float | None = None
    variant: str = ""
    verdicts: RecordedPoints | None = field(default=None, compare=False)
    trained: str = ""

    @property
    def label(self) -> str:
        """The method, and the variant of it."""
        remark = self.variant or f"trained under {self.trained}" * bool(self.trained)
        return f"{self.method} ({remark})" if remark else self.method


def mean(rows: Sequence[Row], key: str) -> float:
    """Mean of an accuracy or a cost over the seeds of a method."""
    return statistics.fmean(getattr(row, key) for row in rows)


def every(results: Path) -> tuple[list[Row], int]:
    """(all rows, and how many records of the papers' tables are left out because their cell is defined
    otherwise now). The agreement of two AutoAttacks (results/autoattack) has a page of its own."""
    rows = [*_catalogue(results), *_defaults(results), *_bastion(results), *_contest(results)]
    rows += _threats(results)
    left = 0
    for table in tables().values():
        for scale in SCALES:
            cells = {cell.name: cell for cell in at_scale(table, scale)}
            for record in read_records(results, table.name, scale):
                cell = cells.get(slug(f"{record.row} {record.group}"))
                if cell and is_of_cell(record.entry, cell, record.seed, sources_at_scale(table, scale)):
                    rows += _of_table(table.name, record)
                else:
                    left += 1
    return sorted(rows, key=lambda r: (r.data, r.threat, r.attack, -r.robust, r.method, r.seed)), left


def _of_table(table: str, record: Any) -> Iterator[Row]:
    entry = record.entry
    config = entry["config"]
    robust = {c["score"]: name for name, c in entry["columns"].items() if c["what"] == "robust"}
    name = config["method"]["name"]
    clean = dict[str, float]()  # weights -> accuracy on images that are not another network's examples
    for key, score in entry["scores"].items():
        if TRANSFERRED not in key and "clean_accuracy" in score:
            clean.setdefault(weights_of(key) or entry["weights"], score["clean_accuracy"])
    for key, column in sorted(robust.items()):
        score = entry["scores"][key]
        attack, _, other = key.partition(TRANSFERRED)
        low, high = score["interval_95"]
        of = weights_of(key) or entry["weights"]
        yield Row(
            table,
            "results",
            name,
            config["data"]["name"],
            entry["data"]["train"],
            config["model"]["name"],
            _threat(score["threat"]),
            f"{attack} of another network" if other else score["attack"],
            "test",
            score["n"],
            clean[of] if other else score["clean_accuracy"],
            score["robust_accuracy"],
            low,
            high,
            record.passes,
            record.seed,
            of,
            _commit(entry["commit"]),
            score["worst_class"][1],
            "" if f"{slug(name)}-".startswith(f"{slug(record.row)}-") else record.row,
            record.points(column),
        )


def _catalogue(results: Path) -> Iterator[Row]:
    for record in _read(results / "catalogue"):
        if "failed" in record:  # no network came of it
            continue
        judged = 0, "tiny-cnn", f"Linf {_radius(record['eps'])}", "pgd-20", "test"  # as docs/methods.md says
        cost, commit = record["forward"] + record["backward"], _commit(record["commit"])
        for weights, key, lowest in (("best", "", worst(record)), ("last", "last_", None)):
            found = record[f"{key}clean"], *_with_interval(record[f"{key}robust"], 359)
            named = "catalogue", PAGES["catalogue"], record["method"], "digits"
            trained = SHOWN["all"] if record["method"] in dict(SEVERAL) else ""
            rest = cost, record["seed"], weights, commit
            yield Row(*named, *judged, 359, *found, *rest, worst=lowest, trained=trained)


def _defaults(results: Path) -> Iterator[Row]:
    for record in _read(results / "defaults"):
        config = record["config"]
        yield Row(
            "defaults",
            PAGES["defaults"],
            config["method"]["name"],
            config["data"]["name"],
            record["rows"],
            config["model"]["name"],
            _threat(config["method"]["threat"]),
            "pgd-20",
            "test",
            record["points"],
            record["clean"],
            record["robust"],
            *record["interval_95"],
            record["passes"],
            config["seed"],
            "best",
            _commit(record["commit"]),
        )


def _bastion(results: Path) -> Iterator[Row]:
    for record in _read(results / "bastion"):
        attack, n = record["judge"].partition(" on ")[::2]
        judged = [(attack, "held out", int(n.split()[0]), record["validation"])]
        if test := record.get("test"):
            judged.append((test["attack"], "test", test["n"], test))
        named = "bastion", PAGES["bastion"], record["method"], record["data"], record["rows"]
        for attack, where, points, found in judged:
            figures = found["clean"], *_with_interval(found["robust"], points)
            rest = record["passes"], record["seed"], "ema", _commit(record["commit"])
            yield Row(*named, "tiny-cnn", "Linf 0.1", attack, where, points, *figures, *rest)


def _contest(results: Path) -> Iterator[Row]:
    for record in _read(results / "contest"):
        setting = SETTINGS[record["data"]]
        judged = [(record["judge"], "held out", record["held_out"])]
        if test := record.get("test"):
            judged.append((test["attack"], "test", test))
        tuned = f"{record['parameter']} {shown(record['value'])}, {record['cost']} cost"
        tuned += ", diverged" * ("diverged" in record)
        named = "contest", PAGES["contest"], f"{record['name']} ({tuned})", record["data"], record["rows"]
        for attack, where, found in judged:
            figures = found["n"], found["clean"], *_with_interval(found["robust"], found["n"])
            rest = record["passes"], record["seed"], "ema", _commit(record["commit"])
            of = _verdicts(found["right"], record["data"]) if where == "test" else None
            threat = f"Linf {_radius(setting.eps)}"
            yield Row(*named, setting.network, threat, attack, where, *figures, *rest, verdicts=of)


def _threats(results: Path) -> Iterator[Row]:
    for record in _read(results / "threats"):
        named = "threats", PAGES["threats"], record["method"], "digits", 0, "tiny-cnn"
        trained = record["trained"]
        rest = record["seed"], "best" if trained else "last", _commit(record["commit"])
        for kind, eps in record["radii"].items():
            points = len(record["right"][kind])
            figures = share(record, "clean"), *_with_interval(share(record, kind), points), record["passes"]
            yield Row(
                *named,
                f"{SHOWN[kind]} {_radius(eps)}",
                record["attack"],
                "test",
                points,
                *figures,
                *rest,
                trained="" if trained in ("", kind) else SHOWN[trained],
                verdicts=_verdicts(record["right"][kind], "digits"),
            )


def _verdicts(right: str, data: str) -> RecordedPoints:
    value = np.array([int(verdict) for verdict in right])
    return RecordedPoints(value, np.zeros(0), np.arange(len(value)), data)


def _read(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.json"))]


def _with_interval(share: float, points: int) -> tuple[float, float, float]:
    return share, *wilson(round(share * points), points)


def _threat(entry: dict[str, Any]) -> str:
    return f"{entry['kind']} {_radius(entry['eps'])}"


def _radius(eps: float) -> str:
    levels = 255 * eps
    whole = abs(levels - round(levels)) < 1e-6 and abs(100 * eps - round(100 * eps)) > 1e-6
    return f"{round(levels)}/255" if whole else f"{eps:g}"


def _commit(entry: dict[str, Any] | str) -> str:
    if isinstance(entry, str):
        return entry[:7]
    return str(entry.get("id", ""))[:7] + ("+" if entry.get("modified") else "")
