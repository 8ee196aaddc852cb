"""The page of a report in a real browser: nothing is wider than a phone's screen, nothing is cut in print."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.reports.hostile import trained, write_audit
from tests.reports.test_page import with_classes

from bivallate.reports.page import render
from bivallate.reports.pictures import InlineFigures, pictures

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NAMES = {2: "class", 10: "Vorfahrt an der nächsten Kreuzung", 43: "Vorfahrt an der Kreuzung", 1000: "class"}
PAPER = 1039  # pixels of CSS between the margins of A4 on its side
SCREENS = (360, 768, 1440)
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
FRAME = '<iframe id="{name}" style="width:{width}px;height:800px;border:0" srcdoc="{page}"></iframe>'
ASK = """<script>addEventListener("load", () => {
const told = {};
for (const frame of document.querySelectorAll("iframe")) {
  const page = frame.contentDocument, edge = page.documentElement.clientWidth;
  const beyond = [...page.querySelectorAll("td, th, svg, .card, figcaption, p")].filter((one) => {
    const box = one.getBoundingClientRect();
    return box.width && (box.right > edge + 1 || box.left < -1);
  });
  const first = page.querySelector(".card").getBoundingClientRect();
  told[frame.id] = [page.documentElement.scrollWidth - edge, beyond.length, first.bottom];
}
document.body.textContent = "TOLD" + JSON.stringify(told) + "TOLD";
});</script>"""


def asked(pages: dict[str, tuple[int, str]], folder: Path) -> dict[str, list[float]]:
    """For each page in a window of its width: pixels by which it scrolls sideways, elements beyond its edge,
    and how far down the first numbers reach."""
    assert CHROMIUM is not None
    frames = [
        FRAME.format(name=name, width=width, page=html.escape(POLICY.sub("", text)))
        for name, (width, text) in pages.items()
    ]
    place = folder / "frames.html"
    place.write_text(f"<!doctype html><meta charset=utf-8><body>{''.join(frames)}{ASK}", encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=5000", "--dump-dom"]
    done = subprocess.run([*command, place.as_uri()], capture_output=True, text=True, timeout=180, check=True)
    return json.loads(done.stdout.split("TOLD")[1])


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_no_page_scrolls_sideways_and_none_is_cut_on_paper(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", 2)
    write_audit(run, "plain words of an audit")
    pages: dict[str, tuple[int, str]] = {}
    for classes, name in NAMES.items():
        record, show = with_classes(run, classes, name), InlineFigures()
        text = render("html", [record], [(picture, show(picture)) for picture in pictures([record])])
        assert "@media print {" in text
        pages |= {f"{classes} at {width}": (width, text) for width in SCREENS}
        pages[f"{classes} on paper"] = PAPER, text.replace("@media print {", "@media all {")
    broken = text.replace("</h1>", '</h1><table style="width:3000px"><tr><td>x</td></tr></table>', 1)
    found = asked({**pages, "broken": (360, broken)}, tmp_path)
    assert found["broken"][0] > 2000  # the question can be answered otherwise
    assert {name: told[0] for name, told in found.items() if told[0] > 0} == {"broken": found["broken"][0]}
    assert {name: told[1] for name, told in found.items() if "paper" in name and told[1]} == {}
    assert {name: told[2] for name, told in found.items() if "360" in name and told[2] > 800} == {}
