"""Divide the rows of a source into training, held-out and test data, with notes for the user."""

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
    """The rows for training, held out and for testing.

    Attributes:
        train, validation, test: the splits; `train` may be empty.
        moments: mean and standard deviation per channel, published, or of all rows before the hold-out.
            They are without those of the test, but for scikit-learn's digits, whose records have them.
        notes: of the source, and on how the rows were divided.
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

    A test split of the source is used as it is. Without one, test data are cut from the training data,
    independently of the seed, or with `whole` are all of it. A validation split of the source is used as it
    is. Without one, held-out data are drawn from the rest by the seed; none if `validation` is 0.
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
    measured = source.moments
    if "test" not in splits:
        train, splits["test"] = select.holdout(train, test_fraction, FIXED, "test")
        if source.known is None:
            measured = None  # the source's are of the test images too
    held: Split | None = splits.get("validation") if validation else None
    everything = train if len(train) else splits["test"]
    statistics = _published(source, everything.shape) or measured or _measured(everything)
    if validation and held is None and len(train):
        train, held = select.holdout(train, validation, seed)
    if source.known is not None:
        notes = (*notes, *_incomplete(source.known, splits))
    return Divided(train, held, splits["test"], statistics, notes)


def split_notes(source: Source, train: Split, test: Split) -> tuple[str, ...]:
    """Notes for the user on the classes, and on test images in the training data; none for published sets."""
    return () if source.known is not None else (*class_notes(source.classes), *_doubled(train, test))


def _measured(split: Split) -> Statistics:
    """Mean and standard deviation of the rows; of a stream only of its first rows, to decode few images."""
    rows = split.index[:2048] if isinstance(split.store, Stream) else split.index
    return moments(split.store, rows)


def _published(source: Source, shape: tuple[int, int, int]) -> Statistics | None:
    """The published mean and standard deviation, if the images have the published shape."""
    known = source.known
    if known is None or known.mean is None or known.std is None or shape != known.shape:
        return None
    return known.mean, known.std


def _doubled(train: Split, test: Split) -> tuple[str, ...]:
    """A note if test images are also training images, for example in a folder with copies."""
    seen = select.shared(test, train)
    if not len(seen):
        return ()
    return (
        f"{len(seen):,} of {len(test):,} test images are among the training images, pixel for pixel (the "
        f"first is row {int(test.index[seen[0]])}): accuracy on them says nothing",
    )


def _incomplete(known: KnownDataset, splits: dict[str, Split]) -> tuple[str, ...]:
    """Notes on the part of a published set that was not found."""
    wanted = {"train": known.train, "test": known.test}
    return tuple(
        f"{len(splits[name]) if name in splits else 0:,} of the {count:,} published {name} images were found"
        for name, count in wanted.items()
        if name not in splits or len(splits[name]) < count
    )
