"""Tiny data sets on disk."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from tests.data.builders import pictures, png, write_parquet


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIVALLATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("BIVALLATE_DATA", raising=False)


@pytest.fixture
def parquet_set(tmp_path: Path) -> Path:
    """30 training images in two shards and 6 test images, 8x8 colour, 3 classes."""
    folder = tmp_path / "animals"
    images = pictures(36)
    for part, (start, stop) in enumerate(((0, 14), (14, 30))):
        rows = range(start, stop)
        path = folder / f"train-{part:05d}-of-00002.parquet"
        write_parquet(path, [png(images[k]) for k in rows], [k % 3 for k in rows])
    write_parquet(folder / "test.parquet", [png(i) for i in images[30:]], [0, 1, 2, 0, 1, 2])
    return folder


@pytest.fixture
def make_parquet(tmp_path: Path) -> Callable[..., Path]:
    """Writes a folder with one train.parquet of the given images and labels."""

    def make(images: list[bytes | None], labels: list | pa.Array, **options: object) -> Path:
        return write_parquet(tmp_path / "bad" / "train.parquet", images, labels, **options).parent  # type: ignore[arg-type]

    return make


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """10 images of each of two classes, class/image.png."""
    folder = tmp_path / "photos"
    for label, name in enumerate(("apple", "pear")):
        (folder / name).mkdir(parents=True)
        for k, image in enumerate(pictures(10, seed=label)):
            (folder / name / f"{k:02d}.png").write_bytes(png(image))
    return folder
