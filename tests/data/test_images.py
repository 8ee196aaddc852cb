"""Decoding of single images: deep, transparent, rotated; none becomes black or wrong without a note."""

import io
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.data.builders import pictures, png

import bivallate
from bivallate import data
from bivallate.errors import UserError

GREY = pictures(20, (8, 8))
NO_TEST: dict[str, Any] = {"validation": 0, "test_fraction": 0.5}


def encoded(array: np.ndarray, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def folder_of(folder: Path, images: list[bytes], suffix: str = "png") -> Path:
    for label in ("a", "b"):
        (folder / label).mkdir(parents=True)
    for k, image in enumerate(images):
        (folder / "ab"[k % 2] / f"{k:02d}.{suffix}").write_bytes(image)
    return folder


def stored(folder: Path, **options: Any) -> np.ndarray:
    """(N, C, H, W) in the order in which they were made, which the class folders split in two."""
    loaded = data.load(folder, **{**NO_TEST, **options})
    store = loaded.train.store
    rows = store[np.arange(store.shape[0])]
    half = (len(rows) + 1) // 2
    return np.stack([rows[k // 2 + (k % 2) * half] for k in range(len(rows))])


def deep(values: np.ndarray) -> list[bytes]:
    """PNG for 16 bits, TIFF for the others."""
    return [encoded(v, "PNG" if v.dtype == np.uint16 else "TIFF") for v in values]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("values", "message", "converts"),
    [
        (GREY.astype(np.uint16), "reach 0.39% of white", True),  # a byte in 16 bits
        (GREY.astype(np.uint16) * 16, "reach 6.23% of white", True),  # 12 bits in 16
        (GREY.astype(np.int32), "reach 0.39% of white", True),
        (GREY.astype(np.int32) * 257, None, True),
        (GREY.astype(np.int32) * 70_000, "holds integer values from .* 65535 is white", False),
        (GREY.astype(np.int32) * 257 - 9, "holds integer values from -", False),
        (GREY.astype(np.uint16) * 257, None, True),
        (GREY.astype(np.float32) / 255, None, True),
        (GREY.astype(np.float32), "holds floating-point values from .* to 2.. where .* 1 is white", True),
        (GREY.astype(np.float32) / 255 / 255, "reach 0.39% of white", False),
        (np.where(GREY == 7, np.nan, GREY / 255).astype(np.float32), "from nan to nan", False),
    ],
)
def test_deep_images_are_scaled_or_refused(
    tmp_path: Path, values: np.ndarray, message: str | None, converts: bool, stream: bool
) -> None:
    folder = folder_of(tmp_path / "deep", deep(values), "png" if values.dtype == np.uint16 else "tiff")
    wanted = GREY[:, None]
    if message is None:
        assert np.array_equal(stored(folder, stream=stream, workers=0), wanted)
    else:
        with pytest.raises(UserError, match=message):
            stored(folder, stream=stream, workers=0)
    if converts:
        got = stored(folder, on_bad="convert", stream=stream, workers=0).astype(int)
        assert np.abs(got - wanted).max() <= 1  # 4080 of 4095 is a little less than 255 of 255


def test_one_deep_image_among_others_is_no_way_around(tmp_path: Path) -> None:
    images = [png(v) for v in GREY[:10]] + deep(GREY[10:].astype(np.uint16))
    with pytest.raises(UserError, match="images of 16 or 32 bits reach"):
        stored(folder_of(tmp_path / "mixed", images))


def rgba(ink: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros((8, 8, 3), np.uint8), ink[..., None]], -1)


def palette(ink: np.ndarray) -> bytes:
    image = Image.fromarray((ink > 127).astype(np.uint8))
    image.putpalette([0, 0, 0, 0, 0, 0])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=0)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("make", "channels"),
    [
        (lambda ink: encoded(rgba(ink), "PNG"), 3),
        (lambda ink: encoded(rgba(ink), "TIFF"), 3),
        (lambda ink: encoded(rgba(ink), "WEBP", lossless=True, exact=True), 3),
        (lambda ink: encoded(rgba(ink)[..., 2:], "PNG"), 1),
        (palette, 3),
    ],
)
def test_ink_in_the_alpha_channel_lies_on_white(
    tmp_path: Path, make: Callable[[np.ndarray], bytes], channels: int
) -> None:
    ink = np.where(GREY > 127, 255, 0).astype(np.uint8)
    folder = folder_of(tmp_path / "ink", [make(i) for i in ink])
    wanted = np.repeat(255 - ink[:, None], channels, 1)
    for stream, looked in ((False, "20 images"), (True, "the 20 images looked at")):
        assert np.array_equal(stored(folder, stream=stream, workers=0), wanted)
        assert data.load(folder, stream=stream, workers=0, **NO_TEST).notes == (
            f"{folder}: 20 of {looked} are transparent in part: laid on white",
        )


def test_opaque_images_keep_their_bytes(tmp_path: Path) -> None:
    colours = pictures(4)
    opaque = np.concatenate([colours, np.full((4, 8, 8, 1), 255, np.uint8)], -1)
    folder = folder_of(tmp_path / "opaque", [encoded(i, "PNG") for i in opaque])
    assert np.array_equal(stored(folder), colours.transpose(0, 3, 1, 2))
    assert data.load(folder, **NO_TEST).notes == ()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros_like(GREY), "every pixel of every image is 0"),
        (GREY // 16, "the largest value of all pixels is 15 where 255 is white"),
        ((GREY > 127).astype(np.uint8), "the largest value of all pixels is 1 where 255 is white"),
        (GREY.astype(np.float32) / 255 / 255, "the largest value of all pixels is 0.003.* where 1 is white"),
    ],
)
def test_black_sets_are_refused(tmp_path: Path, images: np.ndarray, message: str) -> None:
    labels = np.arange(20) % 2
    with pytest.raises(UserError, match=message):
        data.load((images[:, None], labels))
    np.savez(tmp_path / "x.npz", x=images, y=labels)
    with pytest.raises(UserError, match=message):
        data.load(tmp_path / "x.npz")
    if images.dtype == np.uint8:
        folder = folder_of(tmp_path / "black", [png(i) for i in images])
        for stream in (False, True):
            with pytest.raises(UserError, match=message):
                data.load(folder, stream=stream, workers=0)


