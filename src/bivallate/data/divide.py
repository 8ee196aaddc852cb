"""Rows of a source divided into training, held-out and test data, and what is said of them."""

from __future__ import annotations

from dataclasses import dataclass

from bivallate.data import select
from bivallate.data.classes import class_notes
from bivallate.data.dataset import Split, moments
from bivallate.data.registry import KnownDataset
from bivallate.data.sources import FIXED
from bivallate.data.splits import Source
from bivallate.data.stream import Stream
from bivallate.errors import check_number, check_seed

__all__ = ["Divided", "divided", "split_notes"]

Statistics = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Divided:
    """Which rows are for training, held out and for testing.

    Attributes:
        train, validation, test: the data; training data may be empty.
        moments: mean and standard deviation per channel, published or of the rows before any was held out.
        notes: how they were divided, and what the source says.
    """

    train: Split
    validation: Split | None
    test: Split
    moments: Statistics
    notes: tuple[str, ...]


def divided(
    source: Source, *, seed: int, validation: float | int, test_fraction: float, whole: bool
) -> Divided:
    """Divide a source into training, held-out and test data.

    Test data are taken as they are, else cut from the training data whatever the seed, or all of it if
    `whole`. Held-out data are taken as they are, else cut from the rest by the seed; none where `validation`
    is 0.
    """
    check_seed(seed)
    for name, share in {"validation": validation, "test_fraction": test_fraction}.items():
        if share:
            check_number(name, share)
    splits = dict(source.splits)
    train = splits.get("train") or splits["test"].subset(slice(0, 0))
    notes = source.notes
    if "test" not in splits and whole:
        splits["test"], train = train, train.subset(slice(0, 0))
        notes = (*notes, f"there is no test split: all {len(splits['test']):,} images are test data")
    if "test" not in splits:
        train, splits["test"] = select.holdout(train, test_fraction, FIXED, "test")
    held: Split | None = splits.get("validation") if validation else None
    everything = train if len(train) else splits["test"]
    statistics = _published(source, everything.shape) or source.moments or _measured(everything)
    if validation and held is None and len(train):
        train, held = select.holdout(train, validation, seed)
    if source.known is not None:
        notes = (*notes, *_incomplete(source.known, splits))
    return Divided(train, held, splits["test"], statistics, notes)


def split_notes(source: Source, train: Split, test: Split) -> tuple[str, ...]:
    """What a user should know of the classes, and of images that lie in both; published sets are known."""
    return () if source.known is not None else (*class_notes(source.classes), *_doubled(train, test))


def _measured(split: Split) -> Statistics:
    """Mean and standard deviation of the rows; of a stream its first ones, as all would be decoded."""
    rows = split.index[:2048] if isinstance(split.store, Stream) else split.index
    return moments(split.store, rows)


def _published(source: Source, shape: tuple[int, int, int]) -> Statistics | None:
    """The published mean and standard deviation, if the images have the published shape."""
    known = source.known
    if known is None or known.mean is None or known.std is None or shape != known.shape:
        return None
    return known.mean, known.std


def _doubled(train: Split, test: Split) -> tuple[str, ...]:
    """Whether images lie in both, as where a folder holds copies."""
    seen = select.shared(test, train)
    if not len(seen):
        return ()
    return (
        f"{len(seen):,} of {len(test):,} test images are among the training images, pixel for pixel (the "
        f"first is row {int(test.index[seen[0]])}): accuracy on them says nothing",
    )


def _incomplete(known: KnownDataset, splits: dict[str, Split]) -> tuple[str, ...]:
    """Which part of a published set was not found."""
    wanted = {"train": known.train, "test": known.test}
    return tuple(
        f"{len(splits[name]) if name in splits else 0:,} of the {count:,} published {name} images were found"
        for name, count in wanted.items()
        if name not in splits or len(splits[name]) < count
    )
