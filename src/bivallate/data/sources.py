"""Where a data set comes from: a name, a path, a hub address or tensors, read into splits."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bivallate.data import arrays, cache, folders, hub, parquet, registry, select, tensors
from bivallate.data.dataset import Split
from bivallate.data.decode import Encoded, Reading, decode
from bivallate.data.stream import Stream
from bivallate.errors import UserError, unknown

__all__ = ["FIXED", "Source", "Streaming", "distinct_name", "find"]

MOST_CLASSES = 1_000_000
FIXED = 0  # the seed of test splits: the same test data whatever the seed of the run


@dataclass(frozen=True)
class Streaming:
    """Whether images are to be streamed (None: as the set's size asks for), and by how many processes."""

    wanted: bool | None = None
    workers: int | None = None

    def chosen(self, known: registry.Known | None) -> bool:
        """Whether to stream this set."""
        return self.wanted if self.wanted is not None else known is not None and known.stream


@dataclass(frozen=True)
class Source:
    """What was found before rows are chosen from it; no classes where the data do not name them."""

    name: str
    splits: dict[str, Split]
    classes: list[str]
    moments: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    known: registry.Known | None = None

    def named(self, allow_missing: bool) -> Source:
        """With classes called by their numbers where the data do not name them.

        Raises:
            UserError: for a label so large that most classes were empty; their names alone could fill memory.
        """
        if self.classes:
            return self
        largest = max(int(split.labels.max()) for split in self.splits.values())
        rows = sum(len(split) for split in self.splits.values())
        tests_only = "train" not in self.splits  # an evaluation needs no row of every class
        most = MOST_CLASSES if allow_missing or tests_only else min(rows, MOST_CLASSES)
        if largest >= most:
            way_out = ", or load with allow_missing_classes=True (--set data.allow_missing_classes=true)"
            raise UserError(
                f"{self.name}: the largest label is {largest}, of {rows} rows: that would be {largest + 1} "
                f"classes where at most {most} are possible; number the labels 0, 1, ... without gaps"
                f"{way_out if largest < MOST_CLASSES else ''}"
            )
        return replace(self, classes=[str(k) for k in range(largest + 1)])


def find(data: Any, data_dir: str | Path | None, reading: Reading, stream: Streaming) -> Source:
    """Reads what the user named; nothing is held out yet, and classes without a name are not numbered."""
    if isinstance(data, tuple | list):
        return _pairs(data, reading)
    if not isinstance(data, str | Path):
        raise UserError(f"data must be a name, a path or a pair (x, y), got {type(data).__name__}")
    name = str(data)
    if name.startswith("hub:"):
        owner, repo, under = (*name[4:].split("/", 2), "", "")[:3]
        return _files(hub.download(f"{owner}/{repo}", under), repo, reading, None, stream)
    if name == "digits":
        return _digits(reading)
    path = local_path(name, data_dir)
    if path is None:
        known = registry.find(name)
        path = registry.local(known, data_dir)
        if path is None:
            assert known.hub is not None
            return _files(
                hub.download(known.hub, known.under, _published(known)), known.name, reading, known, stream
            )
    if path.is_file():
        return _single(path, reading, stream)
    return _files(path, path.name, reading, registry.known_folder(path.name), stream)


def _published(known: registry.Known) -> frozenset[str]:
    """The splits worth downloading: test data without labels are not."""
    return hub.SPLIT_NAMES if known.test_split == "test" else hub.SPLIT_NAMES - {"test"}


def distinct_name(name: str, data_dir: str | Path | None = None) -> str:
    """A word for the set, for names of files: of a known set its own name, of any other the last part with a
    hash of where it lies, for many folders are called `photos`.

    Example:
        >>> distinct_name("digits"), distinct_name("hub:alice/faces")
        ('digits', 'faces_144d48c8')
    """
    with suppress(UserError):
        registry.find(name)
        return name
    path = None if name.startswith("hub:") else local_path(name, data_dir)
    place = name if path is None else str(path.resolve())
    return f"{Path(name).name}_{hashlib.blake2b(place.encode(), digest_size=4).hexdigest()}"


def local_path(name: str, data_dir: str | Path | None) -> Path | None:
    """A folder or file that the name means: below the data folder by its own name, else as a path; None for a
    known set that is not there."""
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
        raise unknown("data set", name, {*registry.names(), *others, "a folder", "hub:OWNER/NAME"}) from None
    return None


def _digits(reading: Reading) -> Source:
    everything, classes = tensors.digits()
    everything = arrays.fitted(everything, reading, "digits")
    train, test = select.holdout(everything, 0.2, FIXED, "test")
    return Source("digits", {"train": train, "test": test}, classes, None, registry.KNOWN["digits"])


def _pairs(data: Any, reading: Reading) -> Source:
    if len(data) != 2:
        raise UserError(f"data as tensors is a pair (x, y) or ((x, y), (x, y)), got {len(data)} things")
    nested = isinstance(data[0], tuple | list) and len(data[0]) == 2 and isinstance(data[1], tuple | list)
    parts = {"train": data[0], "test": data[1]} if nested else {"train": data}
    splits: dict[str, Split] = {}
    classes: list[str] = []
    for name, part in parts.items():
        what = f"{name} images"
        x, y = arrays.split_pair(part, what)
        splits[name], found = arrays.read_arrays(x, y, reading, what, classes)
        if name == "test" and found and not classes:
            raise UserError("the test labels are text and the training labels integers: use one kind")
        classes = found
        tensors.check_labels(splits[name].labels, int(splits["train"].labels.max()) + 1, name)
        if splits[name].shape != splits["train"].shape:
            raise UserError(
                f"{name} images are {splits[name].shape}, training images {splits['train'].shape}"
            )
    return Source("tensors", splits, classes)


def _single(path: Path, reading: Reading, stream: Streaming) -> Source:
    if path.suffix == ".npz":
        split, classes = arrays.read_arrays(*tensors.read_npz(path), reading, str(path))
        return Source(path.stem, {"train": split}, classes)
    if path.suffix == ".parquet":
        return _decoded(path.stem, {"train": [path]}, reading, None, stream)
    raise UserError(f"{path} is neither a folder nor an .npz or .parquet file")


def _files(
    folder: Path, name: str, reading: Reading, known: registry.Known | None, stream: Streaming
) -> Source:
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
    return _decoded(name, found, reading, known, stream)


def _decoded(
    name: str, found: dict[str, Any], reading: Reading, known: registry.Known | None, stream: Streaming
) -> Source:
    classes: list[str] | None = None
    splits: dict[str, Split] = {}
    statistics = None
    for split in sorted(found, key=["train", "validation", "test"].index):
        if stream.chosen(known):
            splits[split], names = _streamed(found[split], reading, classes, stream)
            classes = names or classes
        else:
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
    return Source(name, splits, classes or [], statistics, known)


def _streamed(
    found: Any, reading: Reading, classes: list[str] | None, stream: Streaming
) -> tuple[Split, list[str]]:
    if isinstance(found, Path):
        encoded, files = folders.read_folder(found, classes)
    else:
        encoded, files = parquet.read_parquet(found, reading, classes), found
    if (encoded.labels < 0).any():
        row = int((encoded.labels < 0).argmax())
        raise UserError(
            f"{encoded.title}: {encoded.blocks.where(row)} has no label; mend it, or load without streaming"
        )
    store = Stream(encoded, reading, stream.workers)
    labels = torch.from_numpy(encoded.labels)
    return Split(store, labels, torch.arange(len(labels)), cache.files_key(files, reading)), encoded.classes


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
