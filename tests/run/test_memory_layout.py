"""channels_last = "auto": the result of the measurement is recorded, and nothing else changes."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

import bivallate as bv
from bivallate.cli import run as command
from bivallate.errors import UserError
from bivallate.parts import encode
from bivallate.run import memory_layout
from bivallate.run.config import Config
from bivallate.run.progress import Progress
from bivallate.run.resuming import resume
from bivallate.toml import to_toml

from .runs import digits, same, settings

TIMES = [  # seconds of steps: usual and channels last by turns; which is chosen, and how many steps it took
    ([0.1, 0.1, 0.2, 0.1, 0.2, 0.1], False, 6),  # the first usual one was as fast as any
    ([0.5, 0.9, 0.2, 0.1, 0.2, 0.1], True, 6),  # the first of each warms up
    ([1, 3, 1, 0.98, 1, 1], False, 6),  # not clearly
    ([8, 4], True, 2),  # slow: enough has been seen
    ([4, 5, 4, 3], True, 4),
]


def clocked(monkeypatch: pytest.MonkeyPatch, seconds: list[float]) -> list[float]:
    """A clock by which steps take these times; returns what is left of them."""
    left, now = list(seconds), itertools.count()
    place = [0.0]

    def clock() -> float:
        if next(now) % 2:  # a step has ended
            place[0] += left.pop(0)
        return place[0]

    monkeypatch.setattr(memory_layout, "perf_counter", clock)
    return left


class Told(Progress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def train(out: Path, told: Told | None = None, network: str = "tiny-cnn", **more: Any) -> bv.Run:
    method = bv.methods.at(bv.Linf(0.15), steps=1)
    return bv.train(network, digits(), method, out=out, progress=told or Told(), **settings(**more))


@pytest.mark.parametrize(("seconds", "chosen", "steps"), TIMES)
def test_the_faster_layout_is_chosen_and_written(seconds, chosen, steps, monkeypatch, tmp_path):
    left, told = clocked(monkeypatch, seconds), Told()
    train(tmp_path / "auto", told, channels_last="auto", epochs=1)
    assert len(seconds) - len(left) == steps
    assert Config.read(tmp_path / "auto" / "config.toml").channels_last is chosen
    (line,) = told.lines
    assert line.startswith(f"channels_last = {str(chosen).lower()}: ")
    train(tmp_path / "named", channels_last=chosen, epochs=1)
    same(tmp_path / "auto", tmp_path / "named")


def test_nothing_of_the_measurement_stays(monkeypatch):
    clocked(monkeypatch, [1.0] * 6)
    data = digits()
    model = bv.models.create("tiny-cnn", num_classes=10, shape=data.shape, seed=0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    config = Config(bv.methods.free_at(bv.Linf(0.1)), device="cpu", batch_size=8)
    expected = torch.get_rng_state()
    settled = memory_layout.resolved_layout(
        config.set("channels_last", "auto"), data, model, lambda text: None
    )
    assert settled == config
    assert torch.equal(torch.get_rng_state(), expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("network", "fault", "words"),
    [
        ("linear", None, "no convolutions"),
        ("tiny-cnn", RuntimeError("no"), "not be measured (RuntimeError: no)"),
    ],
)
def test_without_a_measurement_it_is_the_usual_layout(network, fault, words, monkeypatch, tmp_path):
    def fails(*_: object) -> None:
        raise fault

    monkeypatch.setattr(memory_layout, "whole_step", fails)
    told = Told()
    train(tmp_path / "run", told, network, channels_last="auto", epochs=1)
    (line,) = told.lines
    assert words in line
    assert Config.read(tmp_path / "run" / "config.toml").channels_last is False


def test_a_resumed_run_keeps_what_was_settled(monkeypatch, tmp_path):
    clocked(monkeypatch, [0.9, 0.9, 0.2, 0.1, 0.2, 0.1])
    train(tmp_path / "run", channels_last="auto", epochs=1)
    monkeypatch.setattr(memory_layout, "step_seconds", None)  # not needed
    train(tmp_path / "named", channels_last=True, epochs=1)
    for name in ("run", "named"):
        resume(tmp_path / name, dataset=digits(), epochs=2, progress=Told())
    same(tmp_path / "run", tmp_path / "named")
    assert Config.read(tmp_path / "run" / "config.toml").channels_last is True


def test_one_that_was_left_before_its_first_checkpoint_settles_it(monkeypatch, tmp_path):
    train(tmp_path / "named", channels_last=True, epochs=1)
    path = tmp_path / "run" / "config.toml"
    path.parent.mkdir()
    config = Config.read(tmp_path / "named" / "config.toml").set("channels_last", "auto")
    config.write(path)
    clocked(monkeypatch, [0.9, 0.9, 0.2, 0.1, 0.2, 0.1])
    resume(tmp_path / "run", dataset=digits(), progress=Told())
    same(tmp_path / "run", tmp_path / "named")
    resume(tmp_path / "run", dataset=digits(), progress=Told())


@pytest.mark.parametrize("text", ["true", "false", "auto"])
def test_it_can_be_said_everywhere(text, tmp_path):
    config = Config(bv.methods.at(bv.Linf(0.1)))
    for begun in (config, config.set("channels_last", "auto")):
        said = begun.set("channels_last", text)
        assert said.channels_last == {"true": True, "false": False}.get(text, text)
        (tmp_path / "c.toml").write_text(to_toml(encode(said)))
        assert Config.read(tmp_path / "c.toml") == said
        with pytest.raises(UserError, match="channels_last must be true or false or auto, got 'fast'"):
            begun.set("channels_last", "fast")


def test_the_written_configuration_repeats_the_run(monkeypatch, tmp_path, capsys):
    clocked(monkeypatch, [0.9, 0.9, 0.2, 0.1, 0.2, 0.1])
    first, again = tmp_path / "first", tmp_path / "again"
    common = ["train", "at", "--data", "digits", "--model", "tiny-cnn", "--epochs", "1", "--threads", "1"]
    common += ["--set", "solver.steps=1", "--set", "sentinel.on=false"]
    assert command([*common, "--set", "channels_last=auto", "--out", str(first)]) == 0
    assert capsys.readouterr().err.count("channels_last = true") == 1
    assert command(["train", "--config", str(first / "config.toml"), "--out", str(again)]) == 0
    assert (first / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
