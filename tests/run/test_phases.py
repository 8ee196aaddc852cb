"""Training in phases of image size and batch size: its minibatches, its resume, and what is refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import bivallate as bv
from bivallate.data import Augment, Batches
from bivallate.errors import UserError
from bivallate.run.config import Config, Model, Validation
from bivallate.run.optim import SGD
from bivallate.run.phases import Phase, phase_at
from bivallate.run.progress import Progress
from bivallate.run.rates import Pieces
from bivallate.run.recipes.published import recipe_for
from bivallate.run.signals import Interrupted
from bivallate.types import Clock

from .tiny import Radii, plan, run

NARROW = Model("resnet18", width=0.0625)
PHASES = (Phase(0.34, 0.5), Phase(0.67, 0.75, 0.5), Phase(1.0, 1.0, 0.25))


class Seen(Progress):
    """The sides of the images and the sizes of the minibatches of every epoch."""

    def __init__(self) -> None:
        self.steps: dict[int, set[int]] = {}

    def step(self, session, record, lr):
        self.steps.setdefault(session.epoch, set()).add(record.examples)


def phased(**changes) -> Config:
    method = bv.methods.fast_at(bv.Linf(0.1))
    basis = {"epochs": 3, "model": NARROW, "phases": PHASES, "optimizer": SGD(0.05)}
    return plan(method, **{**basis, "validation": Validation(1, 20), **changes})


def test_the_recipe_has_the_phases_and_rates_of_its_source_and_scales_with_the_data():
    method = bv.methods.fast_at(bv.Linf(2 / 255))
    config = recipe_for("imagenet", method, "imagenet")
    sides = [phase.sides((288, 288))[0] for phase in config.phases]
    sizes = [round(phase.batch * config.batch_size) for phase in config.phases]
    assert [phase_at(config.phases, e, 15) for e in (0, 5, 6, 11, 12, 14)] == [0, 0, 1, 1, 2, 2]
    assert (sides, sizes) == ([128, 224, 288], [512, 224, 128])
    rates = [0.4 * config.rate(Clock(epoch=e, epochs=15)) for e in (0, 1, 6, 12)]
    assert rates == pytest.approx([0, 0.4, 0.04, 0.004])
    assert (config.data.size, config.model.name, config.model.stem) == (288, "resnet50", "imagenet")
    assert recipe_for("imagenet", method, "cifar10").data.size is None
    with pytest.raises(UserError, match="places from 0 to 1"):
        Pieces((0.0, 0.5), (1.0, 1.0))


def test_every_phase_shows_its_own_size_and_resumes_to_the_bit(few, tmp_path):
    few = few.but(train=few.train.subset(slice(0, 96)))
    seen = Seen()
    whole = run(phased(), few, progress=seen)
    assert {epoch: max(sizes) for epoch, sizes in seen.steps.items()} == {0: 32, 1: 16, 2: 8}
    with pytest.raises(Interrupted):
        run(phased(), few, tmp_path / "run", Radii(stop=3 + 4))  # in the second phase
    again = bv.resume(tmp_path / "run", dataset=few)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name


def test_a_longer_run_keeps_its_phases_up_to_the_planned_end(few, tmp_path):
    few, seen = few.but(train=few.train.subset(slice(0, 64))), Seen()
    config = phased(model=Model("linear"), phases=tuple(dataclasses.replace(p, scale=1.0) for p in PHASES))
    with pytest.raises(Interrupted):
        run(config, few, tmp_path / "run", Radii(stop=2 + 1))  # in the second phase
    with pytest.warns(UserWarning, match="phases"):
        bv.resume(tmp_path / "run", dataset=few, epochs=6, progress=seen)
    assert {epoch: max(sizes) for epoch, sizes in seen.steps.items()} == {1: 16, 2: 8, 3: 16, 4: 8, 5: 8}


def test_images_are_scaled_after_their_crop_and_stay_images(few):
    plain = next(Batches(few.train, 16, 0, Augment(pad=1)).epoch(0))
    small = next(Batches(few.train, 16, 0, Augment(pad=1), sides=(4, 4)).epoch(0))
    assert (small.x.shape[2:], small.view) == ((4, 4), None)
    assert torch.equal(small.index, plain.index)
    assert 0 <= float(small.x.min()) <= float(small.x.max()) <= 1
    torch.testing.assert_close(small.x.mean((1, 2, 3)), plain.x.mean((1, 2, 3)), atol=0.03, rtol=0)
    same = next(Batches(few.train, 16, 0, Augment(pad=1), sides=(8, 8)).epoch(0))
    assert torch.equal(same.x, plain.x)
    assert same.view is not None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model": Model("fc1")}, "cannot take images of 4 x 4"),
        ({"method": bv.methods.atta(bv.Linf(0.1))}, "stored perturbations are of images of one size"),
        ({"phases": (Phase(0.5),)}, "the last until 1.0"),
        ({"phases": (Phase(0.5), Phase(0.5), Phase())}, "a larger fraction"),
    ],
)
def test_what_cannot_train_in_phases_says_so(few, change, told):
    with pytest.raises(UserError, match=told):
        run(dataclasses.replace(phased(), **change), few)


def test_phases_are_left_out_by_none():
    assert phased().set("phases", "none").phases == ()
