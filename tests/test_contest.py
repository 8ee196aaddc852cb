"""The contest: who takes part, who is chosen by held-out images, and what the test images decide."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from benchmarks import contest, contest_entrants, contest_page, contest_trials
from benchmarks.contest_entrants import ENTRANTS, PASSES, REASONS, Entrant, absent
from benchmarks.contest_trials import Trial

from bivallate import Linf
from bivallate.methods.entries import registry
from bivallate.record import NonFinite
from bivallate.run.budget import Minibatches, costs_of_epochs

THREAT, TRAINED = Linf(0.1), Path("results/contest")
ROBUST = {"bastion": 0.9, "wat-noise": 0.896, "nuat": 0.897}
LINE = {"total_forward": 40.0, "total_backward": 38.0, "train_robust": 0.5, "seconds": 1.0}
WORST = {"wat-noise": 0.8, "bastion": 0.6, "trades-noise": 0.85, "nuat": 0.4}


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of records in which `wat-noise` is nearly as robust as `bastion`, and fairer."""
    monkeypatch.setattr(contest_trials, "RECORDS", tmp_path)
    monkeypatch.setattr(contest_trials, "RUNS", tmp_path / "runs")
    for trial in contest_trials.trials("mnist", "low"):
        robust = ROBUST.get(trial.name, 0.5) - 0.002 * abs(trial.number - 2)  # the last value is the best
        write(trial, held_out=held(robust, WORST.get(trial.name, 0.3)))
    return tmp_path


def held(robust: float, worst: float) -> dict[str, float]:
    return {"n": 2000, "clean": 0.95, "robust": robust, "worst_class": worst, "tail_30": worst}


def write(trial: Trial, **more: Any) -> None:
    trial.record.parent.mkdir(parents=True, exist_ok=True)
    own = {"name": trial.name, "number": trial.number, "epochs": 1, "passes": 80.0, "rows": trial.images}
    value = {"parameter": trial.entrant.parameter, "value": trial.value}
    trial.record.write_text(json.dumps({**own, **value, **more}))


def roles() -> dict[str, tuple[str, int]]:
    return {role: (t.name, t.number) for role, t in contest_trials.chosen("mnist", "low").items()}


def test_values_are_tuned_with_fewer_images_than_the_judged_have(records: Path) -> None:
    assert {t.images for t in contest_trials.trials("cifar10", "low")} == {10_000}
    for trial in contest_trials.trials("cifar10", "low"):
        write(trial, held_out=held(ROBUST.get(trial.name, 0.5) - 0.01 * trial.number, 0.3))
    assert contest_page.held_out("cifar10", "low").startswith(
        "### CIFAR-10, N-FGSM's cost (80 passes), 10,000 training images\n"
    )
    judged = contest_trials.judged("cifar10", "low")
    assert {t.images for t in judged} == {48_000}
    assert {t.number for t in judged} == {0}
    assert not any(t.recorded for t in judged), "a network of fewer images is not judged"
    test = {**held(0.4, 0.1), "n": 1000, "worst_class_n": 99, "right": "1" * 400 + "0" * 600}
    for trial in judged:
        write(trial, held_out=held(0.45, 0.1), test=test)
    told = contest_page.judgement("cifar10", "low")
    assert told.startswith("### CIFAR-10, N-FGSM's cost (80 passes), 48,000 training images\n")
    assert "| best rival" in told
    write(judged[0], held_out=held(0.45, 0.1), rows=10_000)
    assert not judged[0].recorded


def test_held_out_images_choose_the_most_robust_and_the_fairest_that_is_nearly_as_robust(
    records: Path,
) -> None:
    assert roles() == {
        "yardstick": ("n-fgsm", 2),
        "best rival": ("nuat", 2),
        "fairest rival": ("nuat", 2),
        "best composition": ("bastion", 2),
        "fairest composition": ("wat-noise", 2),
    }
    judged = contest_trials.judged("mnist", "low")
    assert {t.number for t in judged} == {2}
    assert [t.seed for t in judged if t.name == "bastion"] == [0, 1, 2]


def test_the_fairest_has_another_value_than_the_most_robust(records: Path) -> None:
    write(Trial("mnist", "low", "nuat", 0), held_out=held(0.8955, 0.7))
    assert (roles()["best rival"], roles()["fairest rival"]) == (("nuat", 2), ("nuat", 0))
    told = contest_page.held_out("mnist", "low")
    assert "| 2: 70.0 [" in told
    assert "], 89.5 robust |" in told


def test_one_bar_holds_for_rivals_and_compositions_and_nobody_may_reach_it(records: Path) -> None:
    for number in range(3):
        write(Trial("mnist", "low", "at-two", number), held_out=held(0.95, 0.1))
    assert roles()["fairest rival"][0] == "at-two"
    assert "fairest composition" not in roles()


