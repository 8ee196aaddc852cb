"""The measurements of a trained cell.

Columns share evaluations. Each evaluation is saved, so that an interrupted job does not repeat it.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bivallate.data import Dataset
from bivallate.evaluation import Attack, Score, attack_and_score, attack_named
from bivallate.evaluation.black_box import clean_scores
from bivallate.evaluation.evaluation_file import pack
from bivallate.evaluation.geometry import fosc_after
from bivallate.evaluation.named_attacks import ensemble
from bivallate.evaluation.points import as_points, data_fingerprint, model_fingerprint, select
from bivallate.evaluation.statistics import wilson
from bivallate.files import write_json
from bivallate.lower.apgd import APGD
from bivallate.lower.fab import FAB
from bivallate.lower.forward import Forward
from bivallate.lower.modes import evaluating, frozen
from bivallate.lower.objective import cross_entropy
from bivallate.lower.pgd import PGD
from bivallate.lower.problem import LowerProblem
from bivallate.lower.square import Square
from bivallate.lower.threat import ThreatModel, threat
from bivallate.models import Classifier
from bivallate.noise import Noise
from bivallate.reproduce.cell import Cell, Measure
from bivallate.schema import MEGABYTE, read_json
from bivallate.types import Batch, Clock

__all__ = ["SHORT", "columns_of", "measured", "read_attack", "seconds_an_epoch"]

SHORT = "autoattack-short"
FOSC_BATCH = 500


def read_attack(name: str) -> Attack:
    """An attack by name; "autoattack-short" is the standard ensemble with budgets for tests only."""
    if name != SHORT:
        return attack_named(name)
    return ensemble(SHORT, APGD(5), FAB(3), Square(10), targets=2)


def measured(
    models: Mapping[str, Classifier],
    cell: Cell,
    dataset: Dataset,
    folder: Path,
    sources: dict[str, Classifier],
) -> dict[str, dict[str, Any]]:
    """All evaluations of a cell by key, as JSON; those that are already in the folder are not repeated.

    Weights that equal the cell's own, as those of the best epoch do if it is the last one, are not evaluated
    again.

    Args:
        models: the trained network by the name of its weights, such as "best".
        cell: the cell.
        dataset: the data; its test split is evaluated.
        folder: where to keep the evaluations.
        sources: other networks for transfer, by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, Any]] = {}
    prints = {name: model_fingerprint(model) for name, model in models.items()}
    alike = {name for name, of in prints.items() if of == prints[cell.weights]}
    for measure in cell.measures:
        if measure.what == "seconds" or measure.key in found:
            continue
        of = f"-{model_fingerprint(sources[measure.source])[:8]}" if measure.source is not None else ""
        kept = folder / f"{cell.weights}-{measure.key}{of}.json"
        if not kept.exists():
            model, own = models[measure.weights or cell.weights], dataclasses.replace(measure, weights="").key
            known = found.get(own) if measure.weights in alike else None
            entry = known or _evaluation(model, measure, cell, dataset, kept, sources)
            write_json(kept, entry, indent=None)
            _partial(kept).unlink(missing_ok=True)
        found[measure.key] = read_json(kept, "evaluation", dict[str, Any], 1024 * MEGABYTE)
    return found


def _evaluation(
    model: Classifier,
    measure: Measure,
    cell: Cell,
    dataset: Dataset,
    kept: Path,
    sources: dict[str, Classifier],
) -> dict[str, Any]:
    radius = threat(cell.norm, measure.eps or cell.eps)
    if measure.what.startswith("fosc"):
        return stationarity(model, radius, dataset, measure)
    if measure.source is not None:
        return _slim(transferred(sources[measure.source], model, radius, dataset, measure))
    chosen = read_attack(measure.attack)
    n = measure.n if measure.n is not None and measure.n < len(dataset.test) else None
    return _slim(attack_and_score(model, dataset.test, radius, chosen, n=n, resume=_partial(kept)))


def _partial(kept: Path) -> Path:
    return kept.with_name(f".{kept.name}.partial")


