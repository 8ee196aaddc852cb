"""An evaluation that is killed at any moment and resumed has the verdicts of an uninterrupted one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.evaluation import killed
from tests.evaluation.conftest import affine
from torch import nn

import bivallate as bv
from bivallate.errors import UserError
from bivallate.evaluation import attack_and_score
from bivallate.evaluation.runner import Runner

SHORT = killed.SHORT


class Killed(BaseException):
    """Stands for the end of the process: nothing may catch it."""


def killer(part: str, occurrence: int):
    seen = 0

    def progress(moment) -> None:
        nonlocal seen
        seen += moment.stage == part
        if moment.stage == part and seen == occurrence:
            raise Killed

    return progress


OPTIONS = {"first": 24, "batch_size": 10, "seed": 5}


@pytest.fixture(scope="module")
def whole(robust_model, held_out):
    """The uninterrupted run."""
    return attack_and_score(robust_model, held_out, bv.Linf(0.08), SHORT, **OPTIONS)


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
        attack_and_score(robust_model, held_out, threat, SHORT, resume=file, progress=stop, **OPTIONS)
    resumed = attack_and_score(robust_model, held_out, threat, SHORT, resume=file, **OPTIONS)
    for column in ("broken_at", "margin", "predicted"):
        assert torch.equal(getattr(whole, column), getattr(resumed, column))
    assert resumed.passes == whole.passes


@pytest.fixture(scope="module")
def graves(tmp_path_factory):
    """What four killed processes left, and how each of them ended."""
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-m", "tests.evaluation.killed", str(folder)]
    done = subprocess.run(command, check=True, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    return folder, json.loads(done.stdout)


@pytest.fixture(scope="module")
def undisturbed():
    """The same evaluation without a kill, on one thread as there."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield killed.attacked(None)
    torch.set_num_threads(threads)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("name", killed.STAGES)
def test_a_real_kill_inside_a_search_changes_no_verdict(name, graves, undisturbed):
    folder, ends = graves
    assert ends[name] == -signal.SIGKILL
    file = folder / f"{name}.json"
    left = json.loads(file.read_text())
    part, turn, offset = left["position"]
    assert killed.STAGES[part] == name, "killed while that part was running"
    assert turn + offset > 0, "some of its verdicts were kept"
    resumed = killed.attacked(file)
    for column in ("broken_at", "margin", "predicted"):
        assert torch.equal(getattr(undisturbed, column), getattr(resumed, column))
    assert resumed.passes == undisturbed.passes
    assert sorted(p.name for p in folder.iterdir()) == sorted(f"{n}.json" for n in killed.STAGES)


def test_a_file_of_another_evaluation_or_a_torn_one_is_refused(robust_model, held_out, tmp_path):
    file = tmp_path / "progress.json"
    attack_and_score(robust_model, held_out, bv.Linf(0.1), "fgsm", first=10, resume=file)
    for changed in ({"seed": 1}, {"first": 11}):
        with pytest.raises(UserError, match="another evaluation"):
            attack_and_score(
                robust_model, held_out, bv.Linf(0.1), "fgsm", resume=file, **{"first": 10, **changed}
            )
    with pytest.raises(UserError, match="another evaluation"):
        attack_and_score(robust_model, held_out, bv.Linf(0.2), "fgsm", first=10, resume=file)
    file.write_text(file.read_text()[:100])
    with pytest.raises(UserError, match="delete it"):
        attack_and_score(robust_model, held_out, bv.Linf(0.1), "fgsm", first=10, resume=file)


@pytest.mark.parametrize("sizes", [(10, 4), (4, 30), (30, 7), (100, 5), (5, 100)], ids=str)
@pytest.mark.parametrize(("part", "occurrence"), [("apgd-ce", 1), ("apgd-t", 2), ("fab-t", 3)])
def test_a_batch_size_that_is_given_wins_on_resume(
    robust_model, held_out, whole, tmp_path, sizes, part, occurrence, monkeypatch
):
    file, threat, options = tmp_path / "progress.json", bv.Linf(0.08), {"first": 24, "seed": 5}
    stop = killer(part, occurrence)
    with contextlib.suppress(Killed):  # a large batch takes all targets at once, and reports but once
        attack_and_score(
            robust_model, held_out, threat, SHORT, resume=file, progress=stop, batch_size=sizes[0], **options
        )
    most = []
    search = Runner._attack_and_judge
    monkeypatch.setattr(
        Runner, "_attack_and_judge", lambda h, rows, *a: (most.append(len(rows)), search(h, rows, *a))[1]
    )
    resumed = attack_and_score(
        robust_model, held_out, threat, SHORT, resume=file, batch_size=sizes[1], **options
    )
    assert max(most, default=0) <= sizes[1]
    assert torch.equal(whole.broken_at, resumed.broken_at)
    assert torch.allclose(whole.margin, resumed.margin, atol=1e-3)


class Tempered(nn.Module):
    """A model whose function depends on what is in no state_dict."""

    def __init__(self, power: float) -> None:
        super().__init__()
        self.body, self.power = affine(64, 4), power

    def forward(self, x):
        return self.body(x**self.power)


def test_a_file_knows_its_model_by_its_logits(held_out, tmp_path):
    file, data = tmp_path / "progress.json", (held_out[0], held_out[1] % 4)
    one, other = Tempered(1.0), Tempered(1.5)
    for first, second in ((one, other), (lambda x: one(x), lambda x: other(x))):
        score = attack_and_score(first, data, bv.Linf(0.1), "fgsm", resume=file, batch_size=50)
        again = attack_and_score(first, data, bv.Linf(0.1), "fgsm", resume=file, batch_size=3)
        assert torch.equal(score.margin, again.margin)
        with pytest.raises(UserError, match="another model"):
            attack_and_score(second, data, bv.Linf(0.1), "fgsm", resume=file)
        file.unlink()


def test_a_random_model_is_told_that_it_cannot_be_resumed(held_out, tmp_path):
    body, file = affine(64, 10), tmp_path / "progress.json"
    generator = torch.Generator().manual_seed(0)

    def noisy(x):
        logits = body(x)
        return logits + 0.1 * torch.randn(logits.shape, generator=generator)

    attack_and_score(noisy, held_out, bv.Linf(0.1), "fgsm", resume=file)
    with pytest.raises(UserError, match="random"):
        attack_and_score(noisy, held_out, bv.Linf(0.1), "fgsm", resume=file)


def test_progress_reaches_the_end_and_never_promises_too_little(robust_model, held_out):
    moments = []
    score = attack_and_score(
        robust_model, held_out, bv.Linf(0.1), SHORT, first=40, batch_size=16, progress=moments.append
    )
    fractions = [m.fraction for m in moments]
    assert fractions == sorted(fractions)
    assert fractions[-1] > 0.99
    assert moments[-1].robust_accuracy == score.robust_accuracy
    assert all(m.robust_accuracy >= score.robust_accuracy for m in moments)
    assert all(m.seconds_left >= 0 for m in moments[1:])


def test_a_part_is_named_before_its_work(robust_model, held_out):
    names, living = [], []

    def shown(moment) -> None:
        names.append(moment.stage)
        living.append(moment.living)

    attack_and_score(robust_model, held_out, bv.Linf(0.1), SHORT, first=8, batch_size=64, progress=shown)
    assert names == ["clean", *(name for part in SHORT.stages for name in (part.name, part.name))]
    assert living[1::2] == living[:-1:2], "nothing has happened yet when a part begins"
