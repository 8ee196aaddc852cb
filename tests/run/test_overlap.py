"""Gradient sums during the backward pass, and shared held-out rows, give the results of one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tests.ranks import in_processes
from tests.run.torchrun_script import digits

import bivallate as bv
from bivallate import collective, gradient_sums
from bivallate.gradient_sums import overlapping, summed
from bivallate.run.validation import held_out

THREAT = bv.Linf(0.05)
METHODS = {  # all-reduces of a step in buckets of any size
    "at": bv.methods.at(THREAT, steps=2),
    "free-at": bv.methods.free_at(THREAT, replays=2),
    "fast-bat": bv.methods.fast_bat(THREAT),
}


def network() -> bv.models.Classifier:
    return bv.models.create("tiny-cnn", num_classes=10, shape=(1, 8, 8), seed=0)


def trains(rank: int, folder: Path) -> None:
    """Three trainings' weights in one bucket and in several, and the all-reduces of each."""
    own, counts = dist.all_reduce, list[bool]()

    def noted(*args, async_op: bool = False, **options):
        counts.append(async_op)
        return own(*args, async_op=async_op, **options)

    data = digits()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "all_reduce", noted)
        for name, method in METHODS.items():
            for size in (1 << 30, 4000):
                patch.setattr(gradient_sums, "BUCKET", size)
                counts.clear()
                run = bv.train(network(), data, method, epochs=1, batch_size=16, device="cpu", threads=1)
                if rank == 0:
                    kept = [p.detach() for p in run.model.parameters()]
                    torch.save((kept, sum(counts), len(counts)), folder / f"{name}-{size}.pt")
    assert not any(p._post_accumulate_grad_hooks for p in run.model.parameters())


def test_sums_under_way_are_the_sums(tmp_path) -> None:
    in_processes(2, trains, tmp_path)
    for name in METHODS:
        one, none, few = torch.load(tmp_path / f"{name}-{1 << 30}.pt")
        several, ahead, many = torch.load(tmp_path / f"{name}-4000.pt")
        assert none == 0
        assert ahead > 0
        assert many == few + ahead, "the rest goes in one as before"
        assert all(torch.allclose(a, b, rtol=0, atol=1e-6) for a, b in zip(one, several, strict=True)), name


def passes_twice(rank: int, folder: Path) -> None:
    """A gradient that is added to after it was sent."""
    layers = torch.nn.Sequential(*[torch.nn.Linear(3, 3, bias=False) for _ in range(4)]).double()
    x = torch.full((2, 3), rank + 1.0, dtype=torch.double)
    expected, found = [], []
    for size, into in ((1 << 30, expected), (8, found)):
        gradient_sums.BUCKET = size
        layers.zero_grad()
        with overlapping(layers, once=True):
            for _ in range(2):
                layers(x).square().sum().backward()
            layers[3].weight.grad.mul_(2)
            summed(layers, torch.zeros(1, dtype=torch.double))
        into += [p.grad.clone() for p in layers.parameters()]
    assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(expected, found, strict=True))


def test_what_changes_after_it_was_sent_is_summed_anew(tmp_path) -> None:
    in_processes(2, passes_twice, tmp_path)


def measured() -> tuple[float, float, int, int]:
    model, split = network(), digits().test
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    clean, robust, passes = held_out(
        model, split, (THREAT,), steps=3, rows=37, seed=0, device=torch.device("cpu")
    )
    return clean, robust, passes.forward, passes.backward


def measures(rank: int, folder: Path) -> None:
    torch.save(measured(), folder / f"{collective.world_size()}-{rank}.pt")


@pytest.mark.parametrize("world", [2, 3])
def test_held_out_verdicts_are_those_of_one_process(tmp_path, world: int) -> None:
    in_processes(world, measures, tmp_path)
    alone = measured()
    assert all(torch.load(tmp_path / f"{world}-{rank}.pt") == alone for rank in range(world))
    assert 0 < alone[0] < 1
