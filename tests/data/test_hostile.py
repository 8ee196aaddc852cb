"""Malicious data files: no program is started, nothing blocks, and no memory is taken for a false claim."""

import io
import json
import os
import resource
import socket
import struct
import subprocess
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tests.data.builders import pictures, png, write_parquet

from bivallate import data
from bivallate.data.image import pixels
from bivallate.data.reading import Canvas, Reading
from bivallate.errors import UserError
from bivallate.untrusted_files import kind_of

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n0 0 8 8 rectfill\nshowpage\n%%EOF\n"
EPS_IN_A_SHELL = struct.pack("<IIIIIIIH", 0xC6D3D0C5, 32, len(EPS), 0, 0, 0, 0, 0xFFFF) + bytes(2) + EPS
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
HTML = b"\n<!DOCTYPE html>\n<html><title>404</title></html>\n"
SAFETENSORS = struct.pack("<Q", 20) + b'{"__metadata__":{}} '
GOOD = [png(i) for i in pictures(6)]
LABELS = [0, 1, 2, 0, 1, 2]
NO_TEST = {"validation": 0, "test_fraction": 0.5}


@pytest.fixture(autouse=True)
def witness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Programs of Ghostscript's names that leave a file behind; and no child process is started at all."""
    folder, seen = tmp_path / "bin", tmp_path / "it-ran"
    folder.mkdir()
    for name in ("gs", "gswin64c", "gswin32c", "djpeg"):
        (folder / name).write_text(f"#!/bin/sh\ntouch {seen}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def start(*_: object, **__: object) -> None:
        seen.touch()
        raise AssertionError("a data set started a program")

    monkeypatch.setattr(subprocess.Popen, "__init__", start)
    yield
    assert not seen.exists()


def in_a_folder(folder: Path, content: bytes) -> Path:
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for k, image in enumerate(GOOD):
            (folder / name / f"{k}.png").write_bytes(image)
    (folder / "b" / "3.png").write_bytes(content)
    return folder


def in_parquet(folder: Path, content: bytes) -> Path:
    return write_parquet(folder / "train.parquet", [*GOOD[:5], content], LABELS).parent


def bomb_png(width: int = 13_000, height: int = 13_000) -> bytes:
    """Black pixels by the million in a few kilobytes, as far as they go."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(bytes(100_000))), (b"IEND", b""))
    body = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def bomb_bmp(width: int, height: int) -> bytes:
    good = bytearray(png(pictures(1)[0], "BMP"))
    good[18:26] = struct.pack("<ii", width, height)
    return bytes(good)


def bomb_tiff(width: int, height: int) -> bytes:
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    tags += [(273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, 64)]
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(struct.pack("<HHII", *t) for t in tags)


def dds(width: int, height: int) -> bytes:
    return b"DDS " + struct.pack("<IIII", 124, 0x1007, height, width) + bytes(108)


def read_all(loaded: data.Dataset) -> None:
    """A stream reads when it is asked."""
    _ = loaded.train.images, loaded.test.images


@pytest.mark.parametrize("where", [in_a_folder, in_parquet])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (EPS, "it is PostScript, a program that is not run"),
        (EPS_IN_A_SHELL, "it is PostScript"),
        (LFS, "it is a Git LFS pointer.*git lfs pull"),
        (HTML, "it is an HTML page"),
        (SAFETENSORS, "it is a safetensors file"),
        (dds(2**31, 2**31), "it is a DDS texture"),
        (b"\x80\x04\x95", "it is a pickle, which could run code"),
        (b"", "not in a known image format"),
        (bomb_png(), "claims 13000x13000 pixels in"),
        (bomb_png(2**31 - 1, 2**31 - 1), "too large"),
        (bomb_bmp(2**31 - 1, 2**31 - 1), "too large"),
        (bomb_bmp(1 << 20, 1 << 7), r"claims 1048576x128 pixels in 2\d\d bytes"),
        (bomb_tiff(2**32 - 1, 2**32 - 1), "too large"),
        (bomb_tiff(2**30, 1), "too large"),
        (bomb_tiff(0, 0), "cannot be decoded"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_files_in_disguise_and_bombs(
    tmp_path: Path, where: Callable[[Path, bytes], Path], content: bytes, reason: str, stream: bool
) -> None:
    folder = where(tmp_path / "set", content)
    with pytest.raises(UserError, match=f"(b/3.png.*|row 5 of train.parquet) .*{reason}") as raised:
        read_all(data.load(folder, stream=stream, workers=0, **NO_TEST))
    assert "\n" not in str(raised.value)
    assert raised.value.__cause__ is not None  # --debug shows where it was found


def npz(**arrays: np.ndarray | bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, value in arrays.items():
            content = value
            if isinstance(value, np.ndarray):
                part = io.BytesIO()
                np.lib.format.write_array(part, value)
                content = part.getvalue()
            file.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def header(shape: str, descr: str = "|u1", body: bytes = b"\0" * 64) -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
    text += " " * (-(len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text.encode() + body


def zeros_npz(size: int) -> bytes:
    """`size` zero bytes as images, packed 1,000 times smaller; written piece by piece."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        with file.open("images.npy", "w", force_zip64=True) as entry:
            entry.write(header(f"({size // 64}, 1, 8, 8)", body=b""))
            for _ in range(size >> 24):
                entry.write(bytes(1 << 24))
        file.writestr("labels.npy", header("(64,)"))
    return buffer.getvalue()


Y = np.arange(6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            lambda: npz(images=header("(1000000000000, 8, 8, 3)"), labels=Y),
            "says shape .1000000000000.* 64 are",
        ),
        (lambda: npz(images=header("(4, 4, 4)", "|V1000000000"), labels=Y), "not plain numbers"),
        (lambda: npz(images=header("(4, 4, 4)", "|O"), labels=Y), "not plain numbers"),
        (lambda: npz(images=header("(-1, 8, 8)"), labels=Y), "not a readable .npz"),
        (lambda: npz(images=header("(" * 3000 + ")" * 3000), labels=Y), "not a readable .npz"),
        (lambda: npz(images=b"\x93NUMPY\x09\0", labels=Y), "not a readable .npz"),
        (lambda: zeros_npz(1 << 25), "would unpack from 3[0-9]{4} to 33554[0-9]+ bytes, more than 200 times"),
        (lambda: EPS, "not a readable .npz .*it is PostScript"),
        (lambda: LFS, "not a readable .npz .*it is a Git LFS pointer"),
    ],
)
def test_archives_that_claim_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Callable[[], bytes], message: str
) -> None:
    monkeypatch.setattr("bivallate.data.archive.LARGE", 1 << 20)
    (tmp_path / "x.npz").write_bytes(content())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=message) as raised:
        data.load(tmp_path / "x.npz")
    assert "\n" not in str(raised.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16_000


def test_an_array_larger_than_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.npz").write_bytes(npz(images=pictures(6), labels=Y))
    monkeypatch.setattr("bivallate.data.archive._memory", lambda: 1000)
    with pytest.raises(UserError, match="'images' has 1280 bytes, this machine's memory 1000"):
        data.load(tmp_path / "x.npz")


def test_row_groups_that_unpack_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One image of a megabyte, written once and named a thousand times."""
    monkeypatch.setattr("bivallate.data.row_groups.LARGE", 1 << 20)
    image = pa.array([bytes(1 << 16)] * 1000)
    pq.write_table(pa.table({"image": image, "label": [0, 1] * 500}), tmp_path / "train.parquet")
    with pytest.raises(
        UserError, match=r"train.parquet is damaged: row group 0 unpacks to more than 200 times"
    ):
        data.load(tmp_path / "train.parquet")


def fifo(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        before = Path.cwd()
        os.chdir(path.parent)  # such names are at most 107 bytes long
        try:
            server.bind(path.name)
        finally:
            os.chdir(before)


@pytest.mark.parametrize("make", [fifo, endless, listening])
@pytest.mark.parametrize("name", ["x.npz", "x.parquet"])
@pytest.mark.parametrize("stream", [False, True])
def test_only_regular_files_are_opened(
    tmp_path: Path, make: Callable[[Path], None], name: str, stream: bool
) -> None:
    make(tmp_path / name)
    with pytest.raises(UserError, match=f"{name} is a (named pipe|device|socket)"):
        data.load(tmp_path / name, stream=stream)


@pytest.mark.parametrize("make", [fifo, endless, listening])
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_no_regular_file_among_images_is_left_out(
    tmp_path: Path, image_folder: Path, make: Callable[[Path], None], stream: bool
) -> None:
    make(image_folder / "pear" / "x.png")
    loaded = data.load(image_folder, stream=stream, workers=0)
    assert loaded.notes == ("left out, pipes and devices: 1 (pear/x.png)",)
    assert len(loaded.train.images) + len(loaded.test) + len(loaded.validation or ()) == 20
    with pytest.raises(UserError, match=r"x.png is a (named pipe|device|socket)"):  # should one come to be
        pixels(image_folder / "pear" / "x.png", Canvas((3, 8, 8)), Reading())


def test_links_to_files_are_read(tmp_path: Path, image_folder: Path) -> None:
    linked = tmp_path / "linked"
    for folder in image_folder.iterdir():
        (linked / folder.name).mkdir(parents=True)
        for path in folder.iterdir():
            (linked / folder.name / path.name).symlink_to(path)
    assert np.array_equal(data.load(linked).train.images, data.load(image_folder).train.images)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (LFS, "a Git LFS pointer"),
        (b"\xef\xbb\xbf <HTML>", "an HTML page"),
        (SAFETENSORS, "a safetensors file"),
        (png(pictures(1)[0]), "a PNG image"),
        (npz(labels=Y), "a zip archive"),
        (bytes(257) + b"ustar", "a tar archive"),
        (b"RIFF\0\0\0\0WEBP", "a WebP image"),
        (b"a,b\n1,2\n", None),
        (b"", None),
    ],
)
def test_kinds_are_known_by_their_first_bytes(content: bytes, kind: str | None) -> None:
    found = kind_of(content)
    assert found is None if kind is None else found is not None and found.startswith(kind)


@pytest.mark.parametrize(("name", "content"), [("x.bin", SAFETENSORS), ("x.parquet", HTML), ("x.npz", LFS)])
def test_a_file_under_another_suffix_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"; it is {kind_of(content)}".replace("(", r"\(")):
        data.load(tmp_path / name)


def test_the_limit_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that lifts Pillow's limit for itself does not lift it for data sets."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    folder = in_parquet(tmp_path / "set", bomb_png(20_000, 20_000))
    with pytest.raises(UserError, match=r"too large an image to be opened safely \(20000x20000\)"):
        data.load(folder, **NO_TEST)


LABEL = {"_type": "ClassLabel"}


@pytest.mark.parametrize(
    ("metadata", "classes"),
    [
        ("[" * 100_000, ["0", "1"]),
        ('{"info":' * 100_000, ["0", "1"]),
        (json.dumps({"info": {"features": [1, 2]}}), ["0", "1"]),
        (json.dumps({"info": {"features": {"label": "ClassLabel"}}}), ["0", "1"]),
        (json.dumps({"info": {"features": {"label": {**LABEL, "names": 5}}}}), ["0", "1"]),
        (json.dumps({"info": {"features": {"label": {**LABEL, "names": {"a": 0, "b": 1}}}}}), ["0", "1"]),
        (json.dumps({"info": {"features": {"label": {**LABEL, "names": ["a", "b"]}}}}), ["a", "b"]),
        (b"\xff\xfe", ["0", "1"]),
    ],
)
def test_metadata_of_another_form_are_not_heeded(
    tmp_path: Path, metadata: str | bytes, classes: list[str]
) -> None:
    table = pa.table({"image": GOOD, "label": [0, 1] * 3}).replace_schema_metadata({"huggingface": metadata})
    pq.write_table(table, tmp_path / "train.parquet")
    assert data.load(tmp_path / "train.parquet", **NO_TEST).classes == classes
