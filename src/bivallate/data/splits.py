"""Read files of images into splits, through the cache or as streams."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import torch

from bivallate.data import arrays, cache, folders, registry, shards, tensors
from bivallate.data.dataset import Split
from bivallate.data.decode import Encoded, Reading, decode
from bivallate.data.labelled import TablePart, find_tables
from bivallate.data.layout import Folder, SkippedFiles, readable, scan
from bivallate.data.parquet import ParquetPart
from bivallate.data.shards import find_shards
from bivallate.data.stream import Stream
from bivallate.data.unpacking import is_archive, unpacked
from bivallate.errors import UserError
from bivallate.untrusted_files import kind_hint

__all__ = ["Source", "Streaming", "read_file", "read_folder"]

MOST_CLASSES = 1_000_000
ARCHIVES = {".zip", ".tar", ".gz", ".tgz", ".rar", ".7z", ".xz", ".bz2"}


class Part(Protocol):
    """The rows of one split in their files."""

    @property
    def files(self) -> list[Path]: ...

    def key(self) -> tuple[str, ...]:
        """What determines the labels besides the files; a part of the cache's key."""
        ...

    def read(self, reading: Reading, classes: list[str] | None) -> Encoded:
        """The encoded images; class names must be among the given ones."""
        ...


@dataclass(frozen=True)
class Streaming:
    """Whether images are streamed (None: only those of large known sets), and by how many processes."""

    wanted: bool | None = None
    workers: int | None = None

    def chosen(self, known: registry.KnownDataset | None) -> bool:
        """Whether to stream this set."""
        return self.wanted if self.wanted is not None else known is not None and known.stream


