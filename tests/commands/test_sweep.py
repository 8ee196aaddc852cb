"""A sweep: its grid, which runs it skips or continues, and what it reports of runs that fail."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bivallate.cli import run
from bivallate.commands import sweep_running
from bivallate.commands.sweep import TrainOptions, sweep
from bivallate.commands.sweep_cells import Combination, SweepOptions, cells_of
from bivallate.commands.sweep_running import SweepProcesses, SweepStopped
from bivallate.commands.train import train
from bivallate.errors import UserError
from bivallate.run.signals import Interrupted

NOTHING = dict.fromkeys(("data-dir", "model", "recipe", "init", "device"))


def common(*fixed: str, **options) -> SweepOptions:
    return SweepOptions({"data": "digits", "norm": "linf", **NOTHING, **options}, fixed, "pgd-2", 20, 1, 1)


def cells(methods="at", seeds="1", settings=(), made=None, out=Path("runs/x")) -> list[Combination]:
    return cells_of(methods, seeds, settings, made or common(), out)


def test_the_grid_is_every_combination_in_words_of_train():
    found = cells(
        "at,trades", "2", ("eps=4/255,8/255", "solver.steps=2,3"), common("data.augment=crop:4,flip")
    )
    assert len(found) == len({c.name for c in found}) == 2 * 2 * 2 * 2
    assert [c.train[-1] for c in found] == ["--seed=0"] * 8 + ["--seed=1"] * 8
    first = found[0]
    assert first.name == "at-eps4_255-steps2-seed0"
    assert first.train[0] == "at"
    for word in ("--eps=4/255", "--set=solver.steps=2", "--set=data.augment=crop:4,flip", "--data=digits"):
        assert word in first.train
    assert first.threat.eps == pytest.approx(4 / 255)
    assert [c.train[-1] for c in cells(seeds="3,7")] == ["--seed=3", "--seed=7"]


def test_a_budget_gives_every_combination_its_epochs():
    """The same for all seeds, by the method's own cost."""
    found = cells("at", "2", ("steps=1,2",), dataclasses.replace(common(), passes=25))
    assert [str(c.cost) for c in found] == [f"{n} epochs, at most 24 passes an example" for n in (6, 4)] * 2
    words = [word for c in found for word in c.train if word.startswith("--epochs")]
    assert words == ["--epochs=6", "--epochs=4"] * 2


WRONG = {
    "no average changes": {"settings": ("average=0,0.9",)},
    "eps is set twice": {"settings": ("eps=0.1", "eps=0.2")},
    "every value of lr": {"settings": ("lr=0.1,0.1",)},
    "every method is named once": {"methods": "at,at"},
    "both varied by --set and held by --fix": {"settings": ("lr=0.1",), "made": common("lr=0.2")},
    "lr is held twice by --fix": {"made": common("lr=0.1", "lr=0.2")},
    "did you mean 'linear'": {"settings": ("model=linaer",)},
    "--seeds must be at least 1": {"seeds": "0"},
    "a list such as 3,7": {"seeds": "x"},
    "every seed": {"seeds": "3,3"},
    "did you mean 'trades'": {"methods": "at,tardes"},
    "did you mean 'solver'": {"settings": ("sover.steps=2",)},
    "beta": {"methods": "at", "settings": ("beta=3,6",)},
    "seed is not set by --set or --fix in a sweep: use --seeds": {"settings": ("seed=4,5",)},
    "threads is not set by --set or --fix": {"made": common("threads=2")},
    "leave out epochs=3": {"made": dataclasses.replace(common("epochs=3"), passes=50)},
    "leave out epochs=3,4": {"settings": ("epochs=3,4",), "made": dataclasses.replace(common(), passes=50)},
    "one epoch of trades costs 25 .* and 24 are allowed": {
        "methods": "at,trades",
        "made": dataclasses.replace(common(), passes=24),
    },
    "same folder": {"settings": ("data.imbalance=step:1,step_1",)},
}


@pytest.mark.parametrize("words", WRONG)
def test_a_grid_that_cannot_be_trained_is_refused_before_anything_is(words):
    with pytest.raises(UserError, match=words):
        cells(**WRONG[words])


OF_TRAIN = {name for name, p in inspect.signature(train).parameters.items() if p.kind is p.KEYWORD_ONLY}
OF_SWEEP = {*inspect.signature(sweep).parameters, *(field.name for field in dataclasses.fields(TrainOptions))}


@pytest.mark.parametrize("name", sorted(OF_TRAIN - OF_SWEEP))
def test_an_option_of_train_alone_is_answered_with_what_serves(name, capsys):
    """And where that is --set or --fix, the key is one that trains."""
    option = f"--{name.replace('_', '-')}"
    for typed in (option, f"--{name}"):
        assert run(["sweep", "at", typed, "3"]) == 2
        told = " ".join(capsys.readouterr().err.split())
        assert told.startswith(f"bivallate: sweep has no {typed}: ")
    if key := re.search(r"use --(?:set|fix) ([\w.]+)=", told):
        values = {"precision": "float32", "deterministic": "true", "compile": "true", "init.freeze": "stem"}
        values["average"] = "0.9"
        assert len(cells(settings=(f"{key[1]}={values.get(key[1], '1')}",))) == 1


