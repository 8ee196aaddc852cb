"""One run of three threats and one without any, for every file here."""

from __future__ import annotations

from pathlib import Path

import pytest

import bivallate as bv
from bivallate.cli import run

SHORT = ["--batch-size", "100", "--model", "linear", "--set", "validation.steps=1", "--set", "steps=2",
         "--epochs", "2"]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("threats") / "run"
    others = ["--eps", "0.1", "--set", "others=l2:0.4,l1:1"]
    assert run(["train", "e-at", "--data", "digits", "--lr", "0.2", *others, "--out", str(out), *SHORT]) == 0
    return out


def verdicts(folder: Path, name: str) -> list[bool]:
    return bv.Score.load(folder / "evaluation" / f"best-{name}-pgd-3-seed0.json").robust.tolist()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("threats") / "plain"
    assert run(["train", "plain", "--data", "digits", "--lr", "0.2", "--out", str(out), *SHORT[:4]]) == 0
    return out
