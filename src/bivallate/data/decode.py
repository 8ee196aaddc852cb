"""Encoded images to one uint8 array: in parallel, with every bad row named."""

from __future__ import annotations

import io
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.lib.format import open_memmap
from PIL import Image, ImageOps

from bivallate.data.cache import reserve, save_meta
from bivallate.data.dataset import digest, moments
from bivallate.errors import UserError

__all__ = ["Blocks", "Encoded", "Reading", "decode", "pixels", "probe"]

Item = bytes | Path | None
GREY_MODES = ("1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L")
PROBED = 64
SHOWN = 5
MOST_BAD = 1000  # a data set with more bad rows than this is not worth reading to its end


@dataclass(frozen=True)
class Reading:
    """How images are read.

    Attributes:
        size: (H, W) to which every image is fitted (scaled, centre cut); None: they must agree.
        channels: 1 or 3; None: what most images are.
        on_bad: "refuse" a set with bad rows, "convert" those that can be (size, colour), or "skip" them.
        grey: take grey images among colour ones as colour without a complaint.
        image_column, label_column: of Parquet files; None: found by the metadata, then by name.
    """

    size: tuple[int, int] | None = None
    channels: int | None = None
    on_bad: str = "refuse"
    grey: bool = False
    image_column: str | None = None
    label_column: str | None = None

    def __post_init__(self) -> None:
        if self.on_bad not in ("refuse", "convert", "skip"):
            raise UserError(f"on_bad must be 'refuse', 'convert' or 'skip', got {self.on_bad!r}")
        if self.channels not in (None, 1, 3):
            raise UserError(f"channels must be 1 or 3, got {self.channels}")
        if self.size is not None and min(self.size) < 1:
            raise UserError(f"size must be positive, got {self.size}")


class Blocks(Protocol):
    """Encoded images in the order of the rows, read some at a time; it can be sent to worker processes."""

    @property
    def sizes(self) -> list[int]: ...

    def read(self, block: int) -> list[Item]:
        """The images of one block: bytes, a file, or None where there is none."""
        ...

    def where(self, row: int) -> str:
        """Names a row for a message."""
        ...


@dataclass(frozen=True)
class Encoded:
    """Images that are still encoded.

    Attributes:
        title: of the files, for messages. labels: (M,) int64, -1 where there is none.
        classes: their names, or empty.
        blocks: the images.
    """

    title: str
    labels: np.ndarray
    classes: list[str]
    blocks: Blocks


def decode(encoded: Encoded, folder: Path, reading: Reading) -> None:
    """Writes images.npy, labels.npy, rows.npy and meta.json into the folder.

    Raises:
        UserError: naming the bad rows, unless they are to be skipped or could be converted.
    """
    total = len(encoded.labels)
    shape = probe(encoded, reading)
    images = open_memmap(folder / "images.npy", mode="w+", dtype=np.uint8, shape=(total, *shape))
    reserve(folder / "images.npy")
    bad = {int(row): "has no label" for row in np.flatnonzero(encoded.labels < 0)}

    def read(row: int, item: Item) -> None:
        found = pixels(item, shape, reading)
        if isinstance(found, str):
            bad[row] = found
        else:
            images[row] = found

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        start = 0
        for block, size in enumerate(encoded.blocks.sizes):
            items = encoded.blocks.read(block)
            list(pool.map(read, range(start, start + size), items))
            start += size
            if len(bad) > MOST_BAD and reading.on_bad != "skip":
                break
    if bad and reading.on_bad != "skip":
        raise _refusal(encoded, bad, total)
    rows = np.setdiff1d(np.arange(total), np.fromiter(bad, np.int64, len(bad)))
    if not len(rows):
        raise UserError(f"{encoded.title}: no usable image; row 0 {bad[0]}")
    _finish(encoded, folder, images, rows)


def _finish(encoded: Encoded, folder: Path, images: np.ndarray, rows: np.ndarray) -> None:
    images.flush()  # pyright: ignore[reportAttributeAccessIssue]
    np.save(folder / "labels.npy", encoded.labels, allow_pickle=False)
    np.save(folder / "rows.npy", rows, allow_pickle=False)
    mean, std = moments(images, torch.from_numpy(rows))
    source = digest(np.asarray(images), encoded.labels)
    save_meta(folder, classes=encoded.classes, source=source, mean=mean, std=std)


