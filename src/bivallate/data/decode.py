"""Decode images in parallel into one uint8 array, and name every bad row."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.lib.format import open_memmap

from bivallate.data.cache import reserve, save_meta
from bivallate.data.dataset import digest, moments
from bivallate.data.grey_levels import DARK, GreyLevels, check_levels, level_above
from bivallate.data.image import BadImage, Item, Pixels, head, largest, pixels, quiet
from bivallate.data.reading import Canvas, Reading
from bivallate.errors import UserError

__all__ = ["Blocks", "Encoded", "Item", "Reading", "common_canvas", "decode", "sample_notes"]

PROBED = 64
MOST_BLOCKS = 4  # blocks that are read for these
MOST_LOOKED = 4096  # further images of a stream that are read if the first ones are suspicious
SIDES = (224, 160, 128, 96, 64, 48, 32, 28, 24, 16)  # usual image sizes of networks
SHOWN = 5
MOST_BAD = 1000  # a data set with more bad rows than this is not worth reading to its end


class Blocks(Protocol):
    """Encoded images in the order of the rows, read block by block; can be sent to worker processes."""

    @property
    def sizes(self) -> list[int]: ...

    def read(self, block: int) -> list[Item]:
        """The images of one block: bytes, a file, or None for a missing image."""
        ...

    def where(self, row: int) -> str:
        """The name of a row, for a message."""
        ...


@dataclass(frozen=True)
class Encoded:
    """Images that are still encoded.

    Attributes:
        title: of the files, for messages.
        labels: (M,) int64, -1 for a missing label.
        classes: names, or empty.
        blocks: the images.
    """

    title: str
    labels: np.ndarray
    classes: list[str]
    blocks: Blocks


def decode(encoded: Encoded, folder: Path, reading: Reading) -> None:
    """Write images.npy, labels.npy, rows.npy and meta.json into the folder.

    Raises:
        UserError: rows that can neither be used nor, as `reading.on_bad` allows, converted or skipped; or
            images that are nearly black or all equal.
    """
    with quiet():
        canvas = common_canvas(encoded, reading, whole_set=True)
        total = len(encoded.labels)
        images = open_memmap(folder / "images.npy", mode="w+", dtype=np.uint8, shape=(total, *canvas.shape))
        reserve(folder / "images.npy")
        found = _Found({int(row): BadImage("has no label") for row in np.flatnonzero(encoded.labels < 0)})
        _read(encoded, images, canvas, reading, found)
    bad = found.bad
    if bad and reading.on_bad != "skip":
        raise _refusal(encoded, bad, total, min(canvas.shape[1:])) from bad[min(bad)]
    rows = np.setdiff1d(np.arange(total), np.fromiter(bad, np.int64, len(bad)))
    if not len(rows):
        raise UserError(f"{encoded.title}: no usable image; row 0 {bad[0]}")
    _check_deep(encoded.title, found.highest, canvas)
    _finish(encoded, folder, images, rows, found)


@dataclass
class _Found:
    """Counts over the images of a set.

    Attributes:
        bad: bad images by row.
        highest: largest value of images of 16 or 32 bits, as a share of white.
        transparent: number of partly transparent images.
        greyed: number of grey images among colour ones.
    """

    bad: dict[int, BadImage]
    highest: float | None = None
    transparent: int = 0
    greyed: int = 0

    def add(self, row: int, result: Pixels | BadImage) -> None:
        if isinstance(result, BadImage):
            self.bad[row] = result
            return
        if result.highest is not None:
            self.highest = max(self.highest or 0, result.highest)
        self.transparent += result.transparent
        self.greyed += result.greyed

    def notes(self, title: str, looked: str) -> list[str]:
        """Notes for the user on images that were converted, out of those looked at."""
        kinds = (
            (self.transparent, "transparent in part: laid on white"),
            (self.greyed, "grey among colour images: read as colour"),
        )
        return [f"{title}: {count} of {looked} are {what}" for count, what in kinds if count]


def _read(encoded: Encoded, images: np.ndarray, canvas: Canvas, reading: Reading, found: _Found) -> None:
    def read(row: int, item: Item) -> tuple[int, Pixels | BadImage]:
        try:
            result = pixels(item, canvas, reading)
        except BadImage as error:
            return row, error
        images[row] = result.array
        return row, result

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        start = 0
        for block, size in enumerate(encoded.blocks.sizes):
            items = encoded.blocks.read(block)
            for row, result in pool.map(read, range(start, start + size), items):
                found.add(row, result)
            start += size
            if len(found.bad) > MOST_BAD and reading.on_bad != "skip":
                return


def _finish(encoded: Encoded, folder: Path, images: np.ndarray, rows: np.ndarray, found: _Found) -> None:
    images.flush()  # pyright: ignore[reportAttributeAccessIssue]
    notes = check_levels(images, encoded.title, rows) + found.notes(encoded.title, f"{len(rows)} images")
    if found.bad:
        named = _named(encoded, found.bad)
        notes.append(f"{encoded.title}: {len(found.bad)} of {len(encoded.labels)} rows are left out: {named}")
    np.save(folder / "labels.npy", encoded.labels, allow_pickle=False)
    np.save(folder / "rows.npy", rows, allow_pickle=False)
    mean, std = moments(images, torch.from_numpy(rows))
    source = digest(np.asarray(images), encoded.labels)
    save_meta(folder, classes=encoded.classes, source=source, mean=mean, std=std, notes=notes)


def _check_deep(title: str, highest: float | None, canvas: Canvas) -> None:
    """Raise UserError if images of 16 or 32 bits all use only a small part of their range."""
    if highest is not None and highest <= DARK:
        raise UserError(
            f"{title}: the images of 16 or 32 bits reach {highest:.2%} of white ({canvas.whole:g}, or "
            f"{canvas.real:g} in floating point), so they would be black: save them as 8 bits, or load with "
            "on_bad='convert' to scale all of them alike (--set data.on_bad=convert)"
        )


def _refusal(encoded: Encoded, bad: dict[int, BadImage], total: int, side: int) -> UserError:
    size = (
        f", or with one size for all (--set data.size={side})" if any(map(_other_size, bad.values())) else ""
    )
    return UserError(
        f"{encoded.title}: {len(bad)} of {total} rows cannot be used as they are: {_named(encoded, bad)}. "
        "Mend them, or load with on_bad='skip' to leave them out or on_bad='convert' to convert size and "
        f"colour (--set data.on_bad=skip){size}"
    )


def _named(encoded: Encoded, bad: dict[int, BadImage]) -> str:
    """The first bad rows with their faults, for a message."""
    shown = "; ".join(f"{encoded.blocks.where(row)} {bad[row]}" for row in sorted(bad)[:SHOWN])
    return shown + (f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else "")


def _other_size(error: BadImage) -> bool:
    return "where the others are" in str(error)


def common_canvas(encoded: Encoded, reading: Reading, whole_set: bool = False) -> Canvas:
    """Choose shape and white level of the decoded images from the headers of some.

    The white of images of 16 or 32 bits is their type's largest value. With on_bad="convert" it is the
    smallest of 1, 255, 1023, ..., 65535 that none of the first images exceeds (no image of the set, if
    `whole_set`).

    Raises:
        UserError: the sizes differ and no size was given, or no image can be read.
    """
    first = _sample(encoded.blocks)
    sizes: Counter[tuple[int, int]] = Counter()
    grey, deep = 0, False
    for item in first:
        try:
            found = head(item)
        except BadImage:
            continue
        sizes[found.size] += 1
        grey += found.grey
        deep |= found.deep
    if not sizes:
        raise UserError(
            f"{encoded.title}: none of the first images can be read, from {encoded.blocks.where(0)} on"
        )
    channels = reading.channels or (1 if grey * 2 > sizes.total() else 3)
    canvas = Canvas((channels, *(reading.size or _common(encoded.title, sizes))))
    if not deep or reading.on_bad != "convert":
        return canvas
    return _white(canvas, _everything(encoded.blocks) if whole_set else first)


def _everything(blocks: Blocks) -> Iterable[Item]:
    return (item for block in range(len(blocks.sizes)) for item in blocks.read(block))


def sample_notes(encoded: Encoded, canvas: Canvas, reading: Reading) -> list[str]:
    """Make the checks and notes of `decode` for images that are decoded later (a stream).

    It decodes some images, and up to `MOST_LOOKED` more if the first are dark or all equal.

    Raises:
        UserError: images that are nearly black or all equal.
    """
    levels, found, count = GreyLevels(canvas.shape[0], 255), _Found({}), 0
    first = _sample(encoded.blocks)
    with quiet():
        for k, item in enumerate(chain(first, islice(_everything(encoded.blocks), MOST_LOOKED))):
            bright = found.highest is None or found.highest > DARK
            if k >= len(first) and levels.decided and bright:
                break
            with suppress(BadImage):  # reported with its row when that row is decoded
                result = pixels(item, canvas, reading)
                levels.add(result.array[None])
                if k < len(first):
                    count += 1
                    found.add(k, result)
                elif result.highest is not None:
                    found.highest = max(found.highest or 0, result.highest)
    if not count:
        return []
    _check_deep(encoded.title, found.highest, canvas)
    return levels.check(encoded.title) + found.notes(encoded.title, f"the {count} images looked at")


def _common(title: str, sizes: Counter[tuple[int, int]]) -> tuple[int, int]:
    size, most = sizes.most_common(1)[0]
    if most * 2 <= sizes.total() and len(sizes) > 1:
        listed = ", ".join(f"{b}x{a}" for a, b in sorted(sizes)[:SHOWN])
        side = _fitting(sizes)
        raise UserError(
            f"{title}: the images have different sizes ({listed}, ...): give one, such as size={side} "
            f"(--set data.size={side})"
        )
    return size


def _fitting(sizes: Counter[tuple[int, int]]) -> int:
    """The largest usual image size that at least half of the images have."""
    short = sorted(min(size) for size in sizes.elements())
    median = short[(len(short) - 1) // 2]
    return next((side for side in SIDES if side <= median), short[0])


def _sample(blocks: Blocks) -> list[Item]:
    """Images from a few blocks all over the set, because the first ones of a folder are all of one class."""
    count = len(blocks.sizes)
    chosen = sorted({k * count // MOST_BLOCKS for k in range(MOST_BLOCKS)})
    step = max(1, sum(blocks.sizes[block] for block in chosen) // PROBED)
    return [item for block in chosen for item in blocks.read(block)[::step]]


def _white(canvas: Canvas, items: Iterable[Item]) -> Canvas:
    """The canvas with the white level of its images of 16 or 32 bits."""
    whole = real = 0.0
    for item in items:
        with suppress(BadImage):
            high = largest(item)
            whole, real = max(whole, high[0]), max(real, high[1])
    return replace(canvas, whole=level_above(whole), real=level_above(real))
