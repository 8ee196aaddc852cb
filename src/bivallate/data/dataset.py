"""Images with labels: `Split` (rows of a store) and `Dataset` (a train, validation and test split)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from bivallate.data.augment import Augment
from bivallate.errors import UserError
from bivallate.quoting import visible

__all__ = ["Dataset", "Split", "Store", "as_float"]


class Store(Protocol):
    """Images that can be read by row: an array, a memory-mapped file, or several joined."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> Any: ...

    def __getitem__(self, rows: Any, /) -> np.ndarray: ...


def as_float(images: Tensor) -> Tensor:
    """Convert uint8 in 0..255 to float32 in [0, 1]; other types to float32 unchanged."""
    if images.dtype != torch.uint8:
        return images.float()
    if images.device.type == "cpu":
        # NumPy, because waking torch's threads takes longer than the division, most of all on a busy machine
        return torch.from_numpy(np.divide(images.numpy(), np.float32(255)))
    return images.float().div_(255.0)


def digest(*parts: bytes | str | np.ndarray) -> str:
    """A short hash of the parts, in order; arrays must be contiguous and enter with their bytes."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        # file names may hold bytes that are not UTF-8, which Python keeps as surrogates
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        size = data.nbytes if isinstance(data, np.ndarray) else len(data)
        state.update(size.to_bytes(8, "little"))
        if size:
            state.update(data.data if isinstance(data, np.ndarray) else data)
    return state.hexdigest()


@dataclass(frozen=True, eq=False)
class Split:
    """Some rows of a store of images, with their labels.

    Attributes:
        store: (M, C, H, W) uint8 in 0..255 or float32 in [0, 1]; read only, and may lie on disk.
        labels: (N,) int64, of the chosen rows.
        index: (N,) int64, the chosen rows of the store, which are rows of the original data.
        source: fingerprint of the store.
        former: computes the fingerprint of the store as earlier versions did, where it differs; else None.
        classes: names, in the order of the labels, if the data have names; no part of the fingerprint.
    """

    store: Store
    labels: Tensor
    index: Tensor
    source: str = ""
    former: Callable[[], str] | None = None
    classes: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"<Split of {len(self):,} images, {' x '.join(map(str, self.shape))}>"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, c, h, w = self.store.shape
        return c, h, w

    @cached_property
    def images(self) -> np.ndarray:
        """(N, C, H, W) in the store's type: the store itself if it is an array and all rows are chosen."""
        whole = len(self) == self.store.shape[0] and bool((self.index == torch.arange(len(self))).all())
        if whole and isinstance(self.store, np.ndarray):
            return self.store
        return self.store[self.index.numpy()]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the source, the chosen rows and their labels."""
        return digest(self.source, self.index.numpy().tobytes(), self.labels.numpy().tobytes())

    def as_former(self) -> Split:
        """The split with the fingerprint that earlier versions computed."""
        return self if self.former is None else replace(self, source=self.former(), former=None)

    def raw(self, rows: Tensor) -> Tensor:
        """A copy of the given rows, (B, C, H, W) in the store's type."""
        return torch.from_numpy(self.store[self.index[rows].numpy()])

    def tensors(self, rows: Tensor | Sequence[int] | slice | None = None) -> tuple[Tensor, Tensor]:
        """(x, y): (B, C, H, W) float32 in [0, 1] and (B,) int64, of the given rows or of all."""
        chosen = self._rows(rows)
        return as_float(self.raw(chosen)), self.labels[chosen]

    def subset(self, rows: Tensor | Sequence[int] | slice) -> Split:
        """A split of the given rows of this one, which shares the store."""
        chosen = self._rows(rows)
        return replace(self, labels=self.labels[chosen], index=self.index[chosen])

    def counts(self, classes: int) -> list[int]:
        """The number of rows of each class."""
        return torch.bincount(self.labels, minlength=classes).tolist()

    def _rows(self, rows: Tensor | Sequence[int] | slice | None) -> Tensor:
        everything = torch.arange(len(self))
        if rows is None:
            return everything
        if isinstance(rows, slice):
            return everything[rows]
        chosen = torch.as_tensor(rows)
        return everything[chosen] if chosen.dtype == torch.bool else chosen.long()


