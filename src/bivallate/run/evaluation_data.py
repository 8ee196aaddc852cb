"""The data to evaluate a run on: its own or others, with labels translated into the run's classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bivallate.data import Dataset, Split
from bivallate.data.classes import positions, unknown_class
from bivallate.data.select import shared
from bivallate.data.sources import distinct_name
from bivallate.errors import UserError
from bivallate.models.description import read_manifest
from bivallate.run.config import Config
from bivallate.run.folder import RunFolder
from bivallate.run.from_config import load_data, own_data, resolved_data

__all__ = ["EvaluationData", "evaluation_data", "moved_data", "relabelled"]


@dataclass(frozen=True)
class EvaluationData:
    """The data to evaluate a run on.

    Attributes:
        data: the data set; its labels are places among the run's classes.
        place: short name of the data for names of files; empty for the run's own data.
        warnings: reasons why an accuracy on these data means less.
    """

    data: Dataset
    place: str = ""
    warnings: tuple[str, ...] = ()


def evaluation_data(
    run: Path, config: Config, name: str | None = None, *, by_position: bool = False
) -> EvaluationData:
    """Load the run's own data, or other data by name.

    If other data have no test split, all of their rows are test data. Their images are fitted to the model's
    shape if they differ. If the named data turn out to be the run's own, they are split as in its training.

    Args:
        run: the run's folder.
        config: its configuration.
        name: name of other data; None for the run's own.
        by_position: match labels to the run's classes by number instead of by name.

    Raises:
        UserError: the data cannot be read, or have a class that the run does not know.
    """
    manifest = read_manifest(RunFolder(run).path / "model.json")
    classes = manifest.get("classes")
    known = [str(n) for n in classes] if classes else [str(k) for k in range(manifest["num_classes"])]
    spec = config.data
    if name is None or distinct_name(name, spec.data_dir) == _place(spec):
        data = own_data(spec, config.seed) if name is None else load_data(spec, config.seed)
        return EvaluationData(relabelled(data, known, by_position=by_position))
    there = resolved_data(replace(spec, name=name))
    try:
        same = load_data(there, config.seed)
    except UserError:  # the run's settings of its own data may not fit these
        same = None
    if same is not None and same.matches(manifest.get("data_fingerprint") or ""):
        return EvaluationData(relabelled(same, known, by_position=by_position))
    data = _fitted(there, config.seed, tuple(manifest["shape"]))
    found = relabelled(data, known, by_position=by_position)
    place = distinct_name(name, spec.data_dir)
    return EvaluationData(found, place, _seen(config, found.test))


def moved_data(run: Path, config: Config, place: str | None = None) -> Dataset:
    """Load the run's own data, which may have moved to `place`.

    Raises:
        UserError: they cannot be read, or the data at `place` are others.
    """
    found = evaluation_data(run, config, place)
    if found.place:
        raise UserError(
            f"{place} does not hold the data that {run} was trained on, and --data says here where those lie "
            "now; other data are for `bivallate evaluate`, attack and audit"
        )
    return found.data


def _place(spec: Any) -> str:
    """Short name of the run's own data; empty if they do not exist any more."""
    try:
        return distinct_name(spec.name, spec.data_dir) if spec.name else ""
    except UserError:
        return ""


def _fitted(spec: Any, seed: int, shape: tuple[int, int, int]) -> Dataset:
    """Load other data, with their images fitted to the model's shape if they differ."""
    plain = replace(spec, validation=0, imbalance=None, extra=None, allow_missing_classes=True)
    try:
        found = load_data(plain, seed, whole=True)
        if found.shape == shape or shape[1] != shape[2]:
            return found
    except UserError:
        if shape[1] != shape[2]:
            raise
    channels = shape[0] if shape[0] in (1, 3) else 0
    fitted = load_data(replace(plain, size=shape[1], channels=channels), seed, whole=True)
    note = f"images are fitted to the model's {shape[2]}x{shape[1]} with {shape[0]} channels"
    return fitted.but(notes=(*fitted.notes, note))


def relabelled(data: Dataset, known: Sequence[str], *, by_position: bool = False) -> Dataset:
    """The data with labels translated into places among the known classes, by the names of the classes.

    If the data do not name their classes, or with `by_position`, the labels' numbers are used. Notes tell
    what differs.

    Raises:
        UserError: the data have rows of a class that is not known.
    """
    found = data.classes
    if found == list(known):
        return data
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    rows = torch.cat([split.labels for split in splits.values() if split is not None])
    used = rows.unique().tolist()
    place = positions(found, known)
    lost = [k for k in used if place[k] < 0]
    if by_position or (lost and not data.named):
        if used and used[-1] >= len(known):
            raise UserError(f"{data.name} has the label {used[-1]}, but the run has {len(known)} classes")
        return data.but(
            classes=list(known), notes=(*data.notes, "labels are read as places of the run's classes")
        )
    if lost:
        error = unknown_class(data.name, found[lost[0]], known, "the run has")
        raise UserError(f"{error}; --by-position reads labels by their numbers")
    table = torch.tensor(place)
    moved = {name: replace(s, labels=table[s.labels]) for name, s in splits.items() if s is not None}
    notes = [f"{found[k]!r} is read as {known[place[k]]!r}" for k in used if found[k] != known[place[k]]]
    absent = sorted(set(range(len(known))) - {place[k] for k in data.test.labels.unique().tolist()})
    if absent:
        some = ", ".join(known[k] for k in absent[:5]) + (", ..." if len(absent) > 5 else "")
        notes.append(f"{len(absent)} of the run's {len(known)} classes have no test image here: {some}")
    return data.but(classes=list(known), notes=(*data.notes, *notes), **moved)


def _seen(config: Config, test: Split) -> tuple[str, ...]:
    """Warn if test images are among the run's training images, provided its data still exist."""
    try:
        own = load_data(config.data, config.seed)
    except UserError:
        return ()
    count = len(shared(test, own.train))
    if not count:
        return ()
    return (f"{count:,} of {len(test):,} images are training images of this run: it has seen the answers",)