@dataclass(frozen=True)
class Source:
    """A data set before rows are chosen from it.

    Attributes:
        splits: by name: "train", "validation", "test".
        classes: names, empty if the data have none.
        moments: measured mean and standard deviation per channel, or None.
        known: the published set, or None.
        notes: on what is left out, and on how names were read.
    """

    name: str
    splits: dict[str, Split]
    classes: list[str]
    moments: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    known: registry.KnownDataset | None = None
    notes: tuple[str, ...] = ()

    def named(self, allow_missing: bool) -> Source:
        """Name the classes by their numbers if the data have no names.

        Raises:
            UserError: a label so large that most classes would be empty, and their names could fill memory.
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


def read_file(path: Path, reading: Reading, stream: Streaming) -> Source:
    if path.suffix == ".npz":
        split, classes, notes = arrays.read_arrays(*tensors.read_npz(path), reading, str(path))
        return Source(path.stem, {"train": split}, classes, notes=notes)
    if shards.is_parquet(path):
        return _decoded(path.stem, {"train": ParquetPart([path])}, reading, None, stream)
    if is_archive(path):
        folder, left = unpacked(path)
        try:
            source = read_folder(folder, folder.name, reading, None, stream)
        except UserError as error:
            raise UserError(f"{path}, unpacked into the cache: {error}") from error
        return replace(source, notes=(*left, *source.notes))
    hint = ": unpack it and name the folder" if path.suffix.lower() in ARCHIVES else ""
    raise UserError(
        f"{path} is neither a folder nor an .npz, .parquet, .zip or .tar file{hint or kind_hint(path)}"
    )


def read_folder(
    folder: Path, name: str, reading: Reading, known: registry.KnownDataset | None, stream: Streaming
) -> Source:
    """A folder of Parquet files, else of images, read through the cache."""
    if known is not None:
        label = reading.label_column or known.label_column
        reading = replace(reading, grey=known.grey, size=reading.size or known.size, label_column=label)
    left = SkippedFiles(folder)
    root = scan(folder, left)
    found = dict(_parts(root, left, reading))
    if not found:
        raise _nothing(root)
    if known is not None and "test" in found and known.test_split != "test" and known.test_split in found:
        del found["test"]  # published without labels
    if _hidden(found.get("test"), reading):
        del found["test"]
        instead = (
            "the validation data serve" if "validation" in found else "a part of the training data serves"
        )
        left.says(f"the labels of the test data are hidden: {instead} as test data")
    if not found:
        raise UserError(
            f"{readable(folder)}: the labels of the test data are hidden, and there are no other data"
        )
    if "test" not in found and "validation" in found:
        found["test"] = found.pop("validation")
        if known is None and not any("serve as test data" in note for note in left.said):
            left.says("there are no test data: the validation data serve as test data")
    source = _decoded(name, found, reading, known, stream)
    return replace(source, notes=(*left.notes, *source.notes))


def _parts(root: Folder, left: SkippedFiles, reading: Reading) -> Mapping[str, Part]:
    found = find_shards(root, left)
    if found:
        left.files([path for path in root.walk() if not shards.is_parquet(path)])
        return {split: ParquetPart(paths) for split, paths in found.items()}
    asked = reading.label_column is not None
    if (asked or not folders.has_classes(root)) and (tables := find_tables(root, left, reading)):
        return tables
    return folders.find_folders(root, left)


def _hidden(part: Part | None, reading: Reading) -> bool:
    if isinstance(part, TablePart):
        return part.hidden()
    return isinstance(part, ParquetPart) and part.hidden(reading)


def _nothing(root: Folder) -> UserError:
    """The error for a folder without data; it says what the folder holds."""
    where, counts = readable(root.path), Counter(path.suffix.lower() for path in root.walk())
    if root.images:
        return UserError(
            f"{where} holds {len(root.images):,} images but no class folders, so nothing says their labels: "
            f"put each class into a folder of its own, cat/1.jpg, or {folders.TABLE}"
        )
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:5]
    held = ", ".join(f"{n:,} {suffix or 'without suffix'}" for suffix, n in most)
    hint = "; unpack the archive, or name it itself" if ARCHIVES & set(counts) else ""
    hint = hint or ("; write it as Parquet, by Dataset.to_parquet" if ".arrow" in counts else "")
    return UserError(
        f"{where} holds no data: expected train*.parquet and test*.parquet, or class/image.png; it holds "
        f"{held or 'no files'}{hint}"
    )


def _decoded(
    name: str,
    found: dict[str, Part],
    reading: Reading,
    known: registry.KnownDataset | None,
    stream: Streaming,
) -> Source:
    classes: list[str] | None = None
    splits: dict[str, Split] = {}
    statistics = None
    notes: tuple[str, ...] = ()
    _check_kinds(name, found, reading)
    for split in sorted(found, key=["train", "validation", "test"].index):
        if stream.chosen(known):
            splits[split], names, said = _streamed(found[split], reading, classes, stream)
            notes += said
            classes = names or classes
        else:
            decoded = _through_cache(name, split, found[split], reading, classes)
            classes = decoded.classes or classes
            labels, rows = (torch.from_numpy(a) for a in (decoded.labels, decoded.rows))
            splits[split] = Split(decoded.images, labels[rows], rows, decoded.source)
            statistics = statistics or (decoded.mean, decoded.std)
            notes += decoded.notes
        first = next(iter(splits.values()))
        if splits[split].shape != first.shape:
            raise UserError(
                f"{name}: {split} images are {splits[split].shape}, the others {first.shape}: give a size"
            )
        if classes:
            tensors.check_labels(splits[split].labels, len(classes), f"{name}, {split} data")
    return Source(name, splits, classes or [], statistics, known, notes)


def _check_kinds(name: str, found: Mapping[str, Part], reading: Reading) -> None:
    """Raise UserError if one split has text labels and another numbers without names."""
    kinds = {split: p.says(reading) for split, p in found.items() if isinstance(p, ParquetPart)}
    if {"text", "numbers"} <= set(kinds.values()):
        said = ", ".join(f"{split}: {kind}" for split, kind in kinds.items())
        raise UserError(
            f"{name}: labels are text in one split and bare numbers in another ({said}), so nothing says "
            "which number is which name: use one kind"
        )


def _streamed(
    part: Part, reading: Reading, classes: list[str] | None, stream: Streaming
) -> tuple[Split, list[str], tuple[str, ...]]:
    encoded = part.read(reading, classes)
    if (encoded.labels < 0).any():
        row = int((encoded.labels < 0).argmax())
        raise UserError(
            f"{encoded.title}: {encoded.blocks.where(row)} has no label; mend it, or load without streaming"
        )
    store = Stream(encoded, reading, stream.workers)
    labels = torch.from_numpy(encoded.labels)
    former = partial(cache.files_key, part.files, _FormerReading(reading), version=1)
    source = cache.content_key(part.files, reading.size, reading.channels, reading.on_bad, reading.grey)
    return Split(store, labels, torch.arange(len(labels)), source, former), encoded.classes, store.notes


@dataclass(frozen=True)
class _FormerReading:
    """A `Reading` whose repr is the one that earlier versions put into fingerprints of streamed sets."""

    reading: Reading

    def __repr__(self) -> str:
        names = ("size", "channels", "on_bad", "grey", "image_column", "label_column")
        return f"Reading({', '.join(f'{name}={getattr(self.reading, name)!r}' for name in names)})"


def _through_cache(
    name: str, split: str, part: Part, reading: Reading, classes: list[str] | None
) -> cache.Decoded:
    key = cache.files_key(part.files, reading, classes, part.key())

    def build(work: Path) -> None:
        decode(part.read(reading, classes), work, reading)

    return cache.open_decoded(cache.cached(f"{name}-{split}", key, build))
