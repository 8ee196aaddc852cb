"""Loggers receive what a run's folder holds, continue where a run continues, and cannot break a run."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import bivallate as bv
from bivallate import cli
from bivallate.run.loggers import LOGGERS
from bivallate.run.progress import Progress
from bivallate.run.signals import Interrupted


class Heard:
    """A logger of one's own, which may fail at one of its words."""

    def __init__(self, fails_at: str = "") -> None:
        self.words: list[tuple[str, Any]] = []
        self.fails_at = fails_at

    def _hear(self, word: str, *what: Any) -> None:
        if word == self.fails_at:
            raise RuntimeError("the disk is full")
        self.words.append((word, what))

    def begin(self, config, folder, step) -> None:
        self._hear("begin", config, folder, step)

    def step(self, step, values) -> None:
        self._hear("step", step, values)

    def epoch(self, step, values) -> None:
        self._hear("epoch", step, values)

    def alarm(self, step, text) -> None:
        self._hear("alarm", step, text)

    def figure(self, step, name, figure) -> None:
        self._hear("figure", step, name, figure)

    def end(self) -> None:
        self._hear("end")


class After(Progress):
    """Interrupts a run after so many minibatches."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def step(self, session, record, lr) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), 15)


def train(out: Path | None, **settings: Any) -> bv.Run:
    torch.manual_seed(0)
    settings = {"epochs": 2, "seed": 0, "lr": 0.1, "batch_size": 100} | settings
    model = bv.models.create("linear", num_classes=10, shape=(1, 8, 8))
    return bv.train(model, "digits", bv.methods.at(bv.Linf(0.1), steps=1), out=out, **settings)


def test_what_is_told(tmp_path) -> None:
    heard = Heard()
    run = train(tmp_path / "run", log=[heard])
    words = [word for word, _ in heard.words]
    assert words[0] == "begin"
    assert words[-2:] == ["figure", "end"]
    assert words.count("epoch") == 2
    assert words[1] == "step"
    epochs = [what for word, what in heard.words if word == "epoch"]
    for (step, values), line in zip(epochs, run.history, strict=True):
        assert step % int(line["epoch"]) == 0
        assert values["robust"] == line["robust"]
        assert values["loss"] == line["loss"]
        assert all(type(value) is float for value in values.values())
    config, folder, step = heard.words[0][1]
    assert (config["epochs"], folder, step) == (2, tmp_path / "run", 0)


def test_a_logger_changes_nothing(tmp_path) -> None:
    plain, logged = train(None), train(None, log=[Heard()])
    for key, value in plain.model.state_dict().items():
        assert torch.equal(value, logged.model.state_dict()[key])


@pytest.mark.parametrize("word", ["begin", "step", "epoch", "figure", "end"])
def test_a_logger_that_fails_is_dropped_with_one_word(word: str, tmp_path) -> None:
    broken, sound = Heard(word), Heard()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        run = train(tmp_path / "run", log=[broken, sound])
    assert len(run.history) == 2
    texts = [str(one.message) for one in told]
    assert [text for text in texts if "Heard failed (RuntimeError: the disk is full)" in text] == texts
    assert len(texts) == 1
    assert [w for w, _ in sound.words].count("epoch") == 2
    assert not any(w == word for w, _ in broken.words)


@pytest.mark.parametrize(
    ("log", "message"),
    [
        ("tensorbord", "tensorboard"),
        ("csv,csv", "named twice"),
        pytest.param(
            "wandb",
            "pip install 'bivallate[wandb]'",
            marks=pytest.mark.skipif(
                importlib.util.find_spec("wandb") is not None, reason="wandb is installed"
            ),
        ),
    ],
)
def test_a_wrong_name_is_told_before_anything_is_written(log: str, message: str, tmp_path, capsys) -> None:
    with pytest.raises(bv.UserError, match=message.replace("[", r"\[")):
        train(tmp_path / "run", log=log)
    assert not (tmp_path / "run").exists()
    assert cli.run(["train", "at", "--epochs", "1", "--log", log, "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_csv_of_an_interrupted_run_is_that_of_a_whole_one(tmp_path) -> None:
    train(tmp_path / "whole", epochs=4, log="csv")
    with pytest.raises(Interrupted):
        train(tmp_path / "cut", epochs=4, log="csv", progress=After(27))
    late = tmp_path / "cut" / "logs" / "csv" / "steps.csv"
    late.write_text(late.read_text() + late.read_text().splitlines()[-1].replace("20,", "999,", 1) + "\n")
    bv.resume(tmp_path / "cut", log="csv")
    for file in ("steps.csv", "epochs.csv"):
        one, other = (rows(tmp_path / name / "logs" / "csv" / file) for name in ("whole", "cut"))
        assert len(one) >= 4
        free = {"seconds"}
        assert [{k: v for k, v in r.items() if k not in free} for r in one] == [
            {k: v for k, v in r.items() if k not in free} for r in other
        ]
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    table = rows(tmp_path / "whole" / "logs" / "csv" / "epochs.csv")
    assert [float(row["robust"]) for row in table] == [line["robust"] for line in lines]
    assert (tmp_path / "whole" / "logs" / "csv" / "training.svg").read_text().startswith("<?xml")


def test_tensorboard_reads_back(tmp_path) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(Interrupted):
        train(tmp_path / "run", epochs=4, log="tensorboard", progress=After(27))
    run = bv.resume(tmp_path / "run", log="tensorboard")
    found = EventAccumulator(str(tmp_path / "run" / "logs" / "tensorboard"))
    found.Reload()
    robust = found.Scalars("epoch/robust")
    assert [event.value for event in robust] == pytest.approx([line["robust"] for line in run.history])
    steps = [event.step for event in found.Scalars("step/loss")]
    assert steps == sorted(set(steps))
    assert found.Tags()["images"] == ["training"]


def test_wandb_offline(tmp_path, monkeypatch) -> None:
    pytest.importorskip("wandb", reason="needs the extra wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the package's own
        run = train(tmp_path / "run", log="wandb")
    (file,) = (tmp_path / "run" / "logs" / "wandb").rglob("*.wandb")
    until = time.monotonic() + 30  # its service writes on for a moment after the run has ended
    while b"epoch/robust" not in file.read_bytes() and time.monotonic() < until:
        time.sleep(0.2)
    told = file.read_bytes()
    assert b"epoch/robust" in told
    assert str(run.history[-1]["robust"])[:8].encode() in told
    assert list(file.parent.rglob("training*.png"))


def test_trackio_locally(tmp_path) -> None:
    pytest.importorskip("trackio", reason="needs the extra trackio")
    code = (
        "import bivallate as bv; bv.train('linear', 'digits', 'at', eps=0.1, epochs=2, log='trackio', "
        f"out={str(tmp_path / 'run')!r})"
    )
    place = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio")}  # it is read when trackio is imported
    subprocess.run([sys.executable, "-c", code], env=place, check=True, capture_output=True)
    (file,) = (tmp_path / "trackio").glob("bivallate.db")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    told = b"".join(part.read_bytes() for part in file.parent.glob("bivallate.db*"))
    for line in lines:
        assert f'"epoch/robust": {json.loads(line)["robust"]}'.encode() in told.replace(
            b'":', b'": '
        ).replace(b"  ", b" ")


def test_names_are_told_in_help(capsys) -> None:
    cli.run(["train", "--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in LOGGERS)