@pytest.mark.parametrize("stream", [False, True])
def test_a_channel_without_content_is_named(tmp_path: Path, stream: bool) -> None:
    colours = pictures(6)
    colours[..., 2] = 9
    folder = folder_of(tmp_path / "two", [png(i) for i in colours])
    loaded = data.load(folder, stream=stream, workers=0, **NO_TEST)
    assert loaded.notes == (f"{folder}: channel 2 is 9 in every image",)


@pytest.mark.parametrize("deeper", [False, True])
def test_one_bright_image_beyond_the_first_of_a_stream_is_enough(tmp_path: Path, deeper: bool) -> None:
    def write(image: np.ndarray) -> bytes:
        return deep(image[None].astype(np.uint16) * 257)[0] if deeper else png(image)

    images = [np.full((4, 4), 3 + k % 2, np.uint8) for k in range(100)]
    folder = folder_of(tmp_path / "late", [*map(write, images), write(pictures(1, (4, 4))[0])])
    last = folder / "a" / "100.png"
    for stream in (False, True):
        data.load(folder, stream=stream, workers=0, whole=True)
    last.write_bytes(write(images[0]))
    for stream in (False, True):
        with pytest.raises(
            UserError, match="reach 1.57% of white" if deeper else "all pixels is 4 where 255"
        ):
            data.load(folder, stream=stream, workers=0, whole=True)


PICTURE = np.kron(pictures(1, (4, 6, 3))[0], np.ones((8, 8, 1), np.uint8))  # 32 x 48, coarse enough for JPEG


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    return exif.tobytes()


SAVED: dict[str, dict[str, Any]] = {
    "jpeg": {"quality": 100, "subsampling": 0},
    "png": {},
    "webp": {"lossless": True},
    "tiff": {},
}
HELD = {  # how the pixels lie in the file, so that the picture is seen upright
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: np.rot90(p, 1),
    7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
    8: lambda p: np.rot90(p, -1),
}


@pytest.mark.parametrize("kind", SAVED)
@pytest.mark.parametrize("stream", [False, True])
def test_rotated_photographs_stand_upright(tmp_path: Path, kind: str, stream: bool) -> None:
    """Most were taken with the camera on its side: sizes are compared as they are seen."""
    images = []
    for orientation in (1, 2, 3, 4, 5, 6, 7, 8, 6, 8, 5, 7):
        held = np.ascontiguousarray(HELD[orientation](PICTURE))
        images.append(encoded(held, kind.upper(), exif=turned(orientation), **SAVED[kind]))
    got = stored(folder_of(tmp_path / "photos", images, kind), stream=stream, workers=0)
    assert got.shape == (12, 3, 32, 48)
    assert np.abs(got.astype(int) - PICTURE.transpose(2, 0, 1)).max() <= (3 if kind == "jpeg" else 0)


def trailing_exif(orientation: int) -> bytes:
    """A PNG whose EXIF stands behind its pixels."""
    body = b"eXIf" + turned(orientation).removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    plain = encoded(np.ascontiguousarray(HELD[orientation](PICTURE)), "PNG")
    return plain[:-12] + chunk + plain[-12:]


def test_exif_behind_the_pixels(tmp_path: Path) -> None:
    got = stored(folder_of(tmp_path / "photos", [trailing_exif(6)] * 4))
    assert np.array_equal(got[0], PICTURE.transpose(2, 0, 1))


def wrong_exif(kind: int, count: int, value: bytes) -> bytes:
    """EXIF that gives the orientation, and the resolution, in a type that they have not."""
    entries = b"".join(struct.pack("<HHI", tag, kind, count) + value for tag in (274, 282, 296))
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 3) + entries + bytes(4)


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
@pytest.mark.parametrize(
    "exif",
    [
        wrong_exif(2, 4, b"six\0"),
        wrong_exif(7, 4, b"\xff\xfe\xfd\xfc"),
        wrong_exif(4, 1, b"\xff\xff\xff\xff"),
        wrong_exif(5, 1, struct.pack("<I", 1 << 30)),
        wrong_exif(3, 1 << 30, struct.pack("<I", 26)),
        wrong_exif(12, 1, struct.pack("<I", 8)),
        wrong_exif(3, 2, struct.pack("<HH", 1, 6)),
        b"Exif\0\0garbage",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
    ],
)
def test_exif_of_the_wrong_type_is_not_heeded(tmp_path: Path, kind: str, exif: bytes) -> None:
    images = [encoded(PICTURE, kind.upper(), exif=exif, **SAVED[kind]) for _ in range(4)]
    got = stored(folder_of(tmp_path / "photos", images, kind))
    assert np.abs(got.astype(int) - PICTURE.transpose(2, 0, 1)).max() <= (3 if kind == "jpeg" else 0)


def test_images_are_opened_in_one_place() -> None:
    """A second one would need the list of formats and the limits again."""
    root = Path(bivallate.__file__).parent
    opening = [
        str(path.relative_to(root))
        for path in sorted(root.rglob("*.py"))
        if re.search(r"Image\.open\(|imread\(|from PIL.Image import", path.read_text())
    ]
    assert opening == ["data/image.py"]
