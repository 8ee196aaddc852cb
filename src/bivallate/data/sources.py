"""Find a data set by name, path, hub address or tensors, and read it into splits."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from bivallate.data import arrays, hub, registry, select, tensors
from bivallate.data.dataset import Split
from bivallate.data.decode import Reading
from bivallate.data.layout import readable
from bivallate.data.splits import Source, Streaming, read_file, read_folder
from bivallate.errors import UserError, listed, nearest, unknown

__all__ = ["FIXED", "distinct_name", "find", "lasting_name", "local_path"]

FIXED = 0  # seed of test splits, so that test data do not depend on the run's seed


def find(data: Any, data_dir: str | Path | None, reading: Reading, stream: Streaming) -> Source:
    """Read the data that the user named, before rows are held out and unnamed classes are numbered."""
    if isinstance(data, tuple | list):
        return _pairs(data, reading)
    if not isinstance(data, str | Path):
        raise UserError(f"data must be a name, a path or a pair (x, y), got {type(data).__name__}")
    name = str(data)
    if name.startswith("hub:"):
        owner, repo, under = (*name[4:].split("/", 2), "", "")[:3]
        return read_folder(hub.download(f"{owner}/{repo}", under), repo, reading, None, stream)
    named = registry.by_name(name)
    if named is not None and named.built_in:
        return _built_in(named, reading)
    path = local_path(name, data_dir)
    if path is None:
        known = registry.by_name_or_raise(name)
        path = registry.folder_of(known, data_dir)
        if path is None:
            return read_folder(_downloaded(known), known.name, reading, known, stream)
    if not path.is_dir():
        return read_file(path, reading, stream)
    return read_folder(path, path.name, reading, registry.by_folder(path.name), stream)


def _downloaded(known: registry.KnownDataset) -> Path:
    """Download a known set from the hub and return its folder. Raises UserError for one not on the hub."""
    if known.hub is None:
        raise UserError(
            f"{known.name} is not there: it is looked for as the folder {listed(known.folders)} in "
            "--data-dir or BIVALLATE_DATA"
        )
    return hub.download(known.hub, known.under, _published(known))


def _published(known: registry.KnownDataset) -> frozenset[str]:
    """The splits to download: test data without labels are left out."""
    return hub.SPLIT_NAMES if known.test_split == "test" else hub.SPLIT_NAMES - {"test"}


def distinct_name(name: str, data_dir: str | Path | None = None) -> str:
    """A word that names the data set in file names.

    For a known set it is the set's name. For other data it is the last part of the path with a hash of the
    path, because many folders have equal names.

    Example:
        >>> distinct_name("Digits"), distinct_name("hub:alice/faces")
        ('digits', 'faces_144d48c8')
    """
    if (known := registry.by_name(name)) is not None:
        return known.name
    path = None if name.startswith("hub:") else local_path(name, data_dir)
    place = name if path is None else str(path.resolve())
    mark = hashlib.blake2b(place.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
    return f"{readable(Path(name).name)}_{mark}"


def lasting_name(name: str, data_dir: str | Path | None = None) -> str:
    """The name by which data are found again from any working folder.

    A known set gets its own spelling, and a path becomes absolute; names below the data folder and hub
    addresses stay unchanged.

    Raises:
        UserError: there are no such data, or their path is not UTF-8.
    """
    if name.startswith("hub:"):
        return name
    if (known := registry.by_name(name)) is not None:
        return known.name
    path = local_path(name, data_dir)
    below = registry.data_folder(data_dir)
    if path is None or (below is not None and path == below / name):
        return name
    if readable(path) != str(path):
        raise UserError(f"the path {readable(path)} is not UTF-8, so no file can name it: rename the folder")
    return os.path.abspath(path)


def local_path(name: str, data_dir: str | Path | None) -> Path | None:
    """The folder or file of a name; None for a known set that has no folder of exactly this name.

    A name is looked for below the data folder first, then as a path. Raises UserError for an unknown name.
    """
    below = registry.data_folder(data_dir)
    if below is not None and "/" not in name and (below / name).is_dir():
        return below / name
    if registry.by_name(name) is not None:
        return None
    path = Path(name).expanduser()
    if path.exists():
        return path
    if "/" in name or path.suffix:
        there = [child.name for child in path.parent.iterdir()] if path.parent.is_dir() else []
        close = nearest(path.name, there)
        hint = f": did you mean {path.parent / close}?" if close else ""
        raise UserError(f"there is no file or folder {readable(name)}{hint}")
    others = [child.name for child in below.iterdir() if child.is_dir()] if below else []
    others = [child for child in others if registry.by_name(child) is None]  # else it is one of the names
    raise unknown("data set", name, {*registry.names(), *others, "a folder", "hub:OWNER/NAME"})


def _built_in(known: registry.KnownDataset, reading: Reading) -> Source:
    everything, classes = getattr(tensors, known.built_in)()
    everything = arrays.fitted(everything, reading, known.name)
    train, test = select.holdout(everything, 0.2, FIXED, "test")
    return Source(known.name, {"train": train, "test": test}, classes, None, known)


def _pairs(data: Any, reading: Reading) -> Source:
    if len(data) != 2:
        raise UserError(f"data as tensors is a pair (x, y) or ((x, y), (x, y)), got {len(data)} things")
    nested = isinstance(data[0], tuple | list) and len(data[0]) == 2 and isinstance(data[1], tuple | list)
    parts = {"train": data[0], "test": data[1]} if nested else {"train": data}
    splits: dict[str, Split] = {}
    classes: list[str] = []
    notes: tuple[str, ...] = ()
    for name, part in parts.items():
        what = f"{name} images"
        x, y = arrays.split_pair(part, what)
        splits[name], found, said = arrays.read_arrays(x, y, reading, what, classes)
        notes += said
        if name == "test" and found and not classes:
            raise UserError("the test labels are text and the training labels integers: use one kind")
        classes = found
        tensors.check_labels(splits[name].labels, int(splits["train"].labels.max()) + 1, name)
        if splits[name].shape != splits["train"].shape:
            raise UserError(
                f"{name} images are {splits[name].shape}, training images {splits['train'].shape}"
            )
    return Source("tensors", splits, classes, notes=notes)
