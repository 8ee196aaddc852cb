"""What texts and messages tell a reader to type exists, and the pages of docs/ form a site without dead
links, lost pages or undocumented names; no Sphinx needed. `make docs` builds it, with warnings as errors."""

from __future__ import annotations

import importlib
import re
import runpy
import shlex
from collections import Counter
from functools import cache, reduce
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from benchmarks import choosing, house, threats
from benchmarks.demo import BEGIN, END
from benchmarks.results_figure import SHOWN, tables
from markdown_it import MarkdownIt
from markdown_it.token import Token
from torch.distributed.run import parse_args

import bivallate
from bivallate import cli, quoting
from bivallate.methods.entries import registry
from bivallate.reproduce.results_page import page

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SITE = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")), *SITE]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
PARSER = MarkdownIt("commonmark").enable("table")


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


@pytest.mark.parametrize("path", [*PAGES, *SOURCES], ids=named)
def test_torchrun_is_kept_from_taking_our_options(path: Path) -> None:
    """Without `--` it reads `--n` and `--log`, the beginnings of its own, as those."""
    found = re.findall(r"(?<!python)(?<!python3) -m bivallate", path.read_text(encoding="utf-8"))
    assert not found, "torchrun ... -m -- bivallate"


def test_a_line_for_several_processes_is_one_that_torchrun_reads() -> None:
    ours = ["evaluate", "runs/x", "--n", "5", "--log", "csv"]
    line = shlex.split(quoting.torchrun(2, quoting.command(*ours)))
    understood = parse_args(line[1:])
    assert (understood.module, understood.training_script) == (True, "bivallate")
    assert understood.training_script_args == ours
    with pytest.raises(SystemExit):
        parse_args([word for word in line[1:] if word != "--"])


def test_commands_are_looked_for_where_they_are() -> None:
    found = [re.findall(r"`bivallate ([a-z][a-z-]*)", p.read_text(encoding="utf-8")) for p in SOURCES]
    assert sum(map(len, found)) > 10


def test_the_results_shown_are_those_of_the_records():
    """`bivallate reproduce --tables` and `python -m benchmarks.results_figure` make both."""
    assert (ROOT / "docs" / "results.md").read_text(encoding="utf-8") == page(ROOT / "results")
    for shown in SHOWN:
        for name in shown.pages:
            begin, end = shown.marks
            text = (ROOT / name).read_text(encoding="utf-8").split(begin)[1].split(end)[0]
            assert text.strip() == tables(shown), f"{shown.table} in {name}"


def test_the_tables_of_choosing_are_those_of_the_records() -> None:
    """`python -m benchmarks.choosing` makes them anew; records that papers share make one table."""
    text = choosing.PAGE.read_text(encoding="utf-8")
    whole = choosing.tables(choosing.shown())
    tables = whole.split("\n\n### ")
    assert len({table.split("[T-")[0] for table in tables}) == len(tables)
    assert text.split(choosing.MARKS[0])[1].split(choosing.MARKS[1])[0].strip() == whole


def test_the_table_of_threats_is_that_of_the_records() -> None:
    """`python -m benchmarks.threats --table` makes it anew."""
    text = threats.PAGE.read_text(encoding="utf-8")
    assert text.split(threats.BEGIN)[1].split(threats.END)[0].strip() == threats.table(threats.read())


def test_the_demo_is_shown_alike_wherever_it_is() -> None:
    """`python -m benchmarks.demo` writes both."""
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/demo.md")]
    one, other = (text.split(BEGIN)[1].split(END)[0] for text in texts)
    assert one == other


@pytest.mark.parametrize("name", ["README.md", "docs/index.md"])
def test_the_number_of_methods_is_the_catalogues(name: str) -> None:
    told = re.findall(r"\[(\d+) methods\]", (ROOT / name).read_text(encoding="utf-8"))
    assert told == [str(len(registry()))]


@cache
def conf() -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "conf.py"))


def pieces(text: str) -> list[Token]:
    """All inline tokens of a page: code and comments are none."""
    return [child for token in PARSER.parse(text) for child in token.children or []]


def targets(text: str) -> list[str]:
    """Where its links and pictures lead."""
    return [
        str(t.attrs.get("href", t.attrs.get("src"))) for t in pieces(text) if t.type in ("link_open", "image")
    ]


@cache
def anchors(text: str) -> set[str]:
    """What a page's headings are called in links, as on GitHub and on the site."""
    tokens = PARSER.parse(text)
    found: Counter[str] = Counter()
    names = set()
    for head, line in pairwise(tokens):
        if head.type == "heading_open":
            title = "".join(t.content for t in line.children or [] if t.type in ("text", "code_inline"))
            slug = re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")
            names.add(f"{slug}-{found[slug]}" if found[slug] else slug)
            found[slug] += 1
    return names


