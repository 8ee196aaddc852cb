"""Diagnostics of run folders: which weights, which epoch, which runs together."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch

import bivallate as bv
from bivallate.commands.diagnose import diagnose
from bivallate.lower.problem import LowerProblem
from bivallate.reports.diagnostics.by_name import DIAGNOSES, subject
from bivallate.reports.diagnostics.fosc_epochs import FOSCOverEpochs
from bivallate.reports.diagnostics.sample import inspected, sample
from bivallate.reports.diagnostics.weighed_points import weigh_points
from bivallate.types import Clock

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
        "mail": (bv.methods.mail_at(bv.Linf(0.1), steps=2, burn_in=0.0), ()),
        "bilaw": (bv.methods.bilaw(bv.Linf(0.1), steps=2), ()),
        "n-fgsm": (bv.methods.n_fgsm(bv.Linf(0.1)), ()),
    }
    own = {"bilaw": {"batch_size": 300}}
    for name, (method, keep) in made.items():
        bv.train("linear", "digits", method, out=root / name, keep=keep, **quick | own.get(name, {}))
    return root


def test_the_help_names_every_figure() -> None:
    listed = str(diagnose.__doc__).split("    what\n")[1].split("; repeatable")[0]
    assert set(DIAGNOSES) <= {*re.findall(r"[a-z-]+", listed)}


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


def test_a_run_made_on_cuda_is_looked_at_without_it(runs, tmp_path):
    shutil.copytree(runs / "mail", tmp_path / "mail")
    text, config = (runs / "mail" / "config.toml").read_text(), tmp_path / "mail" / "config.toml"
    for key in ("graphs", "compile"):
        assert f"{key} = false" in text
        text = text.replace(f"{key} = false", f"{key} = true")
    config.write_text(text)
    there, here = (subject([root / "mail"], weights="last", n=60) for root in (tmp_path, runs))
    weights = [looked.weighed(looked.runs[0]).weights for looked in (there, here)]
    np.testing.assert_array_equal(*weights)


def test_an_unfinished_run_ends_where_it_stands(runs, tmp_path):
    shutil.copytree(runs / "at", tmp_path / "at")
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


def test_every_run_is_tested_under_every_runs_attack(runs):
    looked = subject([runs / "at", runs / "wide"], weights="last", n=60)
    drawn = DIAGNOSES["cross"](looked)
    assert drawn.accuracy.shape == (2, 2)
    method = looked.session(looked.runs[1]).method
    chosen = sample(looked.data.test, 60, 0)
    model, right = looked.models["at"], 0
    with inspected(model) as device:
        for batch in chosen.batches(device, 128):
            problem = LowerProblem(model, batch, method.objective, method.threat, Clock(1, 2))
            x_adv = batch.x + method.solver.solve(problem).delta
            right += int(((model(batch.x).argmax(1) == batch.y) & (model(x_adv).argmax(1) == batch.y)).sum())
    assert drawn.accuracy[0, 1] == right / 60
    assert (drawn.accuracy[:, 1] < drawn.accuracy[:, 0]).all(), "the wider attack is the stronger one"
    own = DIAGNOSES["fosc-over-epochs"](looked).fosc["at"][2]
    np.testing.assert_allclose(drawn.fosc[0], own, rtol=1e-5)
    assert (drawn.loss > 0).all()
    with pytest.raises(bv.UserError, match="leaves"):
        DIAGNOSES["cross"](subject([runs / "at", runs / "n-fgsm"], n=30))
    with pytest.raises(bv.UserError, match="name the others too"):
        DIAGNOSES["cross"](subject([runs / "at"], n=30))


def test_two_weightings_are_compared_on_the_network_of_the_first(runs):
    looked = subject([runs / "bilaw", runs / "mail"], weights="last", n=60)
    drawn = DIAGNOSES["weightings"](looked)
    np.testing.assert_array_equal(drawn.first, looked.weighed(looked.runs[0]).weights)
    swapped = DIAGNOSES["weight-scatter"](looked)
    np.testing.assert_array_equal(swapped.first, drawn.first)
    assert not np.array_equal(swapped.second, drawn.second), "another network"
    method = looked.session(looked.runs[1]).method
    expected = weigh_points(looked.models["bilaw"], method, looked.data.test, Clock(1, 2), n=60)
    np.testing.assert_array_equal(drawn.second, expected.weights)


def test_omega_at_clean_margins_is_the_methods_weight_and_at_others_the_networks(runs):
    looked = subject([runs / "bilaw"], weights="last", n=60)
    drawn = DIAGNOSES["omega"](looked)
    own = looked.weighed(looked.runs[0], "train")
    np.testing.assert_allclose(drawn.clean[1], own.weights, rtol=1e-5)
    net = looked.session(looked.runs[0]).method.weighting
    p = torch.from_numpy(own.adversarial)
    margins = p.gather(1, torch.from_numpy(own.y)[:, None]) - p
    with torch.no_grad():
        weights = net.omega(margins).numpy()
    np.testing.assert_allclose(drawn.attacked[1], weights / weights.mean(), rtol=1e-4)
    np.testing.assert_array_equal(drawn.attacked[0], own.margin)
    assert (drawn.clean[0] > drawn.attacked[0]).mean() > 0.9
    with pytest.raises(bv.UserError, match="BiLAW"):
        DIAGNOSES["omega"](subject([runs / "mail"], n=30))


def test_alignment_by_epoch_is_the_score_on_test_points_of_kept_weights(runs):
    looked = subject([runs / "at", runs / "wide"], weights="last", n=60)
    drawn = DIAGNOSES["alignment-by-epoch"](looked)
    assert {label: list(score) for label, score in drawn.score.items()} == {"at": [1, 2]}
    assert drawn.score["at"][2] == pytest.approx(DIAGNOSES["alignment"](looked).score["at"])
    with pytest.raises(bv.UserError, match="no run keeps weights"):
        DIAGNOSES["alignment-by-epoch"](subject([runs / "wide"], n=30))


def test_pictures_of_several_runs_and_their_data_are_written(runs, tmp_path):
    for name, chosen in {"cross": ("at", "wide"), "omega": ("bilaw",), "alignment-by-epoch": ("at",)}.items():
        drawn = DIAGNOSES[name](subject([runs / run for run in chosen], weights="last", n=30))
        assert drawn.save(tmp_path / name).stat().st_size > 1000


def test_data_are_read_without_unpickling(runs, tmp_path):
    alone = {"alignment-by-epoch", "fosc-over-epochs", "fosc", "fosc-traces", "landscape", "confusion"}
    of = dict.fromkeys(alone, "at") | dict.fromkeys(
        ("weights", "weights-over-epochs", "weights-by-margin", "examples", "likelihoods"), "mail"
    )
    for name, run in of.items():
        DIAGNOSES[name](subject([runs / run], weights="last", n=30)).save(tmp_path / name, ("svg",))
    files = list(tmp_path.glob("*.npz"))
    assert len(files) >= 6
    for file in files:
        with np.load(file, allow_pickle=False) as kept:
            assert {name: kept[name].dtype.kind for name in kept}, file
    assert float(np.load(tmp_path / "fosc-over-epochs.npz")["within_0.1 at 1"]) <= 1


def test_landscapes_are_those_of_each_run(runs):
    drawn = DIAGNOSES["landscapes"](subject([runs / "at", runs / "mail"], weights="last", n=30))
    one = DIAGNOSES["landscape"](subject([runs / "mail"], weights="last", n=30))
    np.testing.assert_array_equal(drawn.data()["loss mail"], one.loss)
    assert len(drawn.draw().axes) == 3, "two panels and the scale"


def test_the_share_of_converged_points_is_of_those_within_a_tenth():
    drawn = FOSCOverEpochs({"at": {1: np.array([0.0, 0.05, 0.1, 0.2])}})
    assert drawn.share("at", 1) == 0.75
    assert drawn.data()["within_0.1"] == {"at": {"1": 0.75}}


def test_the_radius_of_training_is_drawn_in_its_own_norm(runs):
    drawn = DIAGNOSES["eps"](subject([runs / "at", runs / "ball", runs / "wide"], n=20, attack="fgsm"))
    assert drawn.trained == {"at": 0.1, "wide": 0.2}


def test_a_figure_that_cannot_be_written_is_one_line(runs, tmp_path):
    (tmp_path / "file").write_text("in the way")
    drawn = DIAGNOSES["weights-over-epochs"](subject([runs / "mail"], n=20))
    with pytest.raises(bv.UserError, match=r"cannot write to .*file"):
        drawn.save(tmp_path / "file" / "figure")
