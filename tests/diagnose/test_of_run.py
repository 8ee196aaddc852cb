"""Diagnostics of run folders: which weights, which epoch, which runs together."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pytest

import bivallate as bv
from bivallate.reports.diagnostics.of_run import DIAGNOSES, subject

matplotlib.use("Agg")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """at: two epochs, the first kept; wide: another radius; ball: another norm; free: an attack with a
    memory."""
    root, quick = tmp_path_factory.mktemp("of-run"), {"batch_size": 400, "threads": 1, "epochs": 2}
    made = {
        "at": (bv.methods.at(bv.Linf(0.1), steps=2), (1,)),
        "wide": (bv.methods.at(bv.Linf(0.2), steps=2), ()),
        "ball": (bv.methods.at(bv.L2(0.5), steps=2), ()),
        "free": (bv.methods.free_at(bv.Linf(0.1), replays=2), (1,)),
    }
    for name, (method, keep) in made.items():
        bv.train("linear", "digits", method, out=root / name, keep=keep, **quick)
    return root


def test_fosc_over_epochs_is_of_the_kept_epochs_and_the_last(runs):
    drawn = DIAGNOSES["fosc-over-epochs"](subject([runs / "at", runs / "wide", runs / "free"], n=30))
    assert {k: list(v) for k, v in drawn.fosc.items()} == {
        "at": [1, 2],
        "wide": [2],
        "free, under PGD-20": [1, 2],
    }
    assert not np.array_equal(drawn.fosc["at"][1], drawn.fosc["at"][2])
    with pytest.raises(bv.UserError, match="no run keeps weights"):
        DIAGNOSES["fosc-over-epochs"](subject([runs / "wide"], n=30))


def test_an_unfinished_run_ends_where_it_stands(runs, tmp_path):
    for file in (runs / "at").rglob("*"):
        if file.is_file():
            place = tmp_path / "at" / file.relative_to(runs / "at")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.read_bytes())
    text = (tmp_path / "at" / "config.toml").read_text()
    text = text.replace("epochs = 2", "epochs = 9").replace("keep = [1]", "keep = [1, 5]")
    (tmp_path / "at" / "config.toml").write_text(text)
    drawn = DIAGNOSES["fosc-over-epochs"](subject([tmp_path / "at"], n=30))
    assert list(drawn.fosc["at"]) == [1, 2]


def test_accuracy_over_eps_of_training(runs):
    drawn = DIAGNOSES["training-eps"](subject([runs / "at", runs / "wide"], n=60, attack="pgd-3"))
    points = {(p.run, p.weights): p for p in drawn.points}
    assert set(points) == {(run, weights) for run in ("at", "wide") for weights in ("best", "last")}
    dataset = bv.data.load("digits")
    model, threat = bv.load(runs / "wide", "last"), bv.Linf(0.2)
    expected = bv.evaluate(model, dataset.test, threat, "pgd-3", n=60).robust_accuracy
    assert points["wide", "last"].accuracy == expected
    for together in (["at"], ["at", "ball"], ["at", "free"]):
        with pytest.raises(bv.UserError, match="several radii of one norm"):
            DIAGNOSES["training-eps"](subject([runs / name for name in together], n=60))
