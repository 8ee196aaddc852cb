"""A run that takes a moment, for tests of its folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import bivallate as bv
from bivallate.run import trainer
from bivallate.run.config import Validation

THREAT = bv.Linf(0.15)
WEIGHTS = ("model.safetensors", "best.safetensors", "ema.safetensors")


def digits(rows: int = 24) -> bv.data.Dataset:
    data = bv.data.load("digits")
    assert data.validation is not None
    return data.but(train=data.train.subset(slice(0, rows)), validation=data.validation.subset(slice(0, 30)))


def settings(**more: Any) -> dict[str, Any]:
    fixed = {"epochs": 3, "batch_size": 8, "threads": 1, "optimizer": bv.SGD(0.05), "average": 0.9}
    return {**fixed, "validation": Validation(2, 30), "checkpoint_minutes": 1e-6, **more}


def train(out: Path | None, method: bv.Method | None = None, **more: Any) -> bv.Run:
    return bv.train("linear", digits(), method or bv.methods.at(THREAT, steps=1), out=out, **settings(**more))


def metrics(path: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def same(a: Path, b: Path) -> None:
    """Weights to the bit, and the record but for times."""
    for name in WEIGHTS:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    assert metrics(a) == metrics(b)


class Killed(BaseException):
    """Stands for a kill: nothing in the package catches it."""


def kill_at(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """The process dies in the call of the step that follows so many."""
    original, calls = trainer.train_step, 0

    def dying(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > steps:
            raise Killed
        return original(*arguments, **named)

    monkeypatch.setattr(trainer, "train_step", dying)


def copy(a: Path, b: Path) -> Path:
    return Path(shutil.copytree(a, b))
