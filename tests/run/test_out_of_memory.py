"""Held-out images are measured in batches that fit, to the same verdicts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bivallate as bv
from bivallate.errors import UserError
from bivallate.evaluation import batch_size
from bivallate.noise import Noise
from bivallate.run import out_of_memory, validation
from bivallate.run.out_of_memory import in_pieces, room_for

CPU = torch.device("cpu")


class Small(nn.Module):
    """A network on a device with room for so many images."""

    def __init__(self, room: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.room, self.most = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), room, 0

    def forward(self, x):
        if len(x) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB.")
        self.most = max(self.most, len(x))
        return self.body(x)


@pytest.mark.parametrize(
    ("n", "size", "room", "pieces"),
    [
        (10, 4, 100, [(0, 4), (4, 8), (8, 10)]),
        (10, 8, 3, [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10)]),
        (0, 4, 1, []),
        (3, 500, 2, [(0, 1), (1, 2), (2, 3)]),
    ],
)
def test_pieces_are_halved_until_they_fit(n, size, room, pieces):
    done = []

    def work(start, stop):
        if stop - start > room:
            raise MemoryError
        done.append((start, stop))

    fits = in_pieces(n, size, work)
    assert done == pieces
    assert fits <= size
    assert fits == size or fits <= room


def test_where_not_even_one_fits_it_is_said():
    def work(start, stop):
        raise MemoryError

    with pytest.raises(UserError, match="not even one held-out image fits"):
        in_pieces(5, 4, work)
    with pytest.raises(ZeroDivisionError):
        in_pieces(5, 4, lambda start, stop: 1 // 0)


def test_held_out_images_that_do_not_fit_at_once_give_the_same_numbers():
    split, ball = bv.data.load("digits").test, bv.Linf(0.05)
    rows = list(range(0, 300, 2))
    images, labels = split.tensors(torch.arange(100))
    found = []
    for room in (500, 70):
        model = Small(room)
        measured = validation.held_out(model, split, (ball,), steps=3, rows=300, seed=0, device=CPU)
        seen = validation.inspect_rows(model, images, labels, ball, Noise(0, torch.arange(100)), 2)
        margins = validation.clean_margins(model, split, rows, CPU)
        assert model.most <= room
        found.append((measured, seen, margins))
    (one, seen, margins), (other, again, more) = found
    assert one == other, "accuracies and passes: what has failed does not count"
    assert (seen.fgsm, seen.pgd, seen.passes) == (again.fgsm, again.pgd, again.passes)
    assert seen.alignment == pytest.approx(again.alignment, abs=1e-6)
    assert margins == pytest.approx(more, abs=1e-5)


@pytest.mark.parametrize(("images", "chosen"), [(10_000, 500), (499, 250), (60, 31), (0.5, 1)])
def test_the_room_is_estimated_before_it_runs_out(monkeypatch, images, chosen):
    model, one = Small(500), torch.rand(1, 1, 8, 8)
    need = batch_size.example_bytes(model, one)
    monkeypatch.setattr(out_of_memory, "free_bytes", lambda device: int(images * need))
    assert room_for(model, one, 500) == chosen


def test_memory_that_torch_holds_is_free_to_us(monkeypatch):
    for name, value in (("memory_reserved", 9), ("memory_allocated", 4), ("mem_get_info", (100, 200))):
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert batch_size.free_bytes(torch.device("cuda")) == 105
