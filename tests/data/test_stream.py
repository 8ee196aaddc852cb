"""Streaming gives the same pixels as the cache, each row once, in an order that can be resumed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.data.builders import pictures, png, write_parquet

from bivallate import data
from bivallate.data import Augment, Batches, Split, Stream
from bivallate.data.decode import Reading
from bivallate.data.parquet import ParquetPart
from bivallate.errors import UserError

CROP = Augment(pad=1, flip=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """60 rows in 15 row groups of 4."""
    images = [png(i) for i in pictures(60)]
    write_parquet(tmp_path / "many" / "train.parquet", images, [k % 3 for k in range(60)])
    write_parquet(tmp_path / "many" / "test.parquet", images[:6], [0, 1, 2, 0, 1, 2])
    return tmp_path / "many"


@pytest.mark.parametrize("workers", [0, 1])
def test_equals_the_cached_set(folder: Path, workers: int) -> None:
    streamed = data.load(folder, stream=True, workers=workers)
    cached = data.load(folder)
    assert isinstance(streamed.train.store, Stream)
    assert torch.equal(streamed.train.index, cached.train.index)
    assert streamed.mean == pytest.approx(cached.mean)
    assert streamed.std == pytest.approx(cached.std)
    batches = Batches(streamed.train, 10, 0, CROP)
    epoch = list(batches.epoch(1))
    index = torch.cat([b.index for b in epoch])
    assert index.sort().values.tolist() == list(range(len(cached.train)))
    for batch in epoch:
        x, y = cached.train.tensors(batch.index)
        assert torch.equal(batch.x, CROP.cut(x, batch.view))
        assert torch.equal(batch.y, y)
    if workers == 0:  # starting processes again would take seconds and follow the same order
        for late, early in zip(batches.epoch(1, 3), epoch[3:], strict=True):
            assert torch.equal(late.x, early.x)
    assert np.array_equal(streamed.test.images, cached.test.images)


def test_the_order_is_shuffled_over_blocks_and_rows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bivallate.data.stream.WINDOW_BYTES", 3 * 4 * 192)  # windows of three blocks
    train = data.load(folder, stream=True, workers=0, validation=0).train
    assert isinstance(train.store, Stream)
    order = train.store.order(train.index, 0, 0)
    assert order.sort().values.tolist() == list(range(60))
    pools = (order // 4).view(5, 12)
    assert all(len(pool.unique()) == 3 for pool in pools)
    assert pools.flatten().diff().abs().sum() > 60  # rows of a pool's blocks are mixed
    for seed, epoch in ((1, 0), (0, 1)):
        assert not torch.equal(train.store.order(train.index, seed, epoch), order)
    few = train.subset(torch.arange(0, 60, 7))
    assert train.store.order(few.index, 0, 0).sort().values.tolist() == list(range(9))


def test_ranks_stream_their_rows(folder: Path) -> None:
    train = data.load(folder, stream=True, workers=0, validation=0).train
    epochs = [list(Batches(train, 12, 0, rank=r, world=2).epoch(0)) for r in range(2)]
    index = torch.cat([b.index for e in epochs for b in e])
    assert index.sort().values.tolist() == list(range(60))
    for step, alone in enumerate(Batches(train, 12, 0).epoch(0)):
        assert all(torch.equal(e[step].index, alone.index[r::2]) for r, e in enumerate(epochs))


def test_a_bad_row_is_named_when_it_comes_up(folder: Path) -> None:
    images = [png(i) for i in pictures(60)]
    images[37] = images[37][:50]
    write_parquet(folder / "train.parquet", images, [k % 3 for k in range(60)])
    for workers in (0, 1):
        encoded = ParquetPart([folder / "train.parquet"]).read(Reading(), None)
        train = Split(Stream(encoded, Reading(), workers), torch.from_numpy(encoded.labels), torch.arange(60))
        with pytest.raises(UserError, match=r"row 37 of train.parquet cannot be decoded"):
            list(Batches(train, 10, 0).epoch(0))
    with pytest.raises(UserError, match="cannot be skipped"):
        data.load(folder, stream=True, on_bad="skip")


def test_missing_labels_are_named_at_once(folder: Path) -> None:
    write_parquet(folder / "train.parquet", [png(i) for i in pictures(6)], [0, 1, 2, 0, None, 2])
    with pytest.raises(UserError, match=r"row 4 of train.parquet has no label"):
        data.load(folder, stream=True)


def test_image_folders_stream_too(image_folder: Path) -> None:
    streamed = data.load(image_folder, stream=True, workers=0)
    cached = data.load(image_folder)
    assert np.array_equal(streamed.train.images, cached.train.images)
