"""Randomness is a function of seed, purpose, epoch, turn and row, and looks random."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from bivallate.evaluation.turn_noise import TURN, TurnNoise
from bivallate.noise import Noise, permutation

SHAPE = (2, 3, 4)
KINDS = ("uniform", "normal", "sign")
OF_ALL_VERSIONS = [
    823690654,
    -1325435611,
    -233073010,
    -1139392575,
    249066658,
    -832199728,
    1763620214,
    1350962471,
    1531093417,
    1044828671,
    -1774195663,
    -364298992,
]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_carry_their_draws(kind) -> None:
    index = torch.tensor([5, 0, 2**40, 7, 1])
    whole = getattr(Noise(3, index, 2, 1), kind)("start", SHAPE)
    for rows in (torch.tensor([4, 3, 2, 1, 0]), torch.tensor([1]), torch.tensor([0, 0, 3])):
        assert torch.equal(getattr(Noise(3, index[rows], 2, 1), kind)("start", SHAPE), whole[rows])
    state = torch.get_rng_state()
    getattr(Noise(3, index), kind)("start", SHAPE)
    assert torch.equal(state, torch.get_rng_state())


def test_everything_else_changes_the_draws() -> None:
    index = torch.arange(64)
    base = Noise(3, index, 2, 1).uniform("start", SHAPE)
    others = [
        Noise(4, index, 2, 1).uniform("start", SHAPE),
        Noise(3, index + 64, 2, 1).uniform("start", SHAPE),
        Noise(3, index, 3, 1).uniform("start", SHAPE),
        Noise(3, index, 2, 2).uniform("start", SHAPE),
        Noise(3, index, 1, 2).uniform("start", SHAPE),
        Noise(3, index, 2, 1).uniform("other", SHAPE),
        Noise(-3, index, 2, -1).uniform("start", SHAPE),
    ]
    for other in others:
        assert (base == other).float().mean() < 0.01
        correlation = float(torch.corrcoef(torch.stack([base.flatten(), other.flatten()]))[0, 1])
        assert abs(correlation) < 0.08


@pytest.mark.parametrize("kind", KINDS)
def test_precision_changes_no_draw(kind) -> None:
    noise = Noise(0, torch.arange(50))
    single, double = (getattr(noise, kind)("start", SHAPE, dtype) for dtype in (torch.float32, torch.float64))
    assert single.dtype == torch.float32
    if kind == "normal":
        assert torch.allclose(single.double(), double, atol=1e-5)
    else:
        assert torch.equal(single.double(), double)


def test_distributions() -> None:
    noise = Noise(1, torch.arange(2000))
    u = noise.uniform("u", (50,), torch.float64)
    assert 0 < u.min() < u.max() < 1
    assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > 1e-3
    assert stats.kstest(u[:, 7].numpy(), "uniform").pvalue > 1e-3
    n = noise.normal("n", (50,), torch.float64)
    assert n.isfinite().all()
    assert stats.kstest(n.flatten().numpy(), "norm").pvalue > 1e-3
    s = noise.sign("s", (50,))
    assert set(s.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(s.mean())) < 5 / 100_000**0.5
    k = noise.integers("k", 2, 7, (50,))
    assert set(k.unique().tolist()) == {2, 3, 4, 5, 6}
    assert stats.chisquare(k.flatten().bincount()[2:].numpy()).pvalue > 1e-3


def test_neighbours_are_independent() -> None:
    u = Noise(0, torch.arange(4000)).uniform("u", (8,), torch.float64)
    rows, columns = torch.corrcoef(u[:200]), torch.corrcoef(u.T)
    assert (columns - torch.eye(8)).abs().max() < 5 / 4000**0.5
    assert (rows - torch.eye(200)).abs().max() < 1.0
    lag = torch.stack([u[:-1].flatten(), u[1:].flatten()])
    assert abs(float(torch.corrcoef(lag)[0, 1])) < 5 / lag.shape[1] ** 0.5
    assert len(u.flatten().unique()) > 0.99 * u.numel()


def test_permutation() -> None:
    one = permutation(0, "order", 3, 1000)
    assert torch.equal(one.sort().values, torch.arange(1000))
    assert torch.equal(one, permutation(0, "order", 3, 1000))
    for other in ((1, "order", 3), (0, "orders", 3), (0, "order", 4)):
        assert (permutation(*other, 1000) == one).sum() < 12
    first = torch.tensor([int(permutation(0, "order", e, 10)[0]) for e in range(500)])
    assert stats.chisquare(first.bincount(minlength=10).numpy()).pvalue > 1e-3


def test_known_values_stay() -> None:
    """A run must give the same numbers after an upgrade."""
    drawn = Noise(0, torch.tensor([0, 1, 10**6]), 1, 2).uniform("start", (2,), torch.float64)
    bits = ((drawn * 2**23) - 0.5).long()
    assert torch.equal(bits, torch.tensor([[3123227, 3976337], [6851240, 2115001], [2520990, 6330976]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_symmetric_draw_is_the_uniform_one_moved(dtype) -> None:
    noise = Noise(3, torch.tensor([5, 0, 2**40]), 2, 1)
    moved = 0.031 * (2 * noise.uniform("start", SHAPE, dtype) - 1)
    assert torch.equal(noise.symmetric("start", SHAPE, dtype, 0.031), moved)


@pytest.mark.parametrize("kind", ["uniform", "symmetric", "normal", "sign", "integers"])
def test_rows_of_several_turns_draw_as_each_turn_alone(kind) -> None:
    rows, turns = torch.tensor([5, 0, 9, 5, 2**39]), torch.tensor([1, 0, 2, 0, 1])
    arguments = (0, 9, SHAPE) if kind == "integers" else (SHAPE, torch.float64)
    several = TurnNoise(3, rows + TURN * turns, 2)
    drawn = getattr(several, kind)("start", *arguments)
    for i, turn in enumerate(turns.tolist()):
        alone = getattr(Noise(3, rows[i : i + 1], 2, turn), kind)("start", *arguments)
        assert torch.equal(drawn[i : i + 1], alone)
    if kind == "symmetric":
        drawn = several.symmetric("start", SHAPE, radius=0.031)
        assert torch.equal(drawn, 0.031 * (2 * several.uniform("start", SHAPE) - 1))


def test_draws_are_what_they_were() -> None:
    """Of all versions: a run that is resumed under another one goes on with the same noise."""
    noise = Noise(3, torch.tensor([5, 0, 2**40]), 2, 1)
    bits = noise._bits("start", (2, 2)).flatten().tolist()
    assert bits == OF_ALL_VERSIONS