def _slim(score: Score) -> dict[str, Any]:
    """The score as JSON, with margins in half precision and rows in 32 bits to keep records small."""
    entry = score.to_json()
    entry["points"]["margin"] = pack(score.margin.clamp(-6e4, 6e4).half())
    entry["points"]["index"] = pack(score.index.int())
    return entry


def transferred(
    source: Classifier, model: Classifier, radius: ThreatModel, dataset: Dataset, measure: Measure
) -> Score:
    """Score on adversarial examples made on another network: its clean accuracy is that on these images."""
    index = select(len(dataset.test), _at_most(measure.n, len(dataset.test)), None, 0)
    x, y = dataset.test.tensors(index)
    device = next(model.parameters()).device
    found = clean_scores(source, {"": model}, x.to(device), y.to(device), radius, read_attack(measure.attack))
    return found[""]


def stationarity(
    model: Classifier, radius: ThreatModel, dataset: Dataset, measure: Measure
) -> dict[str, Any]:
    """FOSC, in nats, at the last points of PGD-10 with steps of eps/4, one value for each test point.

    Lower values mean that the inner maximisation has converged better.

    Reference: Dynamic AT, eq. 4 (form "ball").
    """
    form = "ball" if measure.what == "fosc-ball" else "box"
    source = as_points(dataset.test)
    index = select(len(source), _at_most(measure.n, len(source)), None, 0)
    forward, device, values = Forward(model), next(model.parameters()).device, []
    solver = PGD(10, radius.eps / 4)
    with evaluating(model), frozen(model):
        for rows in index.split(FOSC_BATCH):
            x, y = (t.to(device) for t in source.tensors(rows))
            batch = Batch(x, y, rows.to(device))
            noise = Noise(0, batch.index, turn=-1)
            problem = LowerProblem(forward, batch, cross_entropy, radius, Clock(), noise)  # pyright: ignore
            values.append(fosc_after(solver, problem, form).cpu())
    value = torch.cat(values)
    return {
        "fosc": float(value.mean()),
        "form": form,
        "n": len(value),
        "data_fingerprint": data_fingerprint(source, index),
        "points": {"fosc": pack(value.float()), "index": pack(index.int())},
    }


def _at_most(n: int | None, size: int) -> int | None:
    return n if n is not None and n < size else None


def columns_of(
    cell: Cell, scores: dict[str, dict[str, Any]], history: list[dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Value, 95 % interval and unit of every column, and the key of its evaluation."""
    return {m.column: _column(m, scores.get(m.key, {}), history) for m in cell.measures}


def seconds_an_epoch(history: list[dict[str, Any]]) -> float:
    """Median wall time of an epoch in seconds; the median is not affected by an epoch that was paused."""
    return statistics.median(line["seconds"] for line in history)


def _column(measure: Measure, score: dict[str, Any], history: list[dict[str, Any]]) -> dict[str, Any]:
    if measure.what == "seconds":
        return {
            "value": seconds_an_epoch(history),
            "interval_95": None,
            "unit": "s",
            "what": "seconds",
        }
    entry: dict[str, Any] = {"what": measure.what, "score": measure.key, "unit": "fraction"}
    if measure.what.startswith("fosc"):
        return {**entry, "value": score["fosc"], "interval_95": None, "unit": "nats"}
    if measure.what == "gap":
        value = score["clean_accuracy"] - score["robust_accuracy"]
        hits = round(value * score["n"])
        return {**entry, "value": value, "interval_95": list(wilson(hits, score["n"]))}
    if measure.what == "worst":
        return {**entry, "value": score["worst_class"][1], "interval_95": score["worst_class_interval_95"]}
    names = {
        "clean": ("clean_accuracy", "clean_interval_95"),
        "robust": ("robust_accuracy", "interval_95"),
        "tail": ("tail_30", "tail_30_interval_95"),
    }[measure.what]
    return {**entry, "value": score[names[0]], "interval_95": score[names[1]]}
