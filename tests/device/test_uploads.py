"""The cost of bringing a minibatch to the device; the minibatch is the same wherever the images are."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import pytest
import torch

import bivallate as bv
from bivallate.data import Augment, Batches
from bivallate.data.resident import resident
from bivallate.run.config import Config, Data
from bivallate.run.execution import execute
from bivallate.run.progress import Progress

SHOWN = "crop:1,flip,cutout:2", "none", "shift:2,flip,colors:color,erase:0.5"


def images(rows: int = 70) -> bv.data.Dataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (rows, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return bv.data.load((x, torch.arange(rows) % 3), validation=0.2)


def shown(device: str, wanted: str, augment: str, meta: bool = False) -> tuple[list[list[Any]], int]:
    """Two epochs of minibatches, and the uploads of the second."""
    from tests.device import standin

    split, place = images().train, torch.device(device)
    there = resident(split, place, wanted)
    second = split.subset(slice(0, 20)) if meta else None
    kept = {"device": device, "resident": there, "meta": second, "meta_batch_size": 8 if meta else None}
    batches = Batches(split, 16, 3, Augment.parse(augment), **kept)
    found = []
    for epoch in range(2):
        standin.log.uploads.clear()
        found += [
            [t.cpu().numpy() for t in (b.x, b.y, b.index) + ((b.meta.x, b.meta.y) if b.meta else ())]
            for b in batches.epoch(epoch, start_step=epoch)
        ]
    return found, sum(standin.log.uploads.values())


def read_only(wanted: str) -> list[int]:
    """The images on the device of stores on disk, which nobody may write: of some rows, and of all."""
    split, found = images().train, list[int]()
    rows = torch.arange(len(split))
    for part in (split, dataclasses.replace(split, store=split.store[: len(split)], index=rows)):
        array: Any = part.store
        array.flags.writeable = False
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            there = resident(part, torch.device("cuda"), wanted)
        assert there is not None
        found.append(len(there.images))
    return found


@pytest.mark.parametrize("wanted", ["always", "auto"])
def test_images_that_nobody_may_write_go_up_without_a_warning(card, wanted: str) -> None:
    assert card(read_only, wanted) == [45, 45]


@pytest.mark.parametrize("augment", SHOWN)
@pytest.mark.parametrize("wanted", ["always", "never"])
def test_minibatches_are_the_processor_s(card, wanted: str, augment: str) -> None:
    there, uploads = card(shown, "cuda", wanted, augment)
    here, _ = shown("cpu", wanted, augment)
    assert len(there) == len(here) == 5
    for a, b in zip(there, here, strict=True):
        assert all((p == q).all() for p, q in zip(a, b, strict=True))
    if "colors" not in augment:  # a change of colour has numbers of its own
        assert uploads <= {"always": 1, "never": 3}[wanted]  # of an epoch, or one a minibatch


def test_the_second_stream_comes_in_one_copy(card) -> None:
    there, uploads = card(shown, "cuda", "always", "crop:1,flip", True)
    here, _ = shown("cpu", "always", "crop:1,flip", True)
    assert all((p == q).all() for a, b in zip(there, here, strict=True) for p, q in zip(a, b, strict=True))
    assert uploads <= 1 + 3


class Counting(Progress):
    """Uploads up to each minibatch."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def step(self, *_: Any) -> None:
        from tests.device import standin

        self.seen.append(sum(standin.log.uploads.values()))


def trained(wanted: str) -> list[int]:
    counting = Counting()
    data = images(104)
    config = Config(bv.methods.at(bv.Linf(0.1), steps=2), data=Data(resident=wanted), epochs=1, batch_size=8)
    model = bv.models.create("linear", num_classes=3, shape=(1, 8, 8), seed=0)
    execute(config.set("device", "cuda"), data, model, None, progress=counting)
    return counting.seen


@pytest.mark.parametrize(("wanted", "most"), [("auto", 0), ("never", 1)])
def test_a_step_of_a_training_uploads_no_more_than_its_minibatch(card, wanted: str, most: int) -> None:
    seen = card(trained, wanted)
    assert len(seen) >= 8
    assert seen[-2] - seen[1] <= most * (len(seen) - 3)
