"""What texts and messages tell a reader to type exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bivallate import cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SOURCES = sorted((ROOT / "src").rglob("*.py"))


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [*PAGES, *SOURCES], ids=named)
def test_commands_that_are_named_exist(path: Path) -> None:
    cli._register()
    commands = set(cli.APP)
    for command in re.findall(r"`bivallate ([a-z][a-z-]*)", path.read_text(encoding="utf-8")):
        assert command in commands, command


def test_commands_are_looked_for_where_they_are() -> None:
    found = [re.findall(r"`bivallate ([a-z][a-z-]*)", p.read_text(encoding="utf-8")) for p in SOURCES]
    assert sum(map(len, found)) > 10