def faults(text: str, page: Path) -> list[str]:
    """Links of a page that lead nowhere."""
    found = []
    for target in targets(text):
        url = urlsplit(target)
        if url.scheme:
            continue
        place = (page.parent / unquote(url.path)).resolve() if url.path else page
        if not place.is_relative_to(DOCS if page.is_relative_to(DOCS) else ROOT):
            found.append(f"{target}: not on the site")
        elif not place.exists():
            found.append(f"{target}: there is no {place.relative_to(ROOT)}")
        elif url.fragment and (
            place.suffix != ".md" or url.fragment not in anchors(place.read_text(encoding="utf-8"))
        ):
            found.append(f"{target}: no heading of this name in {place.name}")
    return found


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    assert faults(page.read_text(encoding="utf-8"), page) == []


def test_dead_links_are_found(tmp_path: Path) -> None:
    text = "[a](gone.md) ![b](figures/gone.svg) [c](runs.md#gone) [d](../LICENSE) [e](runs.md) `[f](gone.md)`"
    assert [fault.split(":")[0] for fault in faults(text, DOCS / "index.md")] == [
        "gone.md",
        "figures/gone.svg",
        "runs.md#gone",
        "../LICENSE",
    ]
    assert len(targets((DOCS / "gallery.md").read_text(encoding="utf-8"))) > 10


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_pictures_are_the_projects_own_and_have_a_text(page: Path) -> None:
    for token in pieces(page.read_text(encoding="utf-8")):
        if token.type == "image":
            assert not urlsplit(str(token.attrs["src"])).scheme, "a page may need no network"
            assert token.content, token.attrs["src"]


def test_every_page_is_in_the_navigation_once() -> None:
    listed = [page for pages in conf()["NAVIGATION"].values() for page in pages.values()] + conf()["CARDS"]
    there = [str(page.relative_to(DOCS).with_suffix("")) for page in SITE]
    assert sorted([*listed, "index"]) == sorted(there), "list every page in NAVIGATION of docs/conf.py"


def test_every_page_has_one_title_and_no_jump_between_headings() -> None:
    for path in SITE:
        levels = [
            int(t.tag[1]) for t in PARSER.parse(path.read_text(encoding="utf-8")) if t.type == "heading_open"
        ]
        assert levels[:1] == [1], path
        assert 1 not in levels[1:], path
        assert all(b <= a + 1 for a, b in pairwise(levels)), path


def test_what_the_site_adds_has_its_place() -> None:
    for name in conf()["MADE"]:
        assert f"<!-- site: {name} -->" in (DOCS / f"{name}.md").read_text(encoding="utf-8")


def test_the_reference_of_the_commands_leads_to_each() -> None:
    text = conf()["commands"]()
    found = targets(text)
    assert {f"#bivallate-{name}" for name in cli.APP if not name.startswith("-")} <= set(found)
    assert {target.removeprefix("#") for target in found if target.startswith("#")} <= anchors(text)


def test_every_public_name_is_documented_once() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in (DOCS / "api").glob("*.md"))
    shown = re.findall(r"^\.\. auto\w+:: bivallate\.(\w+)$", text, re.MULTILINE)
    assert sorted(shown) == sorted(bivallate.__all__), "docs/api/ lists the names of bivallate.__all__"


def test_nothing_is_loaded_from_elsewhere() -> None:
    for path in (DOCS / "_static").iterdir():
        assert not re.search(r"https?:|url\(|@import|fetch\(", path.read_text(encoding="utf-8")), path


def test_docstrings_become_text_that_sphinx_reads_as_it_is() -> None:
    made = {
        "delta_i*(theta) of a `PGD(*, x_)`": r"delta_i\*(theta) of a ``PGD(*, x_)``",
        "|x|, w_ and **parts": r"\|x\|, w\_ and \*\*parts",
        r"``already`` \* escaped, _private": r"``already`` \* escaped, _private",
    }
    assert {line: conf()["plain_to_rst"](line) for line in made} == made


def test_attributes_that_share_a_line_stay_together() -> None:
    lines = [
        "What it is.",
        "",
        "Attributes:",
        "    a, b: both",
        "        of them. c: too.",
        "",
        "Raises: no.",
    ]
    assert conf()["attributes_listed"](lines) == [
        "What it is.",
        "",
        ".. rubric:: Attributes",
        "",
        "``a, b``",
        "    both",
        "    of them. c: too.",
        "",
        "Raises: no.",
    ]


def test_the_files_of_the_walks_exist() -> None:
    walks = (ROOT / "docs" / "design.md").read_text()
    named = set(re.findall(r"`((?:\w+/)*\w+\.py)`", walks))
    assert len(named) > 40
    assert sorted(name for name in named if not (ROOT / "src" / "bivallate" / name).exists()) == []


def test_the_house_is_drawn_as_it_stands() -> None:
    """`python -m benchmarks.house` draws it anew."""
    assert house.PICTURE.read_text() == house.draw()
