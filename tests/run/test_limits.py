"""Trainings that end early, dry runs, progress of long runs; methods by name in Python."""

from __future__ import annotations

import tomllib
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

import bivallate as bv
from bivallate.cli import run
from bivallate.run import progress
from bivallate.run.config import Config
from bivallate.run.signals import Interrupted
from bivallate.types import Passes

QUICK = ["--batch-size", "400", "--model", "linear", "--set", "validation.steps=1", "--epochs", "2"]
FAST = {"batch_size": 400, "validation": bv.run.config.Validation(steps=1)}  # pyright: ignore


@pytest.fixture(scope="module")
def digits():
    return bv.data.load("digits")


def test_patience_ends_a_training_and_is_resumed_exactly(digits, tmp_path):
    settings = {"epochs": 8, "patience": 2, "lr": 1e-9} | FAST
    whole = bv.train("linear", digits, "plain", **settings)
    assert len(whole.history) == 3, "nothing moves, so that the first epoch stays the best"
    with pytest.raises(Interrupted, match="time is up"):
        bv.train("linear", digits, "plain", out=tmp_path / "run", max_minutes=1e-9, **settings)
    assert Config.read(tmp_path / "run" / "config.toml").patience == 2
    again = bv.resume(tmp_path / "run")
    assert [line["loss"] for line in again.history] == [line["loss"] for line in whole.history]
    assert len(bv.resume(tmp_path / "run").history) == 3, "a training that has ended stays so"


WRONG = [
    ({"patience": -1}, "patience must be"),
    ({"patience": 1, "data": {"validation": 0}}, "nothing is held out"),
    ({"max_minutes": 0}, "max_minutes must be positive"),
    ({"method": bv.methods.at}, r".at. makes a method and was not called: write bv.methods.at\("),
    ({"method": 3}, "a method is needed"),
    ({"method": "att"}, "at"),
    ({"method": bv.methods.at(bv.Linf(0.1)), "eps": 0.1}, "a method knows its threat"),
    ({"method": "at", "norm": "l2"}, "needs a radius"),
]


@pytest.mark.parametrize(("given", "said"), WRONG, ids=[said[:20] for _, said in WRONG])
def test_what_cannot_be_trained_is_one_line(given, said, digits):
    data = bv.data.load("digits", **given.get("data", {})) if "data" in given else digits
    options = {k: v for k, v in given.items() if k not in ("data", "method")}
    with pytest.raises(bv.UserError, match=said):
        bv.train("linear", data, given.get("method", "plain"), epochs=1, **options)


@pytest.mark.parametrize("look", [bv.upper_gradient, bv.check_gradient])
def test_a_function_that_was_not_called_is_told_by_its_siblings(look, digits):
    model = bv.models.create("linear", num_classes=10, shape=(1, 8, 8))
    with pytest.raises(bv.UserError, match="was not called"):
        look(model, bv.methods.trades, digits.train.tensors(slice(0, 4)))


def test_a_name_takes_the_threat_that_is_given_or_customary(digits):
    for given, threat in [({}, bv.Linf(0.15)), ({"eps": "1/10"}, bv.Linf(0.1)),
                          ({"eps": 0.5, "norm": "l2"}, bv.L2(0.5))]:  # fmt: skip
        seen: list = []
        watch = type(
            "Watch", (progress.Progress,), {"begin": lambda self, session, seen=seen: seen.append(session)}
        )()
        bv.train("linear", digits, "fast-at", epochs=1, progress=watch, **given, **FAST)
        assert seen[0].config.method.threat == threat


def test_time_limit_dry_run_and_quiet(tmp_path, capsys):
    out = tmp_path / "run"
    given = ["train", "fast-at", *QUICK, "--out", str(out)]
    assert run([*given, "--dry-run"]) == 0
    told = capsys.readouterr()
    assert not out.exists()
    assert tomllib.loads(told.out)["epochs"] == 2
    assert "would take about" in told.err
    (tmp_path / "plan.toml").write_text(told.out)
    assert Config.read(tmp_path / "plan.toml").method.name == "fast-at"
    assert run([*given, "--max-minutes", "1e-9", "--quiet"]) == 130
    told = capsys.readouterr()
    assert "the time is up at epoch 1" in told.err
    assert len(told.err.splitlines()) == 1
    assert run(["resume", str(out), "--quiet"]) == 0
    told = capsys.readouterr()
    assert not told.out + told.err
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_slow_forecast_times_two_minibatches(digits, monkeypatch):
    from bivallate.run import forecast as module
    from bivallate.run.config import Model
    from bivallate.run.from_config import create_model

    timed, step = [], module.train_step
    monkeypatch.setattr(module, "train_step", lambda *given: timed.append(1) or step(*given))
    config = Config(bv.methods.at(bv.Linf(0.1), steps=2), model=Model(name="linear"), epochs=2, batch_size=64)
    whole = module.forecast(config, digits, create_model(config.model, digits, 0))
    assert len(timed) == module.STEPS
    monkeypatch.setattr(module, "ENOUGH", 0.0)
    brief = module.forecast(config, digits, create_model(config.model, digits, 0))
    assert len(timed) == module.STEPS + 2
    assert (brief.forward, brief.backward) == (whole.forward, whole.backward)


def test_a_forecast_counts_the_passes_that_the_run_takes(tmp_path, digits):
    from bivallate.run.forecast import forecast
    from bivallate.run.from_config import create_model

    done = bv.train("linear", digits, "at", epochs=2, **FAST, out=tmp_path / "run")
    config = Config.read(tmp_path / "run" / "config.toml")
    expected = forecast(config, digits, create_model(config.model, digits, 0))
    last = done.history[-1]
    held = sum(line["validation_forward"] for line in done.history)
    assert expected.forward == pytest.approx(last["total_forward"] + held, rel=1e-6)
    assert expected.seconds > 0
    assert expected.memory > 0


@pytest.mark.parametrize("quiet", [False, True])
def test_redirected_training_speaks_within_an_epoch(quiet, monkeypatch):
    stream, clock = StringIO(), [1.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    session = SimpleNamespace(epoch=0, step=0, batches=range(100), dataset=SimpleNamespace(validation=None))
    session.config = SimpleNamespace(epochs=2, patience=0)
    record = SimpleNamespace(
        correct=1, examples=2, loss=1.0, weight_mean=1.0, effective=1.0, passes=Passes(4, 2)
    )
    spoken = progress.TerminalProgress("at", Console(file=stream, width=200), explain=False, quiet=quiet)
    with spoken:
        spoken.begin(session)  # pyright: ignore
        for session.step in range(70):
            clock[0] += 1
            spoken.step(session, record, 0.1)  # pyright: ignore
        spoken.alarm(session, "something")  # pyright: ignore
    lines = [line for line in stream.getvalue().splitlines() if line]
    assert len(lines) == (1 if quiet else 4), "after three seconds, then every thirty; and alarms"
    if not quiet:
        assert lines[0] == "at  epoch 1/2, minibatch 3 of 100, about 3 min left"
        assert lines[2].endswith("about 2 min left")


def test_settings_of_old_runs_still_stand():
    old = Path(__file__).parent / "old"
    for place in old.glob("*/config.toml"):
        assert Config.read(place).patience == 0
