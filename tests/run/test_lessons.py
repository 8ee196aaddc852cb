"""A curriculum that listens to held-out data: it rises, reloads its best weights, resumes, and asks for
data."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import bivallate as bv
from bivallate.errors import UserError
from bivallate.run.config import Config, Model, Validation
from bivallate.run.progress import Progress
from bivallate.run.signals import Interrupted

from .tiny import Radii, plan, run

CAI = bv.methods.curriculum(bv.Linf(0.1), mode="cai", steps=3, patience=1, threshold=0.2)


class Weights(Progress):
    """The weights and the optimiser's momentum after every epoch, before which a reload may have happened."""

    def __init__(self) -> None:
        self.after: list[dict[str, torch.Tensor]] = []
        self.before: list[dict[str, torch.Tensor]] = []

    def step(self, session: Any, record: Any, lr: float):
        self.last = {k: v.detach().clone() for k, v in session.model.state_dict().items()}

    def epoch(self, session: Any, line: dict[str, Any]):
        self.before.append(self.last)
        self.after.append({k: v.detach().clone() for k, v in session.model.state_dict().items()})


@pytest.fixture
def fewer(few):
    """Three minibatches an epoch."""
    return few.but(train=few.train.subset(slice(0, 96)))


def lessons(**changes) -> Config:
    basis = {"model": Model("linear"), "epochs": 9, "validation": Validation(1, 60)}
    return plan(CAI, **{**basis, **changes})


def same(one, other) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_the_level_rises_on_held_out_data_and_its_best_weights_come_back(fewer):
    seen = Weights()
    history = run(lessons(), fewer, progress=seen).history
    rose = [k for k, line in enumerate(history) if "level_reloaded" in line]
    assert len(rose) >= 2
    back = 0
    for k in rose:
        from_epoch = history[k]["level_reloaded"] - 1
        own = [line["level_held_out"] for line in history[from_epoch : k + 1]]
        assert own[0] == max(own), "the level's best"
        assert same(seen.after[k], seen.before[from_epoch])
        back += not same(seen.after[k], seen.before[k])
        assert history[k + 1]["level"] == history[k]["level"] + 1
    assert back, "some reload changed the weights"


def test_a_run_that_is_interrupted_reloads_the_same(fewer, tmp_path):
    whole = run(lessons(), fewer)
    with pytest.raises(Interrupted):
        run(lessons(), fewer, tmp_path / "run", Radii(stop=14))
    again = bv.resume(tmp_path / "run", dataset=fewer)
    assert [line.get("level_reloaded") for line in again.history] == [
        line.get("level_reloaded") for line in whole.history
    ]
    assert same(whole.model.state_dict(), again.model.state_dict())


def test_without_held_out_data_it_says_what_to_do(few):
    with pytest.raises(UserError, match=r"data\.validation=0\.02"):
        run(lessons(), few.but(validation=None))
    own = bv.methods.curriculum(bv.Linf(0.1), mode="cai", held_out=False)
    assert run(plan(own, epochs=1, model=Model("linear")), few.but(validation=None)).history