def test_nobody_is_judged_before_everyone_is_tuned(records: Path) -> None:
    Trial("mnist", "low", "gat", 0).record.unlink()
    assert contest_trials.judged("mnist", "low") == []
    everyone = len(ENTRANTS["low"])
    missing = f"({everyone - 1} of {everyone} are tuned; missing: gat)"
    assert missing in contest_page.held_out("mnist", "low")


@pytest.mark.parametrize("stale", [{"passes": 84.4}, {"value": 3.0}, {"parameter": "noise"}])
def test_a_record_beyond_the_budget_or_of_another_value_does_not_count(
    records: Path, stale: dict[str, Any]
) -> None:
    trial = Trial("mnist", "low", "gat", 0)
    write(trial, held_out=held(0.9, 0.9), **stale)
    assert not trial.recorded
    assert "gat" not in contest_trials.tuned("mnist", "low")


def test_a_record_of_another_rate_or_radius_does_not_count(records: Path) -> None:
    trial = Trial("mnist", "low", "gat", 0)
    config = contest_trials.configure(trial)
    write(trial, held_out=held(0.9, 0.9), config=contest_trials.settings(config.set("device", "cuda")))
    assert trial.recorded
    for path, other in (("optimizer.lr", "0.5"), ("threat.eps", "0.2")):
        write(trial, held_out=held(0.9, 0.9), config=contest_trials.settings(config.set(path, other)))
        assert not trial.recorded


