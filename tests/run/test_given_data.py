"""A run on a data set that was loaded before: what it says of its data, and what is read for it again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import bivallate as bv
from bivallate.cli import run as command
from bivallate.data.augment import Augment
from bivallate.reports.collect import collect
from bivallate.run.config import Config
from bivallate.run.rates import Flat

QUICK = {"eps": 0.1, "epochs": 1, "batch_size": 40, "threads": 1, "rate": Flat()}


def settings(run: bv.Run) -> object:
    assert run.path is not None
    return Config.read(run.path / "config.toml").data


def test_the_settings_of_loading_are_those_of_the_run(tmp_path):
    data = bv.data.load("digits", validation=0.2, imbalance="step:0.5", size=6)
    run = bv.train("linear", data, "plain", out=tmp_path / "run", **QUICK)
    spec = settings(run)
    assert (spec.name, spec.validation, spec.imbalance, spec.size) == ("digits", 0.2, "step:0.5", 6)
    assert len(bv.resume(run.path, epochs=2).history) == 2


def test_a_file_with_the_name_of_a_known_set_stays_that_file(tmp_path, monkeypatch, capsys):
    x = np.random.default_rng(0).integers(0, 256, (120, 1, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "digits.npz", x=x, y=np.arange(120) % 10)
    monkeypatch.chdir(tmp_path)
    data = bv.data.load("digits.npz")
    assert data.name == "digits"
    run = bv.train("linear", data, "plain", out=tmp_path / "run", **QUICK)
    assert settings(run).name == str(tmp_path / "digits.npz")
    capsys.readouterr()
    assert command(["evaluate", str(run.path), "--attack", "clean", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == len(data.test)


def test_rows_of_another_seed_are_not_called_held_out(tmp_path, capsys):
    data = bv.data.load("digits")
    run = bv.train("linear", data, "plain", seed=1, out=tmp_path / "run", **QUICK)
    capsys.readouterr()
    for split in ("validation", "train"):
        assert command(["evaluate", str(run.path), "--attack", "clean", "--split", split]) == 2
        assert f"the {split} images are not those of the training" in capsys.readouterr().err
    assert command(["evaluate", str(run.path), "--attack", "clean", "--json"]) == 0
    assert "test images" not in " ".join(json.loads(capsys.readouterr().out)["warnings"])
    assert command(["audit", str(run.path), "--budget", "1", "--n", "50"]) in (0, 1)
    kept = collect([run.path])[0]  # the test images are the same for every seed: nothing is left out
    assert [e.score.attack for e in kept.evaluations] == ["clean"]
    assert not kept.strange
    assert kept.audits
    held = bv.evaluate(run.path, data.validation, attack="clean")
    assert held.n == len(data.validation)
    with pytest.raises(bv.UserError, match="loaded with another seed than that of training"):
        bv.resume(run.path, epochs=2)
    assert len(bv.resume(run.path, dataset=data, epochs=2).history) == 2


def test_test_images_that_have_changed_are_said(tmp_path, capsys):
    file, y = tmp_path / "own.npz", np.arange(120) % 4
    x = np.random.default_rng(0).integers(0, 256, (120, 1, 8, 8), dtype=np.uint8)
    np.savez(file, x=x, y=y)
    run = bv.train("linear", str(file), "plain", out=tmp_path / "run", **QUICK)
    np.savez(file, x=255 - x, y=y)
    capsys.readouterr()
    assert command(["evaluate", str(run.path), "--attack", "clean", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["warnings"]
    assert "the test images are not those of the data set that the run was trained on" in said


def test_an_augmentation_of_ones_own_is_kept(tmp_path):
    data = bv.data.load("digits").but(augment=Augment.parse("rotate:30,cutout:3"))
    run = bv.train("linear", data, "plain", out=tmp_path / "run", **QUICK)
    assert Augment.parse(settings(run).augment) == data.augment
    assert settings(bv.train("linear", "digits", "plain", out=tmp_path / "own", **QUICK)).augment == "default"


def test_data_in_memory_have_no_name(tmp_path):
    x, y = torch.rand(60, 1, 8, 8), torch.arange(60) % 3
    run = bv.train("linear", (x, y), "plain", out=tmp_path / "run", **QUICK)
    assert settings(run).name == ""


def test_the_file_of_data_may_be_given_as_a_path(tmp_path):
    np.savez(
        tmp_path / "own.npz", x=np.arange(60 * 64, dtype=np.uint8).reshape(60, 1, 8, 8), y=np.arange(60) % 3
    )
    assert bv.data.load(Path(tmp_path / "own.npz")).loaded["name"] == str(tmp_path / "own.npz")