@dataclass(frozen=True, eq=False)
class Dataset:
    """A train, validation and test split of one kind of image.

    Attributes:
        name: as the user gave it.
        classes: names, in the order of the labels.
        shape: (C, H, W).
        train: empty if only test data were found.
        validation: held-out rows, or None.
        mean, std: per channel in pixel units; published values for known sets, else of the training data.
        augment: the augmentation that the papers use for this set.
        notes: for the user, for example that the set is not complete.
        named: whether the data name their classes; if not, `classes` are the numbers of the labels.
        loaded: the arguments of `load` by which they can be loaded again; None if they were given in memory.
    """

    name: str
    classes: list[str]
    shape: tuple[int, int, int]
    train: Split
    validation: Split | None
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: Augment = Augment()  # noqa: RUF009  (a frozen value)
    notes: tuple[str, ...] = ()
    named: bool = True
    loaded: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        names = tuple(self.classes) if self.named else None
        for part in ("train", "validation", "test"):
            split = getattr(self, part)
            if isinstance(split, Split) and split.classes != names:
                object.__setattr__(self, part, replace(split, classes=names))

    def __repr__(self) -> str:
        held = f", {len(self.validation):,} held out" if self.validation is not None else ""
        rows = f"{len(self.train):,} images to train on{held}, {len(self.test):,} to test on"
        size = " x ".join(map(str, self.shape))
        return f"<Dataset {visible(self.name)}: {len(self.classes)} classes, {size}, {rows}>"

    @property
    def split_fingerprints(self) -> dict[str, str]:
        """The fingerprint of each split that there is, by its name."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split.fingerprint for name, split in splits.items() if split is not None}

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the three splits and the class names."""
        of = self.split_fingerprints
        return digest(of["train"], of.get("validation", ""), of["test"], *self.classes)

    def matches(self, fingerprint: str) -> bool:
        """Whether a fingerprint is that of these data, as computed now or by earlier versions."""
        if fingerprint == self.fingerprint:
            return True
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        if all(split is None or split.former is None for split in splits.values()):
            return False
        earlier = {name: split.as_former() if split is not None else None for name, split in splits.items()}
        return fingerprint == replace(self, **earlier).fingerprint  # pyright: ignore[reportArgumentType]

    def summary(self) -> dict[str, Any]:
        """Plain values for a listing: rows per split and class, statistics, augmentation."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        classes = len(self.classes)
        counts = {name: split.counts(classes) for name, split in splits.items() if split is not None}
        return {
            "name": self.name,
            "shape": list(self.shape),
            "classes": self.classes,
            "rows": {name: sum(values) for name, values in counts.items()},
            "counts": counts,
            "mean": list(self.mean),
            "std": list(self.std),
            "augment": str(self.augment),
            "notes": list(self.notes),
            "fingerprint": self.fingerprint,
        }

    def but(self, **parts: Any) -> Dataset:
        """Return a copy with some attributes replaced."""
        if "name" in parts:
            parts = {"loaded": None, **parts}
        elif "augment" in parts and self.loaded is not None:
            parts = {"loaded": {**self.loaded, "augment": str(parts["augment"])}, **parts}
        return replace(self, **parts)


def moments(
    images: np.ndarray | Store, rows: Tensor | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel in pixel units [0, 1], over the given rows or all."""
    chosen = np.arange(images.shape[0]) if rows is None else rows.numpy()
    channels = images.shape[1]
    first, second, count = np.zeros(channels), np.zeros(channels), 0
    for start in range(0, len(chosen), 2048):
        part = np.asarray(images[chosen[start : start + 2048]])
        scale = 255.0 if part.dtype == np.uint8 else 1.0
        for c in range(channels):
            if part.dtype == np.uint8:
                histogram = np.bincount(part[:, c].reshape(-1), minlength=256)
                levels = np.arange(256) / scale
                first[c] += histogram @ levels
                second[c] += histogram @ levels**2
            else:
                first[c] += part[:, c].sum(dtype=np.float64)
                second[c] += np.square(part[:, c], dtype=np.float64).sum()
        count += part.shape[0] * part.shape[2] * part.shape[3]
    if count == 0:
        raise UserError("no images to compute the mean and standard deviation of")
    mean = first / count
    std = np.sqrt(np.maximum(second / count - mean**2, 0.0))
    std = np.where(std > 1e-6, std, 1.0)  # normalisation must not divide a constant channel by 0
    return tuple(mean.round(6).tolist()), tuple(std.round(6).tolist())