def test_a_training_that_exceeds_its_budget_fails(records: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = Trial("mnist", "low", "gat", 0)
    monkeypatch.setattr(contest, "measured", lambda trial, device: {"passes": 80.5, "epochs": 13})
    trial.record.unlink()
    with pytest.raises(ValueError, match=r"gat-0-seed0 has cost 80.5 passes, of 80 it may"):
        contest.train(trial)
    assert not trial.record.exists()


def nothing(*_: Any) -> None:
    """In place of images."""


def diverges(*_: Any) -> Any:
    raise NonFinite("a gradient is not finite at epoch 9, minibatch 54. Likely cause: a rate")


def test_a_value_that_diverges_is_tuned_and_never_chosen(
    records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = Trial("mnist", "low", "nuat", 2)  # the best rival's
    trial.record.unlink()

    for name, by in (("load_data", nothing), ("cut", nothing), ("finished", diverges)):
        monkeypatch.setattr(contest, name, by)
    assert "epochs: diverged: a gradient is not finite" in contest.train(trial)
    assert trial.read()["diverged"] == "a gradient is not finite at epoch 9, minibatch 54"
    assert "there already" in contest.train(trial)
    assert roles()["best rival"] == ("nuat", 1)
    (line,) = (row for row in contest_page.held_out("mnist", "low").splitlines() if row.startswith("| nuat"))
    assert "| 89.3 / 89.5 / diverged |" in line
    assert "| 40.0 / 40.0 / diverged |" in line


def test_a_judged_seed_that_diverges_counts_with_no_accuracy(
    records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test = held(0.8, 0.5) | {"n": 1000, "worst_class_n": 99, "right": "1" * 800 + "0" * 200}
    for trial in contest_trials.judged("mnist", "low"):
        write(trial, held_out=held(0.9, 0.8) | {"robust": ROBUST.get(trial.name, 0.5)}, test=test)
    lost = Trial("mnist", "low", "nuat", 2, seed=1)
    lost.record.unlink()
    for name, by in (("load_data", nothing), ("cut", nothing), ("finished", diverges)):
        monkeypatch.setattr(contest, name, by)
    contest.train(lost)
    assert contest_page.judgement("mnist", "low") == ""
    assert "diverged" in contest.attack(lost)
    (line,) = (
        row for row in contest_page.judgement("mnist", "low").splitlines() if "nuat" in row and "/" in row
    )
    assert "| 53.3 | 80.0 / diverged / 80.0 |" in line
    gone = Trial("mnist", "low", "bastion", 2, seed=2)  # it was recorded elsewhere, and diverges here
    write(gone, held_out=held(0.9, 0.6), machine={"processor": "another"})
    assert "diverged" in contest.attack(gone)
    assert (gone.read()["test"]["robust"], gone.read()["held_out"]["robust"]) == (0.0, 0.9)


@pytest.mark.parametrize(("gain", "verdict"), [(100, "decided"), (0, "not decided")])
def test_a_difference_is_decided_over_points_and_seeds(records: Path, gain: int, verdict: str) -> None:
    for trial in contest_trials.judged("mnist", "low"):
        right = 700 + trial.seed + (gain if trial.name == "bastion" else 0)
        worst = 0.5 + 0.001 * trial.seed + (0.004 * gain if trial.name == "wat-noise" else 0)
        test = {"n": 1000, "clean": 0.9, "robust": right / 1000, "worst_class": worst, "tail_30": 0.5}
        test |= {"worst_class_n": 99, "right": "1" * right + "0" * (1000 - right)}
        write(trial, held_out=trial.read()["held_out"] if trial.recorded else held(0.9, 0.8), test=test)
    robust, bar, worst = contest_page.judgement("mnist", "low").splitlines()[-4:-1]
    assert robust.endswith(f"over the seeds: {verdict}.")
    assert "89.5 on held-out images, half a point below bastion (beta = 12)" in bar
    assert worst.endswith(f"over the seeds: {verdict}.")


def test_the_interval_of_a_worst_class_is_never_a_point() -> None:
    none, some = ([{"worst_class": share, "worst_class_n": 99, "n": 1000}] * 3 for share in (0.0, 0.1))
    low, high = contest_page.worst_interval(none)
    assert low == pytest.approx(0)
    assert high == pytest.approx(1.96**2 / (99 + 1.96**2), rel=1e-3)
    low, high = contest_page.difference_interval(some, none)
    assert low < 0.1 < high
    assert (-high, -low) == pytest.approx(contest_page.difference_interval(none, some))


@pytest.mark.parametrize("cost", ENTRANTS)
def test_everyone_can_be_trained_at_least_once_within_the_cost(cost: str) -> None:
    budget = contest_entrants.EPOCHS * PASSES[cost]
    for entrant in ENTRANTS[cost]:
        assert len(entrant.values) == 3, entrant.name
        for value in entrant.values:
            method = entrant.make(THREAT, value)
            assert costs_of_epochs(method, 1, Minibatches(32, 32, 10))[0] <= budget, entrant.name


@pytest.mark.parametrize("cost", ENTRANTS)
def test_every_method_of_the_catalogue_is_an_entrant_or_has_a_reason(cost: str) -> None:
    present = {e.method for e in ENTRANTS[cost]} - {""}
    assert present | absent(cost).keys() == registry().keys()
    assert not present & REASONS.keys()
    assert not any(name in contest_page.absentees() for name in ("n-fgsm", "bastion"))


def differing(one: Entrant, other: Entrant) -> set[str]:
    a, b = (e.make(THREAT, e.values[1]).to_dict() for e in (one, other))
    return {part for part in a if a[part] != b[part]} - {"name"}


def test_compositions_differ_as_their_names_do() -> None:
    composed = {e.name: e for e in (*contest_entrants.NOISE, *contest_entrants.TWO)}
    heads = {name.rpartition("-")[0] for name in composed}
    for head in heads:
        assert differing(composed[f"{head}-noise"], composed[f"{head}-two"]) == {"solver"}
        for attack in ("noise", "two"):
            different = differing(composed[f"{head}-{attack}"], composed[f"trades-{attack}"])
            assert different <= {"loss", "weighting"}


def alike() -> dict[str, list[tuple[Path, Trial]]]:
    """The records by what they are trained with: data sets and seeds of one setting have one number of
    epochs, which is costly to find."""
    groups: dict[str, list[tuple[Path, Trial]]] = {}
    for path in sorted(TRAINED.rglob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        trial = Trial(*(found[key] for key in ("data", "cost", "name", "number", "seed")))
        setting = contest_trials.SETTINGS[trial.data]
        trial = replace(trial, whole=found["rows"] != trial.images)
        groups.setdefault(
            f"{setting.network}-{trial.cost}-{trial.name}-{trial.number}-{trial.images}", []
        ).append((path, trial))
    return groups


ALIKE = alike()


@pytest.mark.parametrize("group", ALIKE.values(), ids=list(ALIKE))
def test_records_are_of_today_and_keep_their_budget(group: list[tuple[Path, Trial]]) -> None:
    epochs = contest_trials.configure(group[0][1]).epochs
    assert len({contest_trials.SETTINGS[trial.data] for _, trial in group}) == 1
    for path, trial in group:
        assert trial.record == path
        assert trial.recorded
        assert trial.read()["epochs"] == epochs


def test_a_second_training_is_held_against_the_figures_that_an_older_record_has() -> None:
    recorded = {"n": 100, "robust": 0.5}
    assert contest.repeats({"n": 100, "robust": 0.5, "worst_class_n": 10}, recorded)
    assert not contest.repeats({"n": 100, "robust": 0.51, "worst_class_n": 10}, recorded)


HERE = {"device": "cpu", "gpu": None, "processor": "P", "instructions": "AVX512", "threads": 1, "torch": "2"}
THERE = {key: value for key, value in HERE.items() if key != "instructions"}


def judged_again(monkeypatch: pytest.MonkeyPatch, recorded: dict[str, Any], robust: float) -> Trial:
    """A trial that was tuned on `recorded`; its network is trained again on HERE. Nothing is evaluated."""
    trial = Trial("mnist", "low", "gat", 0)
    write(trial, held_out=held(0.5, 0.3), commit={"id": "aaaaaaaaaa"}, machine=recorded)
    again = {"held_out": held(robust, 0.3), "commit": {"id": "bbbbbbbbbb"}, "machine": HERE}
    monkeypatch.setattr(contest, "measured", lambda trial, device: again)
    score = SimpleNamespace(robust=torch.tensor([True, False]))
    monkeypatch.setattr(contest.bv, "evaluate", lambda *_, n: score)
    monkeypatch.setattr(contest.bv, "load", lambda *_: None)
    monkeypatch.setattr(contest, "load_data", lambda *_: SimpleNamespace(test=None))
    monkeypatch.setattr(contest, "figures", lambda score: {"n": 2, **held(robust, 0.3)})
    return trial


@pytest.mark.parametrize("recorded", [THERE, {**HERE, "instructions": "AVX2"}, {**HERE, "torch": "1"}])
def test_a_network_of_another_machine_is_judged_beside_the_figures_of_the_tuning(
    records: Path, monkeypatch: pytest.MonkeyPatch, recorded: dict[str, Any]
) -> None:
    trial = judged_again(monkeypatch, recorded, 0.47)
    contest.attack(trial)
    found = trial.read()
    assert found["held_out"] == held(0.5, 0.3), "what has chosen stays"
    assert (found["commit"]["id"], found["machine"]) == ("aaaaaaaaaa", recorded)
    assert found["test"]["network"]["held_out"] == held(0.47, 0.3)
    assert (found["test"]["network"]["commit"]["id"], found["test"]["network"]["machine"]) == (
        "bbbbbbbbbb",
        HERE,
    )
    assert found["test"]["right"] == "10"


def test_a_network_that_differs_on_a_machine_that_rounds_alike_is_refused_each_time(
    records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = judged_again(monkeypatch, {**HERE, "cores": 64}, 0.47)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"gat-0-seed0: the training does not repeat its record"):
            contest.attack(trial)
        trial.folder.mkdir(parents=True, exist_ok=True)  # the run of the first attempt
    assert "test" not in trial.read()
    trial = judged_again(monkeypatch, {**HERE, "cores": 64}, 0.5)
    contest.attack(trial)
    assert trial.read()["test"]["robust"] == 0.5


def test_the_page_says_which_judged_networks_are_not_those_of_their_records(records: Path) -> None:
    for trial in contest_trials.judged("mnist", "low"):
        own = trial.read()["held_out"] if trial.recorded else held(0.9, 0.8)
        test = {**held(0.9, 0.8), "right": "1" * 10, "worst_class_n": 9}
        write(trial, held_out=own, commit={"id": "aaaaaaaaaa"}, machine=THERE, test=test)
    same = "* Every judged network has the held-out figures of its record."
    assert same in contest_page.judgement("mnist", "low")
    trial = Trial("mnist", "low", "bastion", 2)
    again = {"held_out": held(0.881, 0.8), "commit": {"id": "bbbbbbbbbb"}, "machine": HERE}
    found = trial.read()
    write(trial, **{**found, "test": {**found["test"], "network": again}})
    told = contest_page.judgement("mnist", "low")
    assert same not in told
    assert (
        "* bastion (beta = 12), seed 0: the judged network was trained again, and withstands on 88.1 % "
        in told
    )
    assert "(commit bbbbbbb, P, AVX512) of the held-out images, where the record has 90.0 % " in told
    assert "(commit aaaaaaa, P, instructions unknown)." in told


def test_held_out_images_are_measured_once_a_run(records: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial, asked = Trial("mnist", "low", "gat", 0), []
    run = SimpleNamespace(path=trial.folder, read_metrics=lambda: [LINE])
    data = SimpleNamespace(train=[0] * 2000, validation=None)
    trial.folder.mkdir(parents=True)
    monkeypatch.setattr(contest, "load_data", lambda *_: None)
    monkeypatch.setattr(contest, "cut", lambda *_: data)
    monkeypatch.setattr(contest, "finished", lambda *_: (run, None))
    monkeypatch.setattr(contest.bv, "evaluate", lambda *_: asked.append(1))
    monkeypatch.setattr(contest, "figures", lambda score: held(0.5, 0.3))
    first = contest.measured(trial, "cpu")
    assert contest.measured(trial, "cpu") == first
    assert asked == [1]
    shutil.rmtree(trial.folder)
    trial.folder.mkdir()
    contest.measured(trial, "cpu")
    assert asked == [1, 1]
