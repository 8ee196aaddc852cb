"""A run that was killed and resumed ends exactly where an uninterrupted one does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

import bivallate as bv
from bivallate import UserError
from bivallate.run import trainer
from bivallate.run.config import Validation
from bivallate.run.progress import Progress
from bivallate.run.signals import Interrupted

THREAT = bv.Linf(0.15)


def tiny(rows: int = 96) -> bv.data.Dataset:
    return bv.data.load("digits").but(train=bv.data.load("digits").train.subset(slice(0, rows)))


def settings(**more: object) -> dict[str, object]:
    fixed = {"epochs": 3, "batch_size": 40, "threads": 1, "optimizer": bv.SGD(0.05)}
    validation = Validation(steps=2, rows=30)
    return {**fixed, "validation": validation, **more}


def metrics(path: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def same_files(a: Path, b: Path, *names: str) -> None:
    for name in names:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


class Killed(BaseException):
    """Stands for a kill: nothing in the package catches it."""


def kill_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """The process dies in the middle of the given call of the step."""
    original, calls = trainer.train_step, 0

    def dying(*arguments, **named):
        nonlocal calls
        calls += 1
        if calls > steps:
            raise Killed
        return original(*arguments, **named)

    monkeypatch.setattr(trainer, "train_step", dying)


METHODS = {
    "at": bv.methods.at(THREAT, steps=2),
    "done": bv.methods.done_adam(THREAT, steps=2),
    "fast-bat": bv.methods.fast_bat(THREAT),
    "free": bv.methods.entries.create("free-at", THREAT, replays=2),  # pyright: ignore
    "atta": bv.methods.entries.create("atta", THREAT),  # pyright: ignore
    "curriculum": bv.methods.entries.create("curriculum", THREAT, steps=2),  # pyright: ignore
    "lbgat": bv.methods.lbgat(THREAT, steps=1),
    "bilaw": bv.methods.entries.create("bilaw", THREAT, steps=1),  # pyright: ignore
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("steps", [1, 5])
def test_a_killed_run_ends_where_an_uninterrupted_one_does(name, steps, tmp_path, monkeypatch):
    method, dataset = METHODS[name], tiny(160)
    more = settings(average=0.9, optimizer=bv.SGD(0.05), checkpoint_minutes=1e-6)
    bv.train("tiny-cnn", dataset, method, out=tmp_path / "whole", **more)
    with monkeypatch.context() as patch:
        kill_after(patch, steps)
        with pytest.raises(Killed):
            bv.train("tiny-cnn", dataset, method, out=tmp_path / "killed", **more)
    torch.rand(7)  # another process would stand elsewhere in the global generator
    bv.resume(tmp_path / "killed", dataset=dataset)
    same_files(
        tmp_path / "whole", tmp_path / "killed", "model.safetensors", "best.safetensors", "ema.safetensors"
    )
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "killed")


def test_dropout_resumes_to_the_bit(tmp_path, monkeypatch):
    class Net(torch.nn.Sequential):
        def __init__(self) -> None:
            super().__init__(
                torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.Dropout(0.5), torch.nn.Linear(16, 10)
            )

    def fresh() -> torch.nn.Module:
        torch.manual_seed(3)
        return Net()

    dataset, method, more = tiny(), METHODS["at"], settings(checkpoint_minutes=1e-6)
    bv.train(fresh(), dataset, method, out=tmp_path / "whole", **more)
    network = fresh()
    with monkeypatch.context() as patch:
        kill_after(patch, 4)
        with pytest.raises(Killed):
            bv.train(network, dataset, method, out=tmp_path / "killed", **more)
    torch.rand(11)
    bv.resume(tmp_path / "killed", dataset=dataset, model=Net())
    same_files(tmp_path / "whole", tmp_path / "killed", "model.safetensors")


def test_an_interrupt_saves_and_says_how_to_go_on(tmp_path):
    class Ask(Progress):
        def step(self, session, record, lr) -> None:
            if (session.epoch, session.step) == (1, 1):
                os.kill(os.getpid(), signal.SIGINT)

    dataset, method, more = tiny(), METHODS["at"], settings()
    bv.train("tiny-cnn", dataset, method, out=tmp_path / "whole", **more)
    with pytest.raises(Interrupted, match="bivallate resume"):
        bv.train("tiny-cnn", dataset, method, out=tmp_path / "asked", progress=Ask(), **more)
    bv.resume(tmp_path / "asked", dataset=dataset)
    same_files(tmp_path / "whole", tmp_path / "asked", "model.safetensors")


def test_resume_of_a_finished_run_changes_nothing(tmp_path):
    dataset = tiny()
    bv.train("linear", dataset, METHODS["at"], out=tmp_path / "run", **settings())
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    bv.resume(tmp_path / "run", dataset=dataset)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before


def test_resume_refuses_other_data_and_other_models(tmp_path):
    dataset = tiny()
    bv.train("linear", dataset, METHODS["at"], out=tmp_path / "run", **settings())
    with pytest.raises(bv.UserError, match="fingerprint"):
        bv.resume(tmp_path / "run", dataset=tiny(80))
    with pytest.raises(bv.UserError, match="another model"):
        bv.resume(tmp_path / "run", dataset=dataset, model="tiny-cnn")


def test_a_process_killed_with_signal_9_resumes_from_the_command_line(tmp_path):
    arguments = ["train", "at", "--epochs", "6", "--batch-size", "64", "--threads", "1"]
    arguments += ["--set", "checkpoint_minutes=0.01", "--set", "steps=3"]
    command = [sys.executable, "-m", "bivallate"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*command, *arguments, "--out", tmp_path / "whole"], check=True, env=environment, capture_output=True
    )
    process = subprocess.Popen(
        [*command, *arguments, "--out", tmp_path / "killed"], env=environment, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "killed" / "checkpoints").glob("epoch-0000[1-4]*"))) == 0:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert (tmp_path / "killed" / "metrics.jsonl").read_text().count("\n") < 6
    subprocess.run(
        [*command, "resume", tmp_path / "killed"], check=True, env=environment, capture_output=True
    )
    same_files(tmp_path / "whole", tmp_path / "killed", "model.safetensors", "best.safetensors")
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "killed")


def test_one_command_begins_a_run_and_goes_on_with_it(tmp_path, monkeypatch):
    dataset, method, more = tiny(), METHODS["at"], settings(checkpoint_minutes=1e-6)
    start = partial(bv.train, "tiny-cnn", dataset, method, resume_if_there=True, **more)
    whole = start(out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        kill_after(patch, 4)
        with pytest.raises(Killed):
            start(out=tmp_path / "killed")
    own = r"goes on with its own checkpoint_minutes=1e-06, keep=\(\): .*config.toml"
    with pytest.warns(UserWarning, match=own):
        gone_on = start(out=tmp_path / "killed", keep=(1,), checkpoint_minutes=9.0)
    same_files(tmp_path / "whole", tmp_path / "killed", "model.safetensors")
    assert [line["epoch"] for line in gone_on.history] == [line["epoch"] for line in whole.history]
    before = (tmp_path / "whole" / "model.safetensors").stat().st_mtime_ns
    assert len(start(out=tmp_path / "whole").history) == len(whole.history)  # finished: nothing is left to do
    assert (tmp_path / "whole" / "model.safetensors").stat().st_mtime_ns == before
    start(out=tmp_path / "whole", keep=(1,), checkpoint_minutes=9.0)  # and nothing that could be kept
    with pytest.raises(UserError, match=r"is another one: .*lr differs"):
        start(out=tmp_path / "whole", lr=0.01)
    with pytest.raises(UserError, match="cannot go with overwrite"):
        start(out=tmp_path / "whole", overwrite=True)
    with pytest.raises(UserError, match="needs the run's folder"):
        start()
