"""Mutated data files: each loads or is refused in one line, in bounded memory.

`python -m tests.faults.mutated_data --count 1000 --seed 0`: tiny valid files of every format are cut,
flipped, overwritten, lengthened and spliced; the case that broke something is named by its number, which
alone makes it again.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import shutil
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image
from tests.data.builders import pictures, png, write_parquet

from bivallate import data
from bivallate.errors import UserError

MOST_MEMORY = 1 << 20  # kilobytes by which all cases together may raise the largest resident memory
PNG = b"\x89PNG\r\n\x1a\n"
EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
LABELS = [0, 1, 0, 1]
COLOURS = pictures(4)
SETTINGS: dict[str, Any] = {"validation": 0, "test_fraction": 0.5, "workers": 0}


@dataclass(frozen=True)
class Result:
    """How one case ended: "loaded", "refused" or what was raised instead; and the message."""

    kind: str
    number: int
    outcome: str
    message: str = ""


def encoded(array: np.ndarray, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def _exif() -> bytes:
    exif = Image.Exif()
    exif[274], exif[271] = 6, "camera"
    return exif.tobytes()


def images() -> dict[str, bytes]:
    """One valid image of each format that is read."""
    picture, grey = COLOURS[0], COLOURS[0, ..., 0]
    ink = np.concatenate([picture, grey[..., None]], -1)
    return {
        "png": encoded(picture, "PNG", exif=_exif()),
        "png-16": encoded(grey.astype(np.uint16) * 257, "PNG"),
        "png-alpha": encoded(ink, "PNG"),
        "jpeg": encoded(picture, "JPEG", exif=_exif()),
        "jpeg-progressive": encoded(picture, "JPEG", progressive=True),
        "webp": encoded(picture, "WEBP", exif=_exif()),
        "webp-lossless": encoded(ink, "WEBP", lossless=True),
        "bmp": encoded(picture, "BMP"),
        "gif": encoded(picture, "GIF"),
        "tiff": encoded(picture, "TIFF"),
        "tiff-lzw": encoded(picture, "TIFF", compression="tiff_lzw"),
        "tiff-float": encoded(grey.astype(np.float32) / 255, "TIFF"),
        "ppm": encoded(picture, "PPM"),
    }


def mutated(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """The content, harmed once to four times; of PNG files every second one with sums that fit the harm."""
    for _ in range(int(rng.choice((1, 1, 2, 4)))):
        content = _harmed(bytearray(content), other, rng)
    return _summed(content) if content.startswith(PNG) and rng.random() < 0.5 else content


def _summed(content: bytes) -> bytes:
    """A PNG file whose chunks carry the sums of what they hold, so that their decoders see it."""
    result, place = PNG, len(PNG)
    while len(size := content[place : place + 4]) == 4:
        body = content[place + 4 : place + 8 + int.from_bytes(size, "big")]
        result += size + body + zlib.crc32(body).to_bytes(4, "big")
        place += 8 + len(body)
    return result


def _harmed(content: bytearray, other: bytes, rng: np.random.Generator) -> bytes:
    if not content:
        return bytes(content)
    # half of all harm goes to the header, which says what is allocated
    place = int(rng.integers(min(len(content), 64) if rng.random() < 0.5 else len(content)))
    size = int(rng.integers(1, 9))
    match int(rng.integers(7)):
        case 0:
            del content[place:]
        case 1:
            content[place] ^= 1 << int(rng.integers(8))
        case 2:
            content[place : place + size] = rng.bytes(size)
        case 3:
            value = int(rng.choice(EXTREMES))
            content[place : place + 4] = value.to_bytes(4, "little" if rng.random() < 0.5 else "big")
        case 4:
            content[place:place] = rng.bytes(size)
        case 5:
            del content[place : place + size]
        case 6:
            start = int(rng.integers(len(other)))
            content[place : place + 16] = other[start : start + 16]
    return bytes(content)


Loading = Callable[[Path, bytes], "data.Dataset"]


def _load_image(folder: Path, content: bytes) -> data.Dataset:
    for k, image in enumerate((*map(png, COLOURS[:3]), content)):
        path = folder / "ab"[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
    return data.load(folder, channels=3, **SETTINGS)


def _load_parquet(folder: Path, content: bytes) -> data.Dataset:
    folder.mkdir()
    (folder / "train.parquet").write_bytes(content)
    streamed = data.load(folder, stream=True, **SETTINGS)
    _ = streamed.train.images
    return data.load(folder, **SETTINGS)


def _load_npz(folder: Path, content: bytes) -> data.Dataset:
    folder.mkdir()
    (folder / "x.npz").write_bytes(content)
    return data.load(folder / "x.npz", **SETTINGS)


def _load_cache(part: str) -> Loading:
    """A set whose cache was harmed."""

    def load(folder: Path, content: bytes) -> data.Dataset:
        _load_image(folder, png(COLOURS[3]))
        [path] = (folder.parent / "cache" / "data").glob(f"*/{part}")
        path.write_bytes(content)
        return data.load(folder, channels=3, **SETTINGS)

    return load


def _parquet() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = write_parquet(
            Path(folder) / "x.parquet", [*map(png, COLOURS)], LABELS, names=["a", "b"], rows=2
        )
        return path.read_bytes()


def _npz(**options: Any) -> bytes:
    buffer = io.BytesIO()
    save = np.savez_compressed if options else np.savez
    save(buffer, images=COLOURS, labels=np.array(LABELS))
    return buffer.getvalue()


def _cached() -> dict[str, bytes]:
    with _place() as place:
        _load_image(place / "set", png(COLOURS[3]))
        [folder] = (place / "cache" / "data").iterdir()
        return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def kinds() -> dict[str, tuple[bytes, Loading]]:
    """Name -> (a valid file, what loads it from a folder)."""
    found: dict[str, tuple[bytes, Loading]] = {name: (good, _load_image) for name, good in images().items()}
    found |= {"parquet": (_parquet(), _load_parquet)}
    found |= {"npz": (_npz(), _load_npz), "npz-packed": (_npz(packed=True), _load_npz)}
    return found | {f"cache {name}": (good, _load_cache(name)) for name, good in _cached().items()}


@contextmanager
def _place() -> Iterator[Path]:
    """An empty folder with a cache of its own."""
    place = Path(tempfile.mkdtemp(prefix="mutated-"))
    try:
        with mock.patch.dict(os.environ, {"BIVALLATE_CACHE": str(place / "cache")}):
            yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def attempt(kind: str, number: int, content: bytes, load: Loading) -> Result:
    """Loads the content as a file of that kind."""
    with _place() as place:
        try:
            loaded = load(place / "set", content)
            for split in (loaded.train, loaded.test):
                x, y = split.tensors()
                assert x.shape == (len(split), *loaded.shape), x.shape
                assert 0 <= float(x.min()) <= float(x.max()) <= 1
                assert 0 <= int(y.min()) <= int(y.max()) < len(loaded.classes)
        except UserError as error:
            one_line = "\n" not in str(error)
            return Result(kind, number, "refused" if one_line else "several lines", str(error))
        except Exception as error:
            return Result(kind, number, type(error).__name__, str(error))
    return Result(kind, number, "loaded")


def cases(count: int, seed: int) -> Iterator[tuple[str, int, bytes, Loading]]:
    """`count` harmed files, the kinds in turn; each depends on the seed and its number alone."""
    every = kinds()
    names = list(every)
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        name, other = names[number % len(names)], names[int(rng.integers(len(names)))]
        good, load = every[name]
        yield name, number, mutated(good, every[other][0], rng), load


def run(count: int, seed: int) -> tuple[list[Result], int]:
    """(results, kilobytes by which the largest resident memory rose)."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    results = [attempt(*case) for case in cases(count, seed)]
    return results, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before


def faults(results: list[Result], grown: int) -> list[str]:
    """What should not have been."""
    found = [
        f"case {r.number} ({r.kind}): {r.outcome}: {r.message}"
        for r in results
        if r.outcome not in ("loaded", "refused")
    ]
    return [*found, f"memory grew by {grown} kB"] if grown > MOST_MEMORY else found


def main(count: int = 1000, seed: int = 0) -> int:
    """Prints how many cases ended how, and every fault; returns the number of faults."""
    results, grown = run(count, seed)
    for kind in dict.fromkeys(result.kind for result in results):
        ended = Counter(result.outcome for result in results if result.kind == kind)
        print(f"{kind:<20}", ", ".join(f"{outcome} {n}" for outcome, n in sorted(ended.items())))
    wrong = faults(results, grown)
    print(*wrong, f"{len(results)} mutated data files, {len(wrong)} faults, memory + {grown} kB", sep="\n")
    return len(wrong)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    sys.exit(1 if main(chosen.count, chosen.seed) else 0)