def _refusal(encoded: Encoded, bad: dict[int, str], total: int) -> UserError:
    shown = "; ".join(f"{encoded.blocks.where(row)} {bad[row]}" for row in sorted(bad)[:SHOWN])
    more = f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    return UserError(
        f"{encoded.title}: {len(bad)} of {total} rows cannot be used as they are: {shown}{more}. Mend them, "
        "or load with on_bad='skip' to leave them out or on_bad='convert' to convert size and colour "
        "(--set data.on_bad=skip)"
    )


def probe(encoded: Encoded, reading: Reading) -> tuple[int, int, int]:
    """(C, H, W) of the array, from the headers of the first images.

    Raises:
        UserError: if the sizes differ and no size was given.
    """
    sizes: Counter[tuple[int, int]] = Counter()
    grey = 0
    for item in encoded.blocks.read(0)[:PROBED]:
        try:
            with _open(item) as image:
                sizes[(image.height, image.width)] += 1
                grey += image.mode in GREY_MODES
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue
    if not sizes:
        raise UserError(
            f"{encoded.title}: none of the first images can be read, from {encoded.blocks.where(0)} on"
        )
    channels = reading.channels or (1 if grey * 2 > sizes.total() else 3)
    (h, w), most = sizes.most_common(1)[0]
    if reading.size is not None:
        return channels, *reading.size
    if most * 2 <= sizes.total() and len(sizes) > 1:
        listed = ", ".join(f"{b}x{a}" for a, b in sorted(sizes)[:SHOWN])
        raise UserError(
            f"{encoded.title}: the images have different sizes ({listed}, ...): give one, such as size=64 "
            "(--set data.size=64)"
        )
    return channels, h, w


def _open(item: Item) -> Image.Image:
    if item is None:
        raise ValueError("no image")
    return Image.open(io.BytesIO(item) if isinstance(item, bytes) else item)


def pixels(item: Item, shape: tuple[int, int, int], reading: Reading) -> np.ndarray | str:
    """The image as uint8 of the shape (C, H, W), or what is wrong with it."""
    if item is None:
        return "has no image"
    try:
        with _open(item) as image:
            return _fit(image, shape, reading)
    except Image.DecompressionBombError:
        return "is too large an image to be opened safely"
    except (OSError, ValueError, SyntaxError) as error:
        reason = "not in a known image format" if isinstance(error, Image.UnidentifiedImageError) else error
        return f"cannot be decoded ({reason})"


def _fit(image: Image.Image, shape: tuple[int, int, int], reading: Reading) -> np.ndarray | str:
    channels, h, w = shape
    if (
        reading.size is not None
    ):  # a large JPEG is decoded at a fraction of its size, still twice the wanted one
        image.draft(None, (2 * max(h, w), 2 * max(h, w)))
    if image.format in ("JPEG", "MPO", "TIFF"):
        ImageOps.exif_transpose(image, in_place=True)
    is_grey = image.mode in GREY_MODES
    wrong_colour = is_grey != (channels == 1)
    if (
        wrong_colour
        and reading.on_bad != "convert"
        and reading.channels is None
        and not (is_grey and reading.grey)
    ):
        return "is grey among colour images" if is_grey else "has colour among grey images"
    if (image.height, image.width) != (h, w) and reading.size is None and reading.on_bad != "convert":
        return f"is {image.width}x{image.height} where the others are {w}x{h}"
    mode = "L" if channels == 1 else "RGB"
    if image.mode.startswith("I"):  # 16 bits: Pillow would clip at 255
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if image.mode != mode:
        image = image.convert(mode)
    if (image.height, image.width) != (h, w):
        image = ImageOps.fit(image, (w, h), Image.Resampling.BICUBIC)
    array = np.asarray(image)
    return array[None] if channels == 1 else array.transpose(2, 0, 1)
