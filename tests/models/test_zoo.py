"""The networks that come with the package are those that were measured."""

from __future__ import annotations

import json
import shutil
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks import zoo as page

import bivallate as bv
from bivallate import zoo
from bivallate.cli import run
from bivallate.data.dataset import as_float
from bivallate.errors import UserError
from bivallate.from_text import parse_number
from bivallate.run import load_model

NAMES = sorted(zoo.entries())


@pytest.mark.parametrize("name", NAMES)
def test_a_slice_that_is_evaluated_again_gives_what_was_measured(name):
    entry, model = zoo.entries()[name], bv.load(f"zoo:{name}")
    with np.load(Path(__file__).parent / "zoo" / f"{name}.npz") as kept:
        x, y = as_float(torch.from_numpy(kept["x"])), torch.from_numpy(kept["y"])
    score = bv.evaluate(model, (x, y), bv.Linf(parse_number(entry["eps"])), str(entry["slice"]["attack"]))
    n = int(entry["slice"]["n"])
    assert len(y) == n
    assert abs(score.clean_accuracy * n - int(entry["slice"]["clean"])) <= 1  # rounding of other machines
    assert abs(score.robust_accuracy * n - int(entry["slice"]["robust"])) <= 1
    low, high = entry["measured"]["interval_95"]
    assert 0 < low < entry["measured"]["robust_accuracy"] < high < entry["measured"]["clean_accuracy"] + 0.1
    assert sum(p.numel() for p in model.parameters()) == entry["parameters"]
    assert not model.training


def test_the_command_evaluates_one_by_name_within_its_own_radius(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with np.load(Path(__file__).parent / "zoo" / "mnist-at.npz") as kept:
        np.savez(tmp_path / "own.npz", x=kept["x"], y=kept["y"])
    entry = zoo.entries()["mnist-at"]
    attacked = ["evaluate", "zoo:mnist-at", "--data", "own.npz", "--attack", str(entry["slice"]["attack"])]
    assert run([*attacked, "--json", "--quiet"]) == 0
    score = json.loads(capsys.readouterr().out)
    assert score["threat"] == {"kind": "Linf", "eps": 0.3}
    assert abs(score["robust_accuracy"] * 64 - int(entry["slice"]["robust"])) <= 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own.npz"]  # kept only with --out
    small = ["--data", "own.npz", "--model", "linear", "--eps", "0.1", "--epochs", "1", "--batch-size", "16"]
    assert run(["train", "plain", *small, "--out", "own", "--quiet"]) == 0
    assert run(["evaluate", "own", "zoo:mnist-at", "--data", "own.npz", "--attack", "clean"]) == 0
    assert len(list((tmp_path / "own" / "evaluation").glob("*clean*.json"))) == 1  # the run's result is kept
    assert run(["evaluate", "zoo:mnist-att"]) == 2
    assert "did you mean 'mnist-at'" in capsys.readouterr().err


def test_the_page_shows_the_list():
    """`python -m benchmarks.zoo` writes it."""
    text = page.PAGE.read_text(encoding="utf-8")
    assert text.split(page.BEGIN)[1].split(page.END)[0].strip() == page.table()


def test_all_of_it_is_small_and_nothing_else_lies_there():
    files = {
        path.name: path.stat().st_size for path in Path(str(resources.files(zoo))).iterdir() if path.is_file()
    }
    weights = {name for name in files if name.endswith((".safetensors", ".json"))}
    assert weights == {"zoo.json", *(f"{name}{end}" for name in NAMES for end in (".safetensors", ".json"))}
    assert sum(files.values()) <= 4_200_000


def test_other_weights_are_refused(monkeypatch, tmp_path):
    (tmp_path / "copy").mkdir()
    for path in Path(str(resources.files(zoo))).glob("*.*"):
        shutil.copy(path, tmp_path / "copy" / path.name)
    model = bv.load(f"zoo:{NAMES[0]}")
    with torch.no_grad():
        next(model.parameters())[0] += 1e-3
    bv.models.save(model, tmp_path / "copy" / f"{NAMES[0]}.safetensors", classes=model.classes)
    monkeypatch.setattr(load_model, "files", lambda package: tmp_path / "copy")
    with pytest.raises(UserError, match="not those measured"):
        bv.load(f"zoo:{NAMES[0]}")
    with pytest.raises(UserError, match=f"did you mean '{NAMES[0]}'"):
        bv.load(f"zoo:{NAMES[0]}x")


def test_the_command_lists_shows_saves_and_training_begins_with_it(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    assert run(["zoo"]) == 0
    table = capsys.readouterr().out
    for name, entry in zoo.entries().items():
        assert name in table
        assert f"{100 * entry['measured']['robust_accuracy']:.1f} [" in table
    assert run(["zoo", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == set(NAMES)
    assert run(["zoo", NAMES[0], "--save", "mine"]) == 0
    assert f"zoo:{NAMES[0]}" in capsys.readouterr().out
    again, own = bv.models.load("mine"), bv.load(f"zoo:{NAMES[0]}")
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), own.parameters(), strict=True))
    capsys.readouterr()
    assert run(["zoo", "--save", "nameless"]) == 2
    assert (
        f"name it, bivallate zoo NAME --save nameless (there are {next(iter(zoo.entries()))}"
        in capsys.readouterr().err
    )
    assert not Path("nameless").exists()
    assert run(["zoo", "mnits"]) == 2
    assert "unknown network of the zoo" in capsys.readouterr().err