@pytest.fixture
def here(monkeypatch, tmp_path):
    """Commands run in this process; what they were."""
    called: list[list[str]] = []

    def within(self: SweepProcesses, cell: Combination, words: list[str]) -> None:
        called.append(words)
        with contextlib.redirect_stdout(io.StringIO()):
            if run([word for word in words if word]):
                raise UserError("it failed")

    monkeypatch.setattr(SweepProcesses, "_run", within)
    monkeypatch.chdir(tmp_path)
    return called


GRID = [
    "sweep",
    "at",
    "--model=linear",
    "--fix=epochs=1",
    "--attack=pgd-2",
    "--n=20",
    "--out=s",
    "--threads=1",
]


def test_an_evaluation_on_other_points_does_not_count(here, capsys):
    words = [word for word in GRID if not word.startswith("--n=")]
    assert run([*GRID, "--seeds=1", "--set=eps=0.1", "--json"]) == 0
    (table,) = json.loads(capsys.readouterr().out)
    own = table["n"], table["rows"][0]["robust_accuracy"]
    for typed in (["--first=200"], ["--n=20", "--seed=3"]):
        assert run(["evaluate", "s/at-eps0.1-seed0", "--attack=pgd-2", *typed]) == 0
    here.clear()
    capsys.readouterr()
    assert run([*GRID, "--seeds=1", "--set=eps=0.1", "--json"]) == 0
    assert here == []
    (table,) = json.loads(capsys.readouterr().out)
    assert (table["n"], table["rows"][0]["robust_accuracy"]) == own
    assert run([*words, "--seeds=1", "--set=eps=0.1", "--json"]) == 0
    assert [typed[0] for typed in here] == ["evaluate"]
    (table,) = json.loads(capsys.readouterr().out)
    assert table["rows"][0]["n"] == 359


def test_runs_under_several_threats_are_compared_within_all(here, capsys):
    words = [*GRID, "--seeds=1", "--fix=eps=0.1", "--fix=others=l2:0.4,l1:1", "--json"]
    words[words.index("at")] = "e-at,max-at"
    assert run(words) == 0
    out = capsys.readouterr()
    (table,) = json.loads(out.out)
    assert [one["kind"] for one in table["threat"]["threats"]] == ["Linf", "L2", "L1"]
    assert {row["run"] for row in table["rows"]} == {"e-at-seed0", "max-at-seed0"}
    assert [words[0] for words in here] == ["train", *["evaluate"] * 3] * 2
    for row in table["rows"]:
        assert f"robust {row['robust_accuracy']:.1%} at all of Linf 0.1, L2 0.4, L1 1" in out.err
    others = ["--attack=pgd-2", "--first=200", "--quiet"]
    assert run(["evaluate", "s/e-at-seed0", "s/max-at-seed0", *others]) == 0
    here.clear()
    capsys.readouterr()
    assert run(words) == 0
    assert here == []
    (again,) = json.loads(capsys.readouterr().out)
    assert (again["n"], again["pairs"]) == (20, table["pairs"]), "other points are not joined"


