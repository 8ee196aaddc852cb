"""The Python functions do what the commands do: lists of runs, progress, None options, short prints."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

import bivallate as bv
from bivallate.cli import run
from bivallate.run.chance import fewest_images


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[bv.Run]:
    root, data = tmp_path_factory.mktemp("python"), bv.data.load("digits")
    made = [
        bv.train("linear", data, name, eps=0.1, epochs=1, batch_size=400, out=root / name)
        for name in ("fast-at", "plain")
    ]
    for one in made:
        bv.evaluate(one, attack="fgsm", n=50)
    return made


LOOKS = {
    "compare": lambda runs: bv.compare(runs, progress=True),
    "report": lambda runs: bv.report(runs, images=False, out=runs[0].path / "x.html", progress=True),
    "diagnose": lambda runs: bv.diagnose(runs, what="curves", progress=True),
}


@pytest.mark.parametrize("look", LOOKS)
def test_several_runs_in_one_list_with_progress(look, runs, capsys):
    assert LOOKS[look](runs)
    assert capsys.readouterr().err, "it says what it is at"


def test_what_train_returned_is_a_run_everywhere(runs):
    score = bv.evaluate(runs[0], attack="fgsm", n=50)
    assert score.robust_accuracy == bv.evaluate(runs[0].path, attack="fgsm", n=50).robust_accuracy
    memory = replace(runs[0], path=None)
    with pytest.raises(bv.UserError, match="say what to evaluate on"):
        bv.evaluate(memory, attack="fgsm")


def test_an_attack_says_how_far_it_is(runs):
    x, y = bv.data.load("digits").test.tensors(slice(0, 10))
    seen = []
    bv.attack(runs[0].model, x, y, bv.Linf(0.1), "pgd-2", progress=seen.append)
    assert seen[-1].fraction == 1.0


@pytest.mark.parametrize(
    ("look", "options", "told"),
    [
        (bv.audit, {"budget": 5}, "budget of audit is called minutes in Python"),
        (bv.audit, {"minuts": 5}, "did you mean 'minutes'"),
        (bv.evaluate, {"batchsize": 5}, "did you mean 'batch_size'"),
    ],
)
def test_an_option_that_is_none_is_one_line(look, options, told, runs):
    with pytest.raises(bv.UserError, match=told):
        look(runs[0], **options)


def test_data_and_runs_print_in_a_line(runs):
    data = bv.data.load("digits")
    assert repr(data).startswith("<Dataset digits: 10 classes, 1 x 8 x 8, 1,294 images to train on")
    assert repr(data.test) == "<Split of 359 images, 1 x 8 x 8>"
    assert all(len(repr(one)) < 200 for one in (data, data.train, *runs))


def test_data_that_have_moved_can_be_named(tmp_path, capsys):
    import numpy as np

    x, y = bv.data.load("digits").train.tensors()
    np.savez(tmp_path / "here.npz", x=x.numpy(), y=y.numpy())
    out = str(tmp_path / "run")
    given = ["--model", "linear", "--epochs", "1", "--batch-size", "400", "--eps", "0.1", "--quiet"]
    assert run(["train", "fast-at", "--data", str(tmp_path / "here.npz"), "--out", out, *given]) == 0
    shutil.move(tmp_path / "here.npz", tmp_path / "there.npz")
    there = ["--data", str(tmp_path / "there.npz")]
    capsys.readouterr()
    for command, more in {
        "resume": ["--epochs", "2", "--quiet"],
        "evaluate": ["--attack", "fgsm", "--n", "20", "--quiet"],
        "audit": ["--n", "20", "--budget", "0.01", "--quiet"],
        "attack": ["--save", str(tmp_path / "made"), "--n", "2", "--attack", "fgsm"],
    }.items():
        assert run([command, out, *more]) == 2
        assert "If the data have moved, say where they are now: --data PLACE" in capsys.readouterr().err
        if command != "audit":  # which takes longer
            assert run([command, out, *more, *there]) == 0
            capsys.readouterr()


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_so_many_images_tell_chance_from_half_of_what_can_be_learned(share):
    rows, half = fewest_images(share), (1 + share) / 2

    def apart(n: int) -> bool:
        errors = [2 * (p * (1 - p) / n) ** 0.5 for p in (share, half)]
        return half - share >= sum(errors)

    assert apart(rows)
    assert not apart(rows - 1)
