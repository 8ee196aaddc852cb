"""The short version of `make faults`: a few of each fault, counted like the long one."""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.faults.__main__ import BANK, Faults, chains, damages, kills, prepared, ready, rivals, table, tally
from tests.faults.crash import END, crash, in_child, operations
from tests.faults.scenarios import AT, SCENARIOS, record, resume, same_run, train

from bivallate.run import checkpoint

ALLOWED = {"same", "refused", "refused, then mended", "partly lost"}


@pytest.fixture(autouse=True)
def banks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "LARGE", BANK)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_a_crash_at_some_file_operations_changes_nothing(scenario, tmp_path):
    run = tmp_path / "run"
    [(_, template, whole, count)] = prepared(tmp_path, [scenario])
    assert count > 10, "it works on files"
    for at in random.Random(scenario.name).sample(range(1, count), 2):
        ready(template, run)
        assert crash(lambda: scenario.act(run), run, at) == END
        scenario.again(run)
        scenario.matches(run, whole)


def test_the_crashes_fall_within_the_work(tmp_path):
    """Else they would prove nothing: some come before the first checkpoint, some after the first epoch."""
    run, seen = tmp_path / "run", set()
    count = operations(lambda: train(run, AT), run)
    for at in (3, count * 2 // 3, count - 2):
        shutil.rmtree(run)
        assert crash(lambda: train(run, AT), run, at) == END
        epochs = len(record(run)) if (run / "metrics.jsonl").exists() else 0
        seen.add((bool(checkpoint.list_all(run / "checkpoints")), epochs))
    assert seen == {(False, 0), (True, 1), (True, 2)}


def test_the_harness_sees_a_difference(tmp_path):
    """Weights, record, configuration, rubbish: each alone."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    train(run, AT)
    train(whole, AT)
    same_run(run, whole)
    for name in ("best.safetensors", "metrics.jsonl", "model.json"):
        data = (run / name).read_bytes()
        (run / name).write_bytes(data.replace(b"1", b"2", 1) if b"1" in data else data + b"\0")
        with pytest.raises((AssertionError, ValueError)):
            same_run(run, whole)
        (run / name).write_bytes(data)
    (run / ".bivallate-left.tmp").mkdir()
    with pytest.raises(AssertionError):
        same_run(run, whole)


FEW: dict[str, Callable[[Path, random.Random], Faults]] = {
    "chains": lambda place, rng: chains(place, 4, rng, SCENARIOS[2:3]),
    "kills": lambda place, rng: kills(place, 8, rng, SCENARIOS[:1]),
    "rivals": lambda place, rng: rivals(place, 1),
    "damages": lambda place, rng: damages(place, 30, rng),
}


@pytest.mark.parametrize("kind", FEW)
def test_a_few_of_each_other_fault(kind, tmp_path):
    rows = tally(FEW[kind](tmp_path, random.Random(7)), {})
    ends = sum(rows.values(), Counter())
    assert set(ends) <= ALLOWED, table(rows)
    assert ends["same"] > 0


def test_a_child_that_is_told_to_stop_can_be_gone_on_with(tmp_path):
    """A request that comes before the loop ends the process; one that comes within it saves first."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    train(whole, AT)

    def asked() -> None:
        from bivallate.run import trainer

        step = trainer.train_step

        def told(*arguments, **named):
            os.kill(os.getpid(), signal.SIGTERM)
            return step(*arguments, **named)

        trainer.train_step = told  # pyright: ignore[reportPrivateImportUsage]
        train(run, AT)

    assert in_child(asked) == 1
    assert len(checkpoint.list_all(run / "checkpoints")) == 2
    resume(run)
    same_run(run, whole)
