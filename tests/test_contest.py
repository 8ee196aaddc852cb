"""The contest: who is chosen by held-out images, and what the test images decide."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks import contest, contest_page
from benchmarks.contest_entrants import ENTRANTS

from bivallate import Linf
from bivallate.run.budget import Minibatches, costs_of_epochs


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of records in which `wat-noise` is nearly as robust as `bastion`, and fairer."""
    monkeypatch.setattr(contest, "RECORDS", tmp_path)
    for trial in contest.trials("mnist", "low"):
        robust = {"bastion": 0.9, "wat-noise": 0.896, "nuat": 0.8}.get(trial.name, 0.5)
        worst = {"wat-noise": 0.8, "bastion": 0.6, "trades-noise": 0.85}.get(trial.name, 0.3)
        robust -= 0.002 * abs(trial.number - 2)  # the last value is everyone's best
        write(trial, held_out={"clean": 0.95, "robust": robust, "worst_class": worst, "tail_30": worst})
    return tmp_path


def write(trial: contest.Trial, **more: object) -> None:
    trial.record.parent.mkdir(parents=True, exist_ok=True)
    trial.record.write_text(json.dumps({"name": trial.name, "number": trial.number, "epochs": 1, **more}))


def test_held_out_images_choose_the_most_robust_and_the_fairest_that_is_nearly_as_robust(
    records: Path,
) -> None:
    assert contest.chosen(contest.tuned("mnist", "low"), "low") == {
        "yardstick": "n-fgsm",
        "best rival": "nuat",
        "fairest rival": "nuat",
        "best composition": "bastion",
        "fairest composition": "wat-noise",
    }
    judged = contest.judged("mnist", "low")
    assert {t.number for t in judged} == {2}
    assert [t.seed for t in judged if t.name == "bastion"] == [0, 1, 2]


def test_nobody_is_judged_before_everyone_is_tuned(records: Path) -> None:
    contest.Trial("mnist", "low", "gat", 0).record.unlink()
    assert contest.judged("mnist", "low") == []
    assert "(20 of 21 are tuned)" in contest_page.held_out("mnist", "low")


@pytest.mark.parametrize(("gain", "verdict"), [(100, "decided"), (0, "not decided")])
def test_a_difference_is_decided_over_points_and_seeds(records: Path, gain: int, verdict: str) -> None:
    for trial in contest.judged("mnist", "low"):
        right = 700 + trial.seed + (gain if trial.name == "bastion" else 0)
        test = {"n": 1000, "clean": 0.9, "robust": right / 1000, "worst_class": 0.5, "tail_30": 0.5}
        held = {"clean": 0.95, "robust": 0.9, "worst_class": 0.8, "tail_30": 0.8}
        before = json.loads(trial.record.read_text()) if trial.record.exists() else {"held_out": held}
        write(trial, **{**before, "test": {**test, "right": "1" * right + "0" * (1000 - right)}})
    told = contest_page.judgement("mnist", "low")
    assert told.splitlines()[-2].endswith(f"over the seeds: {verdict}.")


@pytest.mark.parametrize("cost", ENTRANTS)
def test_everyone_can_be_trained_at_least_once_within_the_cost(cost: str) -> None:
    budget = contest.SETTINGS["mnist"].epochs * contest.PASSES[cost]
    for entrant in ENTRANTS[cost]:
        assert len(entrant.values) == 3, entrant.name
        for value in entrant.values:
            method = entrant.make(Linf(0.1), value)
        assert costs_of_epochs(method, 1, Minibatches(32, 32, 10))[0] <= budget, entrant.name
