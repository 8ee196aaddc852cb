"""Runs of two methods with two seeds each, and the table of `bivallate compare`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bivallate.cli import run

QUICK = ["--batch-size", "400", "--model", "linear", "--set", "validation.steps=1", "--eps", "0.1"]


NAMES = ("at-0", "at-1", "plain-0", "plain-1")


@pytest.fixture(scope="package")
def made(tmp_path_factory) -> Path:
    """Two methods with two seeds each, all attacked by fgsm, the first also by pgd-8."""
    root = tmp_path_factory.mktemp("compare")
    for name in NAMES:
        method, seed = name.split("-")
        few = ["--set", "steps=2", "--epochs", "2"] if method == "at" else ["--epochs", "1"]
        assert run(["train", method, "--out", str(root / name), "--seed", seed, *few, *QUICK]) == 0
        assert run(["evaluate", str(root / name), "--attack", "fgsm", "--json"]) == 0
    assert run(["evaluate", str(root / "at-0"), "--attack", "pgd-8", "--json"]) == 0
    return root


@pytest.fixture
def runs(made, tmp_path, capsys) -> Path:
    shutil.copytree(made, tmp_path / "runs")
    capsys.readouterr()
    return tmp_path / "runs"


def paths(runs: Path, *names: str) -> list[str]:
    return [str(runs / name) for name in names or NAMES]


def as_json(capsys, *arguments: str) -> dict:
    assert run(["compare", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)
