"""`load`: a data set by name, path, hub address or pair of tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bivallate.data import cache, folders, hub, parquet, registry, select, tensors
from bivallate.data.augment import Augment
from bivallate.data.dataset import Dataset, Split, moments
from bivallate.data.decode import Encoded, Reading, decode
from bivallate.errors import UserError, unknown

__all__ = ["load"]

FIXED = 0  # the seed of test splits: the same test data whatever the seed of the run


@dataclass(frozen=True)
class Source:
    """What was found before rows are chosen from it."""

    name: str
    splits: dict[str, Split]
    classes: list[str]
    moments: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    known: registry.Known | None = None
    own_test: bool = True  # false: the test split is to be cut from the training data


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
    imbalance: str | None = None,
    extra: str | Path | tuple[Any, Any] | None = None,
    extra_ratio: float = 0.5,
    allow_missing_classes: bool = False,
) -> Dataset:
    """A data set from a name ("digits", "cifar10"), "hub:owner/name", a folder, an `.npz` or a pair (x, y).

    Args:
        data: which; a pair of pairs ((x, y), (x, y)) is training and test data; a `Dataset` passes through.
        data_dir: where named sets are looked for before the hub; `BIVALLATE_DATA` by default.
        seed: of validation split, imbalance and mixing. The test data do not depend on it.
        validation: fraction below 1, or number of rows, held out in the classes' proportions; 0: none.
        size: every image is fitted to this side or (H, W). channels: 1 or 3.
        on_bad: "refuse", "convert" or "skip" rows that cannot be used as they are.
        image_column, label_column: of Parquet files whose columns are not found by themselves.
        test_fraction: cut from the training data where a set comes without test data.
        imbalance: "step:0.2" or "longtail:0.01", applied to what is left for training.
        extra: an `.npz` file or pair (x, y) mixed into the training data so that it is `extra_ratio` of it.
        allow_missing_classes: train even if a class has no training row.

    Raises:
        UserError: for anything the user can mend.
    """
    if isinstance(data, Dataset):
        return data
    side = (size, size) if isinstance(size, int) else size
    reading = Reading(side, channels, on_bad, image_column=image_column, label_column=label_column)
    source = _find(data, data_dir, reading)
    splits = dict(source.splits)
    train = splits.get("train") or splits["test"].subset(slice(0, 0))
    if "test" not in splits:
        train, splits["test"] = select.holdout(train, test_fraction, FIXED, "test")
    held: Split | None = splits.get("validation") if validation else None
    everything = train if len(train) else splits["test"]
    mean_std = (
        _published(source, everything.shape) or source.moments or moments(everything.store, everything.index)
    )
    if validation and held is None and len(train):
        train, held = select.holdout(train, validation, seed)
    if imbalance is not None:
        train = select.imbalance(train, imbalance, len(source.classes), seed)
    if extra is not None:
        train = select.mix(train, _extra(extra, train, len(source.classes)), extra_ratio, seed)
    if len(train) and not allow_missing_classes:
        _check_classes(train, source.classes)
    shape = splits["test"].shape
    notes = _notes(source, splits) if source.known else ()
    return Dataset(
        source.name,
        source.classes,
        shape,
        train,
        held,
        splits["test"],
        *mean_std,
        _augmentation(source, shape),
        notes,
    )


def _find(data: Any, data_dir: str | Path | None, reading: Reading) -> Source:
    if isinstance(data, tuple | list):
        return _pairs(data)
    if not isinstance(data, str | Path):
        raise UserError(f"data must be a name, a path or a pair (x, y), got {type(data).__name__}")
    name = str(data)
    if name.startswith("hub:"):
        return _files(hub.download(name[4:]), name[4:].split("/")[-1], reading, None)
    if name == "digits":
        return _digits()
    path = _local(name, data_dir)
    if path is None:
        known = registry.find(name)
        path = registry.local(known, data_dir)
        if path is None:
            assert known.hub is not None
            return _files(hub.download(known.hub, known.under), known.name, reading, known)
    if path.is_file():
        return _single(path, reading)
    return _files(path, path.name, reading, registry.known_folder(path.name))


def _local(name: str, data_dir: str | Path | None) -> Path | None:
    """A folder or file that the name means: below the data folder by its own name, else as a path."""
    below = registry.data_folder(data_dir)
    if below is not None and "/" not in name and (below / name).is_dir():
        return below / name
    path = Path(name).expanduser()
    try:
        registry.find(name)
    except UserError:
        if path.exists():
            return path
        if "/" in name or path.suffix:
            raise UserError(f"there is no file or folder {name}") from None
        others = [child.name for child in below.iterdir() if child.is_dir()] if below else []
        raise unknown("data set", name, [*registry.names(), *others, "a folder", "hub:OWNER/NAME"]) from None
    return None


def _digits() -> Source:
    everything, classes = tensors.digits()
    train, test = select.holdout(everything, 0.2, FIXED, "test")
    return Source("digits", {"train": train, "test": test}, classes, None, registry.KNOWN["digits"])


def _pairs(data: Any) -> Source:
    if len(data) != 2:
        raise UserError(f"data as tensors is a pair (x, y) or ((x, y), (x, y)), got {len(data)} things")
    nested = isinstance(data[0], tuple | list)
    parts = {"train": data[0], "test": data[1]} if nested else {"train": data}
    splits = {name: tensors.from_tensors(*part, what=f"{name} images") for name, part in parts.items()}
    classes = int(splits["train"].labels.max()) + 1
    for name, split in splits.items():
        tensors.check_labels(split.labels, classes, name)
        if split.shape != splits["train"].shape:
            raise UserError(f"{name} images are {split.shape}, training images {splits['train'].shape}")
    return Source("tensors", splits, [str(k) for k in range(classes)])


def _single(path: Path, reading: Reading) -> Source:
    if path.suffix == ".npz":
        split = tensors.read_npz(path)
        return Source(path.stem, {"train": split}, [str(k) for k in range(int(split.labels.max()) + 1)])
    if path.suffix == ".parquet":
        return _decoded(path.stem, {"train": [path]}, reading, None)
    raise UserError(f"{path} is neither a folder nor an .npz or .parquet file")


def _files(folder: Path, name: str, reading: Reading, known: registry.Known | None) -> Source:
    """A folder of Parquet files, else of images, read through the cache."""
    if known is not None:
        size = reading.size or known.size
        reading = replace(reading, grey=known.grey, size=size)
    found: dict[str, Any] = dict(parquet.find_splits(folder)) or dict(folders.find_folders(folder))
    if not found:
        raise UserError(
            f"{folder} holds no data: expected train*.parquet and test*.parquet, or class/image.png"
        )
    if known is not None and "test" in found and known.test_split != "test" and known.test_split in found:
        del found["test"]  # published without labels
    if "test" not in found and "validation" in found:
        found["test"] = found.pop("validation")
    return _decoded(name, found, reading, known)


def _decoded(name: str, found: dict[str, Any], reading: Reading, known: registry.Known | None) -> Source:
    classes: list[str] | None = None
    splits: dict[str, Split] = {}
    statistics = None
    for split in sorted(found, key=["train", "validation", "test"].index):
        decoded = _through_cache(name, split, found[split], reading, classes)
        classes = decoded.classes or classes
        labels, rows = (torch.from_numpy(a) for a in (decoded.labels, decoded.rows))
        splits[split] = Split(decoded.images, labels[rows], rows, decoded.source)
        statistics = statistics or (decoded.mean, decoded.std)
        first = next(iter(splits.values()))
        if splits[split].shape != first.shape:
            raise UserError(
                f"{name}: {split} images are {splits[split].shape}, the others {first.shape}: give a size"
            )
    if not classes:
        classes = [str(k) for k in range(1 + max(int(s.labels.max()) for s in splits.values()))]
    return Source(name, splits, classes, statistics, known)


def _through_cache(
    name: str, split: str, found: Any, reading: Reading, classes: list[str] | None
) -> cache.Decoded:
    if isinstance(found, Path):
        encoded, files = folders.read_folder(found, classes)
        key = cache.files_key(files, reading, classes)
    else:
        encoded, files = None, found
        key = cache.files_key(files, reading, classes)

    def build(work: Path) -> None:
        images: Encoded = encoded or parquet.read_parquet(files, reading, classes)
        decode(images, work, reading)

    return cache.open_decoded(cache.cached(f"{name}-{split}", key, build))


def _extra(extra: Any, train: Split, classes: int) -> Split:
    split = (
        tensors.read_npz(Path(extra))
        if isinstance(extra, str | Path)
        else tensors.from_tensors(*extra, what="extra")
    )
    tensors.check_labels(split.labels, classes, "extra data")
    return split


def _check_classes(train: Split, classes: list[str]) -> None:
    empty = [k for k, count in enumerate(train.counts(len(classes))) if count == 0]
    if empty:
        listed = ", ".join(f"{classes[k]!r} (label {k})" for k in empty[:5])
        raise UserError(
            f"{len(empty)} of {len(classes)} classes have no row in the training data: {listed}; add rows, "
            "or load with allow_missing_classes=True"
        )


def _augmentation(source: Source, shape: tuple[int, int, int]) -> Augment:
    """The papers' choice for known sets; else crops for colour images, never flips (they may be signs)."""
    if source.known is not None:
        return source.known.augment
    return Augment(pad=max(1, shape[1] // 8)) if shape[0] == 3 else Augment()


def _published(
    source: Source, shape: tuple[int, int, int]
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """The published mean and standard deviation, if the images have the published shape."""
    known = source.known
    if known is None or known.mean is None or known.std is None or shape != known.shape:
        return None
    return known.mean, known.std


def _notes(source: Source, splits: dict[str, Split]) -> tuple[str, ...]:
    known = source.known
    assert known is not None
    wanted = {"train": known.train, "test": known.test}
    return tuple(
        f"{len(splits[name]) if name in splits else 0:,} of the {count:,} published {name} images were found"
        for name, count in wanted.items()
        if name not in splits or len(splits[name]) < count
    )
