"""What texts and messages tell a reader to type exists."""

from __future__ import annotations

import importlib
import re
from functools import reduce
from pathlib import Path

import pytest
from benchmarks.results_figure import GROUPS, MARKS, rows, tables

import bivallate
from bivallate import cli
from bivallate.reproduce.results_page import page

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SOURCES = sorted((ROOT / "src").rglob("*.py"))


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_python_names_in_the_texts_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for module, names in re.findall(r"from (bivallate[\w.]*) import ([\w, ]+)", text):
        for name in names.split(","):
            assert hasattr(importlib.import_module(module), name.strip().split(" ")[0]), (module, name)
    for dotted in re.findall(r"\b(?:bv|bivallate)((?:\.\w+)+)\(", text):
        assert reduce(getattr, dotted[1:].split("."), bivallate), dotted


@pytest.mark.parametrize("path", [*PAGES, *SOURCES], ids=named)
def test_commands_that_are_named_exist(path: Path) -> None:
    cli._register()
    commands = set(cli.APP)
    for command in re.findall(r"`bivallate ([a-z][a-z-]*)", path.read_text(encoding="utf-8")):
        assert command in commands, command


def test_commands_are_looked_for_where_they_are() -> None:
    found = [re.findall(r"`bivallate ([a-z][a-z-]*)", p.read_text(encoding="utf-8")) for p in SOURCES]
    assert sum(map(len, found)) > 10


def test_the_results_shown_are_those_of_the_records():
    """`bivallate reproduce --tables` and `python -m benchmarks.results_figure` make both."""
    assert (ROOT / "docs" / "results.md").read_text(encoding="utf-8") == page(ROOT / "results")
    shown = (ROOT / "README.md").read_text(encoding="utf-8").split(MARKS[0])[1].split(MARKS[1])[0]
    assert shown.strip() == tables({label: rows(name) for label, name in GROUPS.items()})
