"""`load`: a data set by name, path, hub address or pair of tensors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bivallate.data import arrays, select, tensors
from bivallate.data.augment import Augment
from bivallate.data.classes import numbered, numbered_from_one
from bivallate.data.dataset import Dataset, Split
from bivallate.data.decode import Reading
from bivallate.data.divide import divided, split_notes
from bivallate.data.sources import find
from bivallate.data.splits import Source, Streaming
from bivallate.errors import UserError, python_arguments

__all__ = ["load"]


@python_arguments
def load(
    data: Any,
    *,
    data_dir: str | Path | None = None,
    seed: int = 0,
    validation: float | int = 0.1,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    on_bad: str = "refuse",
    image_column: str | None = None,
    label_column: str | None = None,
    test_fraction: float = 0.2,
    whole: bool = False,
    imbalance: str | None = None,
    extra: str | Path | tuple[Any, Any] | None = None,
    extra_ratio: float = 0.5,
    allow_missing_classes: bool = False,
    stream: bool | None = None,
    workers: int | None = None,
) -> Dataset:
    """Load a data set: a name ("digits"), "hub:owner/name", a folder, an archive, an `.npz` or a pair (x, y).

    Args:
        data: the data set; a pair of pairs ((x, y), (x, y)) is training and test data; a `Dataset` is
            returned unchanged.
        data_dir: folder in which named sets are looked for before the hub; default `BIVALLATE_DATA`.
        seed: of validation split, imbalance and mixing. The test data do not depend on it.
        validation: fraction below 1, or number of rows (int), to hold out in the proportions of the classes;
            0: none.
        size: side or (H, W) to which every image is fitted.
        channels: 1 or 3. Size and channels apply to arrays too.
        on_bad: "refuse", "convert" or "skip" rows that cannot be used as they are; "convert" also numbers
            text labels in alphabetical order.
        image_column, label_column: names of columns, for files whose columns are not recognised.
        test_fraction: fraction of the training data that is cut off as test data, for a set without test
            data.
        whole: take all data of such a set as test data.
        imbalance: "step:0.2" or "longtail:0.01", applied to the remaining training data.
        extra: an `.npz` file or pair (x, y) mixed into the training data.
        extra_ratio: its share of the mixture.
        allow_missing_classes: allow a class without training row.
        stream: decode images as they are needed, in `workers` processes (one for each processor, at most 8),
            instead of once into the cache. None: only for sets that are too large for the cache, such as
            imagenet.

    Returns:
        The data set; images are uint8 in 0..255 or float32 in [0, 1].

    Raises:
        UserError: data that are not found, cannot be read, or do not fit the arguments.
    """
    given = dict(locals())
    if isinstance(data, Dataset):
        return data
    side = (size, size) if isinstance(size, int) else size
    reading = Reading(side, channels, on_bad, image_column=image_column, label_column=label_column)
    found = find(data, data_dir, reading, Streaming(stream, workers))
    source = found.named(allow_missing_classes)
    rows = divided(source, seed=seed, validation=validation, test_fraction=test_fraction, whole=whole)
    train, notes = rows.train, rows.notes
    if imbalance is not None:
        train = select.imbalance(train, imbalance, len(source.classes), seed)
    if extra is not None:
        train, said = _mixed(train, extra, extra_ratio, source.classes, reading, seed)
        notes += said
    if len(train) and not allow_missing_classes:
        _check_classes(train, source)
    notes += split_notes(source, train, rows.test)
    parts = source.classes, rows.test.shape, train, rows.validation, rows.test
    parts = *parts, *rows.moments, _augmentation(source, rows.test.shape), notes, bool(found.classes)
    return Dataset(source.name, *parts, _loaded(given))


def _loaded(given: dict[str, Any]) -> dict[str, Any] | None:
    """The arguments of `load` by which its data can be loaded again; None for data in memory."""
    named = all(isinstance(place, str | Path) for place in (given["data"], given["extra"] or ""))
    if not named or given["whole"] or isinstance(given["size"], tuple):
        return None
    places = {key: given[key] and str(given[key]) for key in ("data_dir", "extra")}
    left = {key: value for key, value in given.items() if key not in ("data", "seed", "whole")}
    return {"name": str(given["data"]), **left, **places}


def _mixed(
    train: Split, extra: Any, ratio: float, classes: list[str], reading: Reading, seed: int
) -> tuple[Split, tuple[str, ...]]:
    """(training data with extra images, notes for the user on these)."""
    named = isinstance(extra, str | Path)
    what = str(extra) if named else "extra images"
    x, y = tensors.read_npz(Path(extra)) if named else arrays.split_pair(extra, what)
    split, _, notes = arrays.read_arrays(x, y, reading, what, classes)
    if train.store.dtype == np.float32 and split.store.dtype == np.uint8:
        split = replace(split, store=split.images.astype(np.float32) / np.float32(255))
    tensors.check_labels(split.labels, len(classes), "extra data")
    return select.mix(train, split, ratio, seed), notes


def _check_classes(train: Split, source: Source) -> None:
    classes = source.classes
    empty = [k for k, count in enumerate(train.counts(len(classes))) if count == 0]
    if empty:
        listed = ", ".join(f"{classes[k]!r} (label {k})" for k in empty[:5])
        hint = numbered_from_one(train.labels.numpy(), 0) if empty == [0] and numbered(classes) else ""
        left = "".join(f"; {note}" for note in source.notes)
        raise UserError(
            f"{len(empty)} of {len(classes)} classes have no row in the training data: {listed}{hint}; add "
            f"rows, or load with allow_missing_classes=True (--set data.allow_missing_classes=true){left}"
        )


def _augmentation(source: Source, shape: tuple[int, int, int]) -> Augment:
    """The papers' augmentation for known sets; else crops of colour images, no flips: they change letters."""
    if source.known is not None:
        return Augment.parse(source.known.augment)
    return Augment(pad=max(1, shape[1] // 8)) if shape[0] == 3 else Augment()