def test_what_is_done_is_skipped_what_is_missing_is_made_and_seeds_are_averaged(here, capsys):
    assert run([*GRID, "--seeds=2", "--set=eps=0.1", "--json"]) == 0
    out = capsys.readouterr()
    tables = json.loads(out.out)
    assert [t["threat"]["eps"] for t in tables] == [0.1]
    assert [row["seeds"] for t in tables for row in t["rows"]] == [[0, 1]]
    assert [words[0] for words in here] == ["train", "evaluate"] * 2
    assert "2 of 2  at-eps0.1-seed1: robust " in out.err
    here.clear()
    assert run([*GRID, "--seeds=2", "--set=eps=0.1", "--markdown"]) == 0
    assert here == []
    assert "was done" in capsys.readouterr().err
    shutil.rmtree("s/at-eps0.1-seed1/evaluation")
    Path("s/at-eps0.1-seed0/metrics.jsonl").write_text("")
    assert run([*GRID, "--seeds=1,0", "--set=eps=0.05,0.1"]) == 0  # and a radius more, for all
    done = [(words[0], Path(words[1]).name if words[0] != "train" else "") for words in here]
    assert done.count(("train", "")) == 2
    assert done.count(("resume", "at-eps0.1-seed0")) == 1
    assert [done.count(("evaluate", f"at-eps0.1-seed{k}")) for k in (0, 1)] == [1, 2]
    capsys.readouterr()
    assert run([*GRID, "--seeds=1", "--set=eps=0.05", "--fix=lr=0.3"]) == 2
    assert "trained with other settings (--lr=0.3)" in capsys.readouterr().err
    assert run([*GRID, "--seeds=1", "--set=eps=0.05", "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("bivallate train at --data=digits")


def test_a_budget_is_in_the_table_and_the_same_sweep_is_recognised(here, capsys):
    grid = [word for word in GRID if word != "--fix=epochs=1"]
    grid += ["--passes=9", "--seeds=1", "--set=steps=1,2", "--set=eps=0.1"]
    assert run([*grid, "--json"]) == 0
    (table,) = json.loads(capsys.readouterr().out)
    assert table["passes_allowed"] == 9
    keys = ("run", "epochs", "planned_passes", "training_passes")
    costs = sorted(tuple(row[key] for key in keys) for row in table["rows"])
    assert costs == [("at-steps1", 2, 8, 8), ("at-steps2", 1, 6, 6)]
    here.clear()
    assert run([*grid, "--markdown"]) == 0
    assert here == []
    out = capsys.readouterr().out
    assert "| 8 (2 epochs) |" in out
    assert "of 9 passes an example" in out
    assert run([*grid[:-4], "--passes=20", *grid[-3:]]) == 2
    assert "trained with other settings (--epochs=2, --epochs=5)" in capsys.readouterr().err
    assert run([*grid, "--dry-run"]) == 0
    told = capsys.readouterr()
    assert "--epochs=2 --set=steps=1 --seed=0" in told.out
    assert "at-steps2-eps0.1-seed0: 1 epoch, at most 6 passes an example" in told.err


def test_train_takes_a_budget_in_place_of_epochs(here, capsys):
    quick = ["train", "n-fgsm", "--model=linear", "--passes=9", "--dry-run"]
    assert run(quick) == 0
    told = capsys.readouterr()
    assert "epochs = 2\n" in told.out
    assert "--passes 9 pays for 2 epochs, at most 8 passes an example" in told.err
    assert run(["train", "n-fgsm", "--model=linear", "--passes=4", "--dry-run"]) == 0
    assert "\n1 epoch, batches of " in capsys.readouterr().err
    for more, found in ((["--epochs=2"], "--epochs"), (["--set=epochs=2"], "epochs=2")):
        assert run([*quick, *more]) == 2
        assert f"leave out {found}, or --passes" in capsys.readouterr().err
    assert run(["train", "at", "--passes=9"]) == 2
    assert "one epoch of at costs 22 " in capsys.readouterr().err
    assert run(["train", "at", "--passes=inf"]) == 2
    assert "more than 10,000 epochs" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_a_run_that_fails_does_not_stop_the_others(here, capsys):
    Path("s/at-eps0.1-seed0").mkdir(parents=True)
    Path("s/at-eps0.1-seed0/mine.txt").write_text("not a run")
    assert run([*GRID, "--seeds=1", "--set=eps=0.1"]) == 2
    assert "is there already and is not of this sweep" in capsys.readouterr().err
    shutil.rmtree("s")
    grid = [*GRID, "--seeds=1", "--set=data.imbalance=none,step:7"]  # of the two only one can be loaded
    assert run(grid) == 2
    told = capsys.readouterr()
    assert "1 of 2 runs failed" in told.err
    assert "pgd-2 at Linf" in told.out  # the table of the other


def test_processes_are_stopped_together_and_none_begins_any_more(tmp_path, monkeypatch):
    begun = subprocess.Popen

    def sleeping(call, **options):
        return begun([sys.executable, "-c", "import time; time.sleep(60)"], **options)

    monkeypatch.setattr(sweep_running.subprocess, "Popen", sleeping)
    cell = cells(out=tmp_path)[0]
    (tmp_path / "logs").mkdir()
    crew, raised = SweepProcesses(tmp_path, common(), []), list[BaseException]()

    def work() -> None:
        try:
            crew._run(cell, ["x"])
        except SweepStopped as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    while not crew._running:
        time.sleep(0.01)
    crew.stop()
    thread.join(20)
    assert len(raised) == 1
    with pytest.raises(SweepStopped):
        crew._run(cell, ["x"])


def test_a_process_that_fails_is_told_by_its_last_line_and_ctrl_c_says_how_to_go_on(tmp_path, monkeypatch):
    cell = cells(out=tmp_path)[0]
    (tmp_path / "logs").mkdir()
    with pytest.raises(UserError, match=r"unknown method 'zzz'.*all of it is in .*logs"):
        SweepProcesses(tmp_path, common(), [])._run(cell, ["methods", "zzz"])

    def interrupted(self: SweepProcesses, cell: Combination) -> str:
        signal.raise_signal(signal.SIGINT) if threading.current_thread() is threading.main_thread() else None
        time.sleep(0.5)
        raise SweepStopped("interrupted")

    monkeypatch.setattr(SweepProcesses, "complete", interrupted)
    threading.Timer(0.2, lambda: signal.raise_signal(signal.SIGINT)).start()
    with pytest.raises(Interrupted, match="the same command goes on"):
        sweep_running.run_all(tmp_path / "s", cells(seeds="3", out=tmp_path / "s"), common())
