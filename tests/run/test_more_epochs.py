"""A run that continues beyond its planned end."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from inspect import signature
from pathlib import Path

import pytest
import torch
from tests.run.tiny import plan, run

import bivallate as bv
from bivallate.cli import run as command
from bivallate.lower.curriculum import Then
from bivallate.lower.start import zero
from bivallate.models.io import read_weights
from bivallate.part_kinds import KINDS as KNOWN
from bivallate.run.averaging import SWA, Cyclic
from bivallate.run.config import Config, Model
from bivallate.run.cycles import Cycles
from bivallate.run.more_epochs import effects_of_more_epochs, fractions_of_epochs, length_dependent
from bivallate.run.phases import Phase
from bivallate.run.rates import Cosine, Flat, MultiStep, Triangle
from bivallate.run.trainer import Trainer

L8 = bv.Linf(8 / 255)
AT = bv.methods.at(L8)
HANGING = {
    "nothing": ({"rate": Flat()}, []),
    "a triangle": ({"rate": Triangle()}, ["rate"]),
    "a cosine": ({"rate": Cosine()}, ["rate"]),
    "milestones": ({"rate": MultiStep()}, ["rate"]),
    "milestones that are never reached": ({"rate": MultiStep(at=(1.0,))}, []),
    "the radius": ({"rate": Flat(), "warm_up": 0.3}, ["warm_up"]),
    "a schedule of a part": (
        {"rate": Flat(), "method": bv.methods.curriculum(L8)},
        ["solver.level"],
    ),
    "a solver's share": (
        {"rate": Flat(), "method": AT.but(solver=Then(bv.PGD(1, 0.1, zero), bv.PGD(2, 0.1, zero), 0.5))},
        ["solver.share"],
    ),
    "a burn-in": (
        {"rate": Flat(), "method": AT.but(weighting=bv.After(bv.MAIL(), 0.5))},
        ["weighting.burn_in"],
    ),
    "epochs without attack": ({"rate": Flat(), "method": bv.methods.hat(L8)}, ["solver.plain"]),
    "epochs before the first radii": ({"rate": Flat(), "method": bv.methods.cfa(L8)}, ["solver.score.begin"]),
    "a warm-up of radii": ({"rate": Flat(), "method": bv.methods.dafa(L8)}, ["solver.score.warm_up"]),
    "phases": ({"rate": Flat(), "phases": (Phase(0.5, 0.5), Phase())}, ["phases"]),
    "one phase": ({"rate": Flat(), "phases": (Phase(),)}, []),
    "a moving average": ({"rate": Flat(), "average": 0.9}, []),
    "an average of the last epochs": ({"rate": Flat(), "average": SWA(0.5)}, ["average"]),
    "an average of all epochs": ({"rate": Flat(), "average": SWA(0.0)}, []),
    "an average of cycles": ({"rate": Cycles(2), "average": Cyclic(0.5)}, ["average"]),
    "no burn-in": ({"rate": Flat(), "method": AT.but(weighting=bv.After(bv.MAIL(), 0.0))}, []),
    "a temperature": (
        {"rate": Flat(), "method": AT.but(weighting=bv.KLDRO())},
        ["weighting.temperature"],
    ),
}


@pytest.mark.parametrize("case", HANGING)
def test_what_hangs_on_the_number_of_epochs_is_known(case):
    changes, names = HANGING[case]
    config = Config(**{"method": AT, "epochs": 6, **changes})
    assert length_dependent(config, 12, 10) == names
    told = effects_of_more_epochs(config, config.longer(12), 10)
    assert bool(told) == bool(names)
    assert all(name in told for name in names)


def test_every_fraction_of_the_epochs_is_declared():
    """Fields that the source multiplies by the number of epochs, outside of schedules and `Config`."""
    package = Path(bv.__file__).parent
    rooms = ("lower", "coupling", "weighting", "upper")
    text = "".join(file.read_text() for room in rooms for file in (package / room).glob("*.py"))
    used = set(re.findall(r"(\w+) \* (?:\w+\.)*clock\.epochs", text))
    kinds = [kind for kind in KNOWN.values() if kind.__module__.startswith("bivallate.")]
    schedules = [kind for kind in kinds if list(signature(kind.__call__).parameters)[1:] == ["clock"]]
    of_schedules = {field.name for kind in schedules for field in fields(kind)}
    declared = {name for kind in kinds for name in fractions_of_epochs(kind)}
    assert len(used) > 3
    assert used <= declared | of_schedules


@pytest.fixture(scope="module")
def digits():
    return bv.data.load("digits")


def quick(**changes) -> Config:
    return replace(plan(bv.methods.plain(bv.Linf(0.1)), model=Model("linear")), batch_size=400, **changes)


def same(one, other) -> bool:
    left, right = read_weights(one / "model.safetensors"), read_weights(other / "model.safetensors")
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_a_longer_run_is_one_of_that_length_where_nothing_hangs_on_it(digits, tmp_path):
    run(quick(epochs=2, rate=Flat()), digits, tmp_path / "short")
    run(quick(epochs=4, rate=Flat()), digits, tmp_path / "long")
    assert len(bv.resume(tmp_path / "short", epochs=4).history) == 4
    assert same(tmp_path / "short", tmp_path / "long")
    assert Config.read(tmp_path / "short" / "config.toml").extended == (2,)


def test_a_longer_run_says_what_changed_and_is_repeated_by_its_configuration(digits, tmp_path, capsys):
    out = tmp_path / "run"
    run(quick(epochs=2), digits, out)
    assert command(["resume", str(out), "--epochs", "4"]) == 0
    assert "rate hangs on their number" in capsys.readouterr().err
    assert command(["resume", str(out), "--epochs", "5", "--quiet"]) == 0
    again = tmp_path / "again"
    assert command(["train", "--config", str(out / "config.toml"), "--out", str(again), "--quiet"]) == 0
    assert same(out, again)
    other = ["--epochs", "1", "--out", str(tmp_path / "other"), "--quiet"]
    assert command(["train", "--config", str(out / "config.toml"), *other]) == 0
    assert Config.read(tmp_path / "other" / "config.toml").extended == ()


def test_a_kill_between_the_plan_and_the_next_checkpoint_keeps_the_plan(digits, tmp_path, monkeypatch):
    out = tmp_path / "run"
    run(quick(epochs=2, rate=Flat()), digits, out)
    before = (out / "config.toml").read_text()

    def killed(self: Trainer) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run", killed)
        with pytest.raises(KeyboardInterrupt):
            bv.resume(out, epochs=4)
    assert len(bv.resume(out).history) == 4, "without a warning"
    (out / "config.toml").write_text(before)
    with pytest.warns(UserWarning, match="earlier end"):
        assert len(bv.resume(out).history) == 4
    assert Config.read(out / "config.toml").epochs == 4


REFUSED = {
    "fewer": ({}, 1, "name more of them"),
    "none": ({}, 0, "at least 1"),
    "after patience": ({"epochs": 9, "patience": 1, "rate": Flat()}, 20, "--patience"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_go_on_is_refused(case, digits, tmp_path):
    changes, epochs, told = REFUSED[case]
    config = quick(**{"epochs": 2, **changes})
    run(config, digits, tmp_path / "run")
    before = (tmp_path / "run" / "config.toml").read_text()
    with pytest.raises(bv.UserError, match=told):
        bv.resume(tmp_path / "run", epochs=epochs)
    assert (tmp_path / "run" / "config.toml").read_text() == before


def test_a_run_of_its_present_length_is_only_resumed(digits, tmp_path):
    run(quick(epochs=2), digits, tmp_path / "run")
    assert len(bv.resume(tmp_path / "run", epochs=2).history) == 2
    assert Config.read(tmp_path / "run" / "config.toml").extended == ()


@pytest.mark.parametrize("extended", [(6,), (3, 2), (0,), (2.5,), 3])
def test_lengths_that_cannot_be_are_refused(extended):
    with pytest.raises(bv.UserError, match="extended"):
        Config(AT, epochs=6, extended=extended)
