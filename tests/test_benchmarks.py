"""The programs that make the documentation's figures find the names that they use."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

PROGRAMS = sorted(path.stem for path in (Path(__file__).parents[1] / "benchmarks").glob("[!_]*.py"))


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_can_be_imported(name: str) -> None:
    importlib.import_module(f"benchmarks.{name}")
