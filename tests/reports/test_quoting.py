"""Text from outside stays text in HTML, Markdown, LaTeX, figures, file names and a browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib import mathtext
from tests.reports.hostile import FIRED, STRINGS, poisoned, trained

from bivallate import quoting
from bivallate.reports.collect import RunRecord, collect
from bivallate.reports.diagnostics.per_class import Confusion
from bivallate.reports.matrix import matrix_svg
from bivallate.reports.page import render, write_report
from bivallate.reports.pictures import inline_svg

HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
TAGS = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "aside", "div", "table", "thead"}
TAGS |= {"tbody", "tr", "th", "td", "details", "summary", "code", "figure", "figcaption"}
TAGS |= {"main", "section", "small", "dl", "dt", "dd", "caption"}
SVG = {
    "svg",
    "defs",
    "style",
    "path",
    "g",
    "use",
    "text",
    "clippath",
    "rect",
    "image",
    "lineargradient",
    "stop",
}
OWN = {"class", "lang", "charset", "name", "content", "http-equiv", "scope", "role", "tabindex", "aria-label"}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')


class Markup(HTMLParser):
    """Every element and attribute of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Callable[[str], RunRecord]:
    """A run for each string, in which every free text is that string."""
    root = tmp_path_factory.mktemp("hostile")
    run = trained(root / "run")
    return cache(lambda kind: collect([poisoned(run, root / kind, STRINGS[kind])])[0])


@pytest.mark.parametrize("kind", STRINGS)
def test_reports_hold_hostile_text_as_text(kind, hostile):
    runs = [hostile(kind)]
    page, md, latex = (render(form, runs, []) for form in ("html", "md", "tex"))
    for text in (page, md, latex):
        assert not HIDDEN.search(text), kind
        text.encode("utf-8")
    seen = Markup(page)
    assert seen.tags <= TAGS
    assert seen.attributes <= OWN
    assert POLICY.search(page)
    assert "script-src" not in page
    assert "default-src 'none'" in page
    assert quoting.visible(STRINGS[kind]).strip() in seen.text
    assert not re.search(r"(?<!\\)\]\(javascript|(?<!\\)<(script|img|svg)", md)
    assert "\n# FIRED" not in md
    for table in re.findall(r"(?:^\|.*\n)+", md, re.MULTILINE):  # no cell has become two
        assert len({len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) for row in table.splitlines()}) == 1
    body = latex[latex.index(r"\begin{document}") :]
    assert not re.search(r"\\(input|write|undefined)\b", body)
    assert not re.search(r"(?<!\\)[$^]|(?<!\\)#", body.replace("$\\pm$", ""))


@pytest.mark.parametrize("kind", STRINGS)
def test_figures_hold_hostile_text_as_text(kind, monkeypatch):
    """No formula is parsed, no element or attribute comes in, no name breaks a layout, no font warns."""
    monkeypatch.setattr(mathtext.MathTextParser, "parse", lambda *_, **__: pytest.fail("read as a formula"))
    text = STRINGS[kind]
    drawn = Confusion(text, tuple(f"{text}{k}" for k in range(3)), np.eye(3))
    for svg in (inline_svg(drawn, "f1-", text), matrix_svg(drawn, text)):
        assert not HIDDEN.search(svg)
        seen = Markup(svg)
        assert seen.tags <= SVG
        assert not any(name.startswith("on") for name in seen.attributes)
        if len(text) < 20:  # nothing was left out
            assert quoting.line(text) in seen.text
        assert len(max(re.findall(r"<text[^>]*>([^<]*)", svg), key=len)) < 1500


def test_a_name_with_the_marks_of_a_figure_leaves_its_identifiers_alone():
    svg = inline_svg(Confusion("a", ('id="x', 'href="#y', "url(#z)"), np.eye(3)), "f1-", "c")
    assert {'id="x', 'href="#y', "url(#z)"} <= set(re.findall(r"<text[^>]*>([^<]*)", svg))


@pytest.mark.parametrize("kind", STRINGS)
def test_file_names_stay_in_their_folder(kind, tmp_path):
    name = quoting.file_name(STRINGS[kind])
    assert re.fullmatch(r"[\w][\w.-]*", name)
    assert len(name.encode()) <= 255
    place = tmp_path / name
    place.write_text("x")
    assert place.resolve().parent == tmp_path.resolve()


@pytest.mark.parametrize(
    "text", ["../../x", "/etc/passwd", "..", ".", ".hidden", "-rf", "con", "NUL.txt", "a\\b", "x."]
)
def test_names_of_folders_above_devices_and_options_are_no_file_names(text):
    name = quoting.file_name(text)
    assert name not in (".", "..", "")
    assert not re.search(r"^[.-]|[/\\]|\.$|^(con|nul)(\.|$)", name.lower())


def test_names_that_are_cut_stay_different():
    first, second = quoting.file_name("x" * 500 + "a"), quoting.file_name("x" * 500 + "b")
    assert first != second
    assert max(len(first), len(second)) <= 60


def fired(page: Path, folder: Path) -> bool:
    """Whether a handler has run in a real browser, scripts on."""
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={folder}", "--virtual-time-budget=3000", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "<body" in done.stdout
    return 'id="FIRED"' in re.search("<body[^>]*>", done.stdout)[0]  # pyright: ignore[reportOptionalSubscript]


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_no_handler_runs_in_a_real_browser(hostile, tmp_path):
    """The page with its policy, the page without (the quoting alone), a page with a handler and the policy
    (the policy alone); a handler without the policy shows that the browser would have run it."""
    page, bare = tmp_path / "report.html", tmp_path / "bare.html"
    write_report([hostile(kind).path for kind in ("attribute", "apostrophe", "element", "svg")], page)
    text = page.read_text(encoding="utf-8")
    assert text.count("FIRED") > 50
    bare.write_text(POLICY.sub("", text), encoding="utf-8")
    handler = f"<svg onload={FIRED}></svg><script>{FIRED}</script><img src=x onerror={FIRED}>"
    held, control = tmp_path / "held.html", tmp_path / "control.html"
    held.write_text(text.replace("</h1>", f"</h1>{handler}", 1), encoding="utf-8")
    control.write_text(POLICY.sub("", held.read_text(encoding="utf-8")), encoding="utf-8")
    ran = [fired(place, tmp_path / place.stem) for place in (page, bare, held, control)]
    assert ran == [False, False, False, True]
