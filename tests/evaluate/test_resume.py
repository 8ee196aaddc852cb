"""A kill at any moment and a resume give the verdicts of an uninterrupted run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import bivallate as bv
from bivallate.errors import UserError
from bivallate.evaluate import Attack, evaluate
from bivallate.evaluate.ensemble import AutoPGD, SquareSearch, TargetedAutoPGD, TargetedBoundaryWalk
from bivallate.lower.apgd import APGD
from bivallate.lower.fab import FAB
from bivallate.lower.square import Square

SHORT = Attack(
    "short",
    (
        AutoPGD("apgd-ce", solver=APGD(6)),
        TargetedAutoPGD(solver=APGD(6), targets=3),
        TargetedBoundaryWalk(solver=FAB(5), targets=3),
        SquareSearch(solver=Square(40)),
    ),
)


class Killed(BaseException):
    """Stands for the end of the process: nothing may catch it."""


def killer(part: str, occurrence: int):
    seen = 0

    def progress(moment) -> None:
        nonlocal seen
        seen += moment.part == part
        if moment.part == part and seen == occurrence:
            raise Killed

    return progress


OPTIONS = {"first": 24, "batch_size": 10, "seed": 5}


@pytest.fixture(scope="module")
def whole(robust_model, held_out):
    """The uninterrupted run."""
    return evaluate(robust_model, held_out, bv.Linf(0.08), SHORT, **OPTIONS)


MOMENTS = [
    ("clean", 1),
    ("apgd-ce", 1),
    ("apgd-t", 2),
    ("fab-t", 1),
    ("fab-t", 3),
    ("square", 1),
    ("square", 2),
]


@pytest.mark.parametrize(("part", "occurrence"), MOMENTS)
def test_resuming_gives_the_same_verdicts(robust_model, held_out, whole, tmp_path, part, occurrence):
    file, threat = tmp_path / "progress.json", bv.Linf(0.08)
    stop = killer(part, occurrence)
    with pytest.raises(Killed):
        evaluate(robust_model, held_out, threat, SHORT, resume=file, progress=stop, **OPTIONS)
    resumed = evaluate(robust_model, held_out, threat, SHORT, resume=file, **OPTIONS)
    for column in ("stage", "margin", "predicted"):
        assert torch.equal(getattr(whole, column), getattr(resumed, column))
    assert resumed.passes == whole.passes


def test_a_real_kill_leaves_a_whole_file(tmp_path):
    file = tmp_path / "progress.json"
    code = f"""
import os, signal, torch
torch.set_num_threads(1)
import bivallate as bv
from bivallate.evaluate import evaluate
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
x = torch.rand(60, 1, 8, 8)
y = model(x).argmax(1)
def end(moment):
    if moment.part == "square":
        os.kill(os.getpid(), signal.SIGKILL)
evaluate(model, (x, y), bv.Linf(0.001), "square-20", batch_size=10, resume={str(file)!r}, progress=end)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == -9
    content = json.loads(file.read_text())
    assert content["position"] == [0, 0, 10]
    assert [p.name for p in tmp_path.iterdir()] == ["progress.json"]


def test_a_file_of_another_evaluation_or_a_torn_one_is_refused(robust_model, held_out, tmp_path):
    file = tmp_path / "progress.json"
    evaluate(robust_model, held_out, bv.Linf(0.1), "fgsm", first=10, resume=file)
    for changed in ({"seed": 1}, {"first": 11}):
        with pytest.raises(UserError, match="another evaluation"):
            evaluate(robust_model, held_out, bv.Linf(0.1), "fgsm", resume=file, **{"first": 10, **changed})
    with pytest.raises(UserError, match="another evaluation"):
        evaluate(robust_model, held_out, bv.Linf(0.2), "fgsm", first=10, resume=file)
    file.write_text(file.read_text()[:100])
    with pytest.raises(UserError, match="delete it"):
        evaluate(robust_model, held_out, bv.Linf(0.1), "fgsm", first=10, resume=file)


def test_progress_reaches_the_end_and_never_promises_too_little(robust_model, held_out):
    moments = []
    score = evaluate(
        robust_model, held_out, bv.Linf(0.1), SHORT, first=40, batch_size=16, progress=moments.append
    )
    fractions = [m.fraction for m in moments]
    assert fractions == sorted(fractions)
    assert fractions[-1] > 0.99
    assert moments[-1].robust_accuracy == score.robust_accuracy
    assert all(m.robust_accuracy >= score.robust_accuracy for m in moments)
    assert all(m.seconds_left >= 0 for m in moments[1:])
