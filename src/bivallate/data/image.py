"""Decode one image: only formats that run no other program, with limits before anything is allocated.

The image is turned upright by its EXIF orientation, transparent parts are laid on white, and 16 or 32 bits
become 8.
"""

from __future__ import annotations

import io
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps

from bivallate.data.reading import Canvas, Reading
from bivallate.errors import UserError
from bivallate.untrusted_files import HEAD, kind_of, open_regular, reason_of

__all__ = ["BadImage", "Head", "Item", "Pixels", "head", "largest", "open_image", "pixels", "quiet"]

Item = bytes | Path | None
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # Pillow decodes these without other programs
GREY_MODES = ("1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")
ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")
MOST_PIXELS = 178_956_970  # Pillow's default limit, which a program may have changed
FEW_PIXELS = 1 << 22  # a file of any size may claim so many
PIXELS_A_BYTE = 10_000  # the densest format, a PNG of one bit, reaches 8,300
MANY_PIXELS = 1 << 24  # larger images are decoded one at a time, to limit memory
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_large = threading.Lock()


class BadImage(Exception):
    """Raised for an image that cannot be used; the message continues a sentence that names the image."""


class Head(NamedTuple):
    """The header of an image: upright size (H, W), whether it is grey, whether it has 16 or 32 bits."""

    size: tuple[int, int]
    grey: bool
    deep: bool


class Pixels(NamedTuple):
    """A decoded image.

    Attributes:
        array: (C, H, W) uint8.
        highest: largest value of an image of 16 or 32 bits, as a share of white; None for 8 bits.
        transparent: whether a part of it was transparent, and is laid on white now.
        greyed: whether it is a grey image among colour images that was converted unasked.
    """

    array: np.ndarray
    highest: float | None
    transparent: bool
    greyed: bool = False


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the decoders' warnings: an image is either read or refused with an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def open_image(item: Item) -> Iterator[Image.Image]:
    """Open an image: read its header and check its size, without its pixels.

    Raises:
        BadImage: there is no image, or it has an unknown format or is too large.
        UserError, OSError: a file that is not regular, or cannot be read.
    """
    if item is None:
        raise BadImage("has no image")
    with io.BytesIO(item) if isinstance(item, bytes) else open_regular(item) as file:
        try:
            image = Image.open(file, formats=FORMATS)
        except Image.UnidentifiedImageError as error:
            file.seek(0)
            kind = kind_of(file.read(HEAD))
            known = f"not in a known image format: {', '.join(FORMATS)}"
            raise BadImage(f"cannot be decoded ({f'it is {kind}' if kind else known})") from error
        with image:
            stored = len(item) if isinstance(item, bytes) else os.fstat(file.fileno()).st_size
            _check_size(image, stored)
            with _large if image.width * image.height > MANY_PIXELS else nullcontext():
                yield image


def _check_size(image: Image.Image, stored: int) -> None:
    count = image.width * image.height
    if count > MOST_PIXELS:
        raise BadImage(f"is too large an image to be opened safely ({image.width}x{image.height})")
    if count > max(FEW_PIXELS, PIXELS_A_BYTE * stored):
        raise BadImage(f"claims {image.width}x{image.height} pixels in {stored} bytes: no image is so dense")


@contextmanager
def _in_words() -> Iterator[None]:
    """Turn the exceptions of decoders into BadImage."""
    try:
        yield
    except (BadImage, UserError):
        raise
    except Image.DecompressionBombError as error:
        raise BadImage("is too large an image to be opened safely") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the system: decoders set no errno
            raise BadImage(f"cannot be read ({error.strerror})") from error
        raise BadImage(f"cannot be decoded ({reason_of(error)})") from error


def head(item: Item) -> Head:
    """Read size and colour of an image. Raises BadImage."""
    with _in_words(), open_image(item) as image:
        grey, deep = image.mode in GREY_MODES, _deep(image)
        upright = _upright(image) if _turn(image) is not None else image
        return Head((upright.height, upright.width), grey, deep)


def _deep(image: Image.Image) -> bool:
    return image.mode.startswith("I") or image.mode == "F"


def pixels(item: Item, canvas: Canvas, reading: Reading) -> Pixels:
    """Decode an image in the shape of the canvas. Raises BadImage if it cannot be used."""
    with _in_words(), open_image(item) as image:
        return _fit(image, canvas, reading)


def largest(item: Item) -> tuple[float, float]:
    """Largest value of an image of 16 or 32 bits, as (integer, floating point); 0 for the other type."""
    with _in_words(), open_image(item) as image:
        if not _deep(image):
            return 0, 0
        high = float(np.asarray(image).max())
        return (0, high) if image.mode == "F" else (high, 0)


def _fit(image: Image.Image, canvas: Canvas, reading: Reading) -> Pixels:
    channels, h, w = canvas.shape
    if reading.size is not None:  # decode a large JPEG at a fraction of its size, twice the wanted one
        image.draft(None, (2 * max(h, w), 2 * max(h, w)))
    is_grey = image.mode in GREY_MODES
    if channels == 1 and not is_grey and reading.on_bad != "convert" and reading.channels is None:
        raise BadImage("has colour among grey images")
    image = _upright(image)
    if (image.height, image.width) != (h, w) and reading.size is None and reading.on_bad != "convert":
        raise BadImage(f"is {image.width}x{image.height} where the others are {w}x{h}")
    image, highest = _eight_bits(image, canvas)
    image, transparent = _on_white(image)
    mode = "L" if channels == 1 else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    if (image.height, image.width) != (h, w):
        image = ImageOps.fit(image, (w, h), Image.Resampling.BICUBIC)
    array = np.asarray(image)
    greyed = is_grey and channels == 3 and reading.channels is None and not reading.grey
    return Pixels(array[None] if channels == 1 else array.transpose(2, 0, 1), highest, transparent, greyed)


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF fields fail in many ways; then there is no orientation
        return None


def _upright(image: Image.Image) -> Image.Image:
    """The image turned upright by its orientation tag, after it is decoded."""
    image.load()
    turn = None if image.format == "TIFF" else _turn(image)  # Pillow turns TIFF itself, and some keep the tag
    return image if turn is None else image.transpose(turn)


def _eight_bits(image: Image.Image, canvas: Canvas) -> tuple[Image.Image, float | None]:
    """(image with 8 bits, highest); Pillow itself would clip 16 bits at 255 and turn [0, 1] into black."""
    if not _deep(image):
        return image, None
    real = image.mode == "F"
    values, white = np.asarray(image), canvas.real if real else canvas.whole
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= white):  # NaN neither
        kind = "floating-point" if real else "integer"
        raise BadImage(
            f"holds {kind} values from {low:g} to {high:g} where 0 is black and {white:g} is white: "
            "save it so, or load with on_bad='convert'"
        )
    eight = values // 257 if white == 65535 else np.rint(values * (255 / white))
    return Image.fromarray(eight.astype(np.uint8)), high / white


def _on_white(image: Image.Image) -> tuple[Image.Image, bool]:
    """(image on white, whether a part was transparent); a drawing may be in the alpha channel alone."""
    if image.mode not in ALPHA_MODES and "transparency" not in image.info:
        return image, False
    colours = image.convert("RGBA")
    if colours.getchannel("A").getextrema()[0] == 255:
        return image, False
    page = Image.new("RGBA", image.size, "white")
    page.alpha_composite(colours)
    return page, True
