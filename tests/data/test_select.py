"""Selection of rows: proportions are kept, no row is lost or doubled, and equal seeds give equal rows."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bivallate.data import Split, from_tensors, holdout, imbalance, mix
from bivallate.data.select import shared
from bivallate.errors import UserError


def with_counts(counts: list[int]) -> Split:
    labels = torch.cat([torch.full((n,), k) for k, n in enumerate(counts)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    return from_tensors((np.arange(len(labels)) % 256).astype(np.uint8).reshape(-1, 1, 1, 1), labels)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(lambda c: sum(c) > 1), st.data())
def test_holdout_partitions_in_proportion(counts: list[int], draw: st.DataObject) -> None:
    split = with_counts(counts)
    n = draw.draw(st.integers(1, len(split) - 1))
    rest, held = holdout(split, n, 0)
    assert len(held) == n
    assert torch.cat([rest.index, held.index]).sort().values.tolist() == list(range(len(split)))
    assert torch.equal(split.labels[held.index], held.labels)
    kinds = sum(c > 0 for c in counts)
    if n <= len(split) - kinds:  # then no class need be used up
        assert all(left > 0 for left, c in zip(rest.counts(len(counts)), counts, strict=True) if c)
    if min(counts) * (len(split) - n) >= len(split):  # no class is so small that the cap binds
        exact = np.array(counts) * n / len(split)
        assert np.abs(np.array(held.counts(len(counts))) - exact).max() < 1


def test_bilaw_takes_two_sets_from_training() -> None:
    split = with_counts([100, 100, 100])
    rest, meta = holdout(split, 60, 0, "meta")
    rest, early = holdout(rest, 60, 0, "early stopping")
    assert meta.counts(3) == early.counts(3) == [20, 20, 20]
    assert rest.counts(3) == [60, 60, 60]
    assert len(torch.cat([meta.index, early.index, rest.index]).unique()) == 300


def test_holdout_is_a_function_of_seed_and_purpose() -> None:
    split = with_counts([50, 50])
    held = [holdout(split, 0.2, seed, purpose)[1].index for seed in (0, 1) for purpose in ("a", "b")]
    assert len({tuple(h.tolist()) for h in held}) == 4
    assert torch.equal(holdout(split, 0.2, 1, "a")[1].index, held[2])


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("step:0.2", [20, 20, 100, 100, 100]),
        ("step:1", [100] * 5),
        ("longtail:0.01", [100, 32, 10, 3, 1]),
        ("step:0.001", [1, 1, 100, 100, 100]),
    ],
)
def test_imbalance(spec: str, expected: list[int]) -> None:
    split = with_counts([100] * 5)
    thin = imbalance(split, spec, 5, 0)
    assert thin.counts(5) == expected
    assert len(thin.index.unique()) == len(thin)
    assert torch.equal(split.labels[thin.index], thin.labels)
    assert torch.equal(imbalance(split, spec, 5, 0).index, thin.index)
    if len(thin) < len(split):
        assert not torch.equal(imbalance(split, spec, 5, 1).index, thin.index)


def test_extra_data_at_a_ratio() -> None:
    split, extra = with_counts([30, 30]), with_counts([100, 100])
    mixed = mix(split.subset(slice(0, 40)), extra, 0.6, 0)
    assert len(mixed) == 100
    added = mixed.index >= 60
    assert int(added.sum()) == 60
    assert torch.equal(mixed.labels[added], extra.labels[mixed.index[added] - 60])
    assert np.array_equal(mixed.images[added.numpy()], extra.images[(mixed.index[added] - 60).numpy()])
    assert np.array_equal(mixed.images[~added.numpy()], split.images[mixed.index[~added].numpy()])
    assert mixed.subset(slice(0, 3)).images.shape == (3, 1, 1, 1)
    with pytest.raises(UserError, match=r"needs 540 extra rows of 200: use at most 0.769"):
        mix(split, extra, 0.9, 0)
    with pytest.raises(UserError, match="share of extra data"):
        mix(split, extra, 1.0, 0)
    with pytest.raises(UserError, match="must look like"):
        mix(split, from_tensors(torch.zeros(1, 1, 1, 1), [0]), 0.1, 0)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 5), (1, 8, 8)])
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_shared_images_are_found_and_no_others(shape: tuple[int, ...], kind: type) -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 2, (40, *shape)).astype(kind)
    other = generator.integers(0, 2, (40, *shape)).astype(kind)
    other[7] = images[11]
    split, rest = from_tensors(images, [0] * 40).subset(slice(5, 40)), from_tensors(other, [0] * 40)
    wanted = [k for k in range(35) if any(np.array_equal(images[k + 5], x) for x in other)]
    assert shared(split, rest).tolist() == wanted
    assert 6 in wanted
    assert shared(split, rest.subset(slice(0, 0))).tolist() == []


def test_pixels_that_change_places_make_another_image() -> None:
    images = np.zeros((2, 1, 4, 8), np.uint8)
    images[0, 0, 0, 0] = images[1, 0, 1, 0] = 9
    assert shared(from_tensors(images[:1], [0]), from_tensors(images[1:], [0])).tolist() == []
