"""Minibatches: each row once, a start at any position, augmentation by row, ranks, the second stream."""

import pytest
import torch

from bivallate.data import Augment, Batches, Split, from_tensors
from bivallate.errors import UserError
from bivallate.noise import Noise, permutation
from bivallate.types import Batch

CROP = Augment(pad=2, flip=True)


def make(n: int = 50, seed: int = 0) -> Split:
    generator = torch.Generator().manual_seed(seed)
    return from_tensors(torch.rand(n, 3, 8, 8, generator=generator), torch.arange(n) % 5)


def same(a: Batch, b: Batch) -> bool:
    return torch.equal(a.x, b.x) and torch.equal(a.y, b.y) and torch.equal(a.index, b.index)


def test_each_row_once_in_the_stated_order() -> None:
    split = make()
    batches = list(Batches(split, 16, 3).epoch(4))
    assert [len(b.y) for b in batches] == [16, 16, 16, 2]
    index = torch.cat([b.index for b in batches])
    assert torch.equal(index, permutation(3, "shuffle", 4, 50))
    x, y = split.tensors(index)
    assert torch.equal(torch.cat([b.x for b in batches]), x)
    assert torch.equal(torch.cat([b.y for b in batches]), y)
    assert batches[0].view is None
    assert len(Batches(split, 16, 3)) == 4
    assert (
        len(Batches(split, 16, 3, drop_last=True))
        == 3
        == len(list(Batches(split, 16, 3, drop_last=True).epoch(0)))
    )


def test_any_position_can_be_entered() -> None:
    batches = Batches(make(), 16, 0, CROP, meta=make(20, 1), meta_batch_size=8)
    whole = list(batches.epoch(3))
    for start in range(5):
        for late, early in zip(batches.epoch(3, start), whole[start:], strict=True):
            assert same(late, early)
            assert late.meta is not None
            assert early.meta is not None
            assert same(late.meta, early.meta)


def test_augmentation_hangs_on_the_row_not_on_its_place() -> None:
    split = make()
    small = {
        int(i): x for b in Batches(split, 4, 0, CROP).epoch(2) for i, x in zip(b.index, b.x, strict=True)
    }
    large = {
        int(i): x for b in Batches(split, 32, 0, CROP).epoch(2) for i, x in zip(b.index, b.x, strict=True)
    }
    assert all(torch.equal(small[k], large[k]) for k in range(50))
    x, _ = CROP(split.tensors()[0], Noise(0, torch.arange(50), 2))
    assert torch.equal(x, torch.stack([small[k] for k in range(50)]))
    other = next(Batches(split, 50, 0, CROP).epoch(3))
    assert not torch.equal(other.x, x[other.index])


def test_the_view_says_how_x_was_cut() -> None:
    split = make()
    for batch in Batches(split, 16, 0, CROP).epoch(0):
        assert torch.equal(batch.view.apply(CROP.canvas(split.tensors(batch.index)[0])), batch.x)


@pytest.mark.parametrize(
    ("n", "size", "world"),
    [(50, 16, 2), (53, 16, 4), (33, 16, 2), (97, 12, 3), (33, 16, 1), (34, 16, 1), (35, 16, 2), (50, 49, 1)],
)
def test_ranks_share_the_rows(n: int, size: int, world: int) -> None:
    split = make(n)
    ranks = [Batches(split, size, 0, CROP, rank=r, world=world) for r in range(world)]
    epochs = [list(r.epoch(1)) for r in ranks]
    assert len({len(e) for e in epochs}) == 1 == len({len(r) for r in ranks})
    for epoch in epochs:
        assert min(len(b.y) for b in epoch) >= 2  # BatchNorm needs two
    assert len(epochs[0]) == n // size + (n % size >= 2 * world)  # too short a last one joins its neighbour
    for rank, whole in zip(ranks, epochs, strict=True):
        assert same(next(rank.epoch(1, len(whole) - 1)), whole[-1])
    alone = list(Batches(split, size, 0, CROP).epoch(1))
    joined = len(alone) - len(epochs[0])  # where one process still has a short last one
    for step, shares in enumerate(zip(*epochs, strict=True)):
        parts = alone[step:] if joined and step == len(epochs[0]) - 1 else alone[step : step + 1]
        index, x = torch.cat([b.index for b in parts]), torch.cat([b.x for b in parts])
        for r, share in enumerate(shares):
            assert share.whole == len(index)
            assert torch.equal(share.index, index[r::world])
            assert torch.equal(share.x, x[r::world])


def test_ranks_that_normalise_together_keep_short_minibatches() -> None:
    lengths = [
        [len(b.y) for b in Batches(make(35), 16, 0, rank=r, world=2, fewest=1).epoch(0)] for r in (0, 1)
    ]
    assert lengths == [[8, 8, 2], [8, 8, 1]]
    assert len(Batches(make(33), 16, 0, world=1, fewest=1)) == 2  # a row alone still is too few


def test_the_second_stream_cycles_with_its_own_order() -> None:
    meta = make(20, 1)
    batches = Batches(make(), 16, 0, CROP, meta=meta, meta_batch_size=8)
    metas = [b.meta for e in range(3) for b in batches.epoch(e)]
    assert all(m is not None and len(m.y) == 8 for m in metas)
    cycles = [torch.cat([m.index for m in metas[k : k + 2] if m is not None]) for k in range(0, 12, 2)]
    assert all(len(c.unique()) == 16 for c in cycles)
    assert not torch.equal(cycles[0], cycles[1])
    first = metas[0]
    assert first is not None
    assert torch.equal(first.view.apply(CROP.canvas(meta.tensors(first.index)[0])), first.x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 51}, "batch size 51 does not fit the training data of 50 rows.*between 1 and 50"),
        ({"batch_size": 0}, "between 1 and 50"),
        ({"batch_size": 8, "meta": make(5)}, "second stream of 5 rows"),
        ({"batch_size": 8, "rank": 2, "world": 2}, "rank 2 of 2"),
        ({"batch_size": 3, "world": 2}, "at least 4"),
        ({"batch_size": 8, "split": make().subset(slice(0, 0))}, "training data has no rows"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Batches(**{"split": make(), "seed": 0, **options})


def test_no_seed_no_order_alike() -> None:
    batches = [next(Batches(make(), 50, seed).epoch(epoch)).index for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(b.tolist()) for b in batches}) == 4
