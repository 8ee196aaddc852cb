"""The page of all records agrees with the records, and works with and without its script."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import pytest
from benchmarks.records import Row, every
from benchmarks.records_page import COLUMNS, _points, html, table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
AT = Row(
    "T-B1", "results", "at", "mnist", 0, "tiny-cnn", "Linf 0.1", "autoattack", "test", 1000, 0.987, 0.939,
    0.922, 0.952, 220.0, 1, "best", "abc1234+",
)  # fmt: skip


@cache
def page() -> tuple[str, ElementTree.Element]:
    text = html(RESULTS)
    return text, ElementTree.fromstring(f"<page>{text}</page>")


def test_every_record_is_shown() -> None:
    files = Counter(path.parts[len(RESULTS.parts)] for path in RESULTS.rglob("*.json"))
    rows, left = every(RESULTS)
    shown = {
        (r.origin, r.label, r.data, r.threat, r.images, r.seed, r.weights * (r.origin[:2] != "T-"))
        for r in rows
    }  # a record of a table may have two weights of one training
    found = Counter(origin for origin, *_ in shown)
    tables = sum(n for name, n in files.items() if name.startswith("T-"))
    assert sum(n for name, n in found.items() if name.startswith("T-")) + left == tables
    ended = [
        p for p in (RESULTS / "catalogue").glob("*.json") if "failed" in json.loads(p.read_text("utf-8"))
    ]
    assert found["catalogue"] == 2 * (files["catalogue"] - len(ended))  # best and last weights
    worst = {r.weights: r.worst for r in rows if (r.origin, r.method, r.seed) == ("catalogue", "at", 0)}
    record = json.loads((RESULTS / "catalogue" / "at-0.json").read_text("utf-8"))
    assert worst == {"best": min(record["per_class"]), "last": None}
    assert [found[name] for name in ("defaults", "bastion", "contest")] == [
        files[name] for name in ("defaults", "bastion", "contest")
    ]
    assert found["threats"] == 3 * files["threats"]  # a row for each attacker
    # of implementations, of number formats, of a card with a processor, of networks that begin with weights
    # whose passes are not theirs, of signals for the sentinel, of audits: on pages of their own
    comparisons = {"autoattack", "bfloat16", "device.json", "finetuning", "agreement", "smoothed"}
    assert set(files) - set(found) == comparisons, "benchmarks/records.py must read this folder too"
    assert all(0 <= r.low <= r.robust <= r.high <= 1 and r.robust <= r.clean for r in rows)


def test_the_page_is_whole_and_its_links_lead_somewhere() -> None:
    text, tree = page()
    rows = tree.findall(".//tbody/tr")
    assert len(rows) == len(every(RESULTS)[0])
    assert {len(row) for row in rows} == {len(COLUMNS)}
    for link in set(re.findall(r'href="([^"]*)"', text)):
        assert (ROOT / "docs" / link).with_suffix(".md").exists(), link
    assert "http" not in text


def test_plots_tell_each_mark_in_words_and_stay_within_their_frame() -> None:
    marks = [mark for mark in page()[1].iter("g") if mark.get("class") == "mark"]
    assert len(marks) > 10
    for mark in marks:
        (circle,) = mark.findall("circle")
        assert 0 < float(circle.get("cx", -1)) < 420
        assert 0 < float(circle.get("cy", -1)) < 300
        assert mark.get("aria-label") == mark.findtext("title")
    assert "plain on" not in page()[0]


def test_a_training_that_two_tables_share_counts_once_in_a_plot() -> None:
    rows = [AT, replace(AT, origin="T-S1"), replace(AT, seed=2, robust=0.9)]
    (point,) = _points(rows, (AT.data, AT.threat, AT.network, AT.images))
    assert point.seeds == 2
    assert point.robust == pytest.approx((AT.robust + 0.9) / 2)


def test_a_row_says_what_was_measured() -> None:
    cells = re.findall(r"<td[^>]*>(.*?)</td>", table([AT]))
    told = [
        "at",
        "mnist",
        "Linf 0.1",
        "autoattack",
        "98.7",
        "93.9",
        "92.2 to 95.2",
        "220",
        "all",
        "1,000 test",
    ]
    assert cells[: len(told)] == told
    assert "<th" in table([AT])
    assert "<button" not in table([AT])  # the script's: without it nothing looks as if it could be pressed


@pytest.mark.browser
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs Chromium")
def test_the_script_sorts_filters_and_leads_from_marks_to_rows(tmp_path: Path) -> None:
    script = (ROOT / "docs" / "_static" / "records.js").read_text(encoding="utf-8")
    (tmp_path / "page.html").write_text(
        f"<!doctype html><body>{page()[0]}<script>{script}</script>{ASK}", "utf-8"
    )
    told = _answered(tmp_path)
    assert told["sorts"] == ["none", "ascending", "descending"]
    assert told["least"] == min(told["all"])
    assert told["most"] == max(told["all"])
    assert 0 < told["filtered"] < told["rows"]
    assert told["status"].startswith(f"{told['filtered']} of {told['rows']} ")
    assert told["reset"] == told["rows"]
    assert told["moved"] == [True, "0", "-1"]
    assert told["opened"]
    assert set(told["opened"]) == {"autoattack"}


ASK = """<script>addEventListener("load", async () => {
const head = [...document.querySelectorAll("th")].find((th) => th.textContent.startsWith("robust"));
const column = [...head.parentElement.children].indexOf(head);
const told = {sorts: [head.getAttribute("aria-sort")]};
const rows = () => [...document.querySelectorAll("tbody tr")].filter((row) => !row.hidden);
const first = () => Number(rows()[0].cells[column].dataset.value);
told.all = rows().map((row) => Number(row.cells[column].dataset.value)); told.rows = rows().length;
const button = head.querySelector("button");
const press = () => { button.click(); told.sorts.push(head.getAttribute("aria-sort")); };
press(); told.least = first(); press(); told.most = first();
const data = document.querySelector(".filters select");
data.value = "mnist"; data.dispatchEvent(new Event("input"));
told.filtered = rows().length; told.status = document.querySelector(".status").textContent;
document.querySelector(".filters button").click(); await new Promise((then) => setTimeout(then, 20));
told.reset = rows().length;
const [one, two] = document.querySelectorAll(".mark");
const key = (at, name) => at.dispatchEvent(new KeyboardEvent("keydown", {key: name, bubbles: true}));
one.focus(); key(one, "ArrowDown");
told.moved = [document.activeElement === two, two.getAttribute("tabindex"), one.getAttribute("tabindex")];
key(two, "Enter"); told.opened = rows().map((row) => row.cells[3].textContent);
document.body.textContent = "TOLD" + JSON.stringify(told) + "TOLD";
});</script>"""


def _answered(folder: Path) -> dict:
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000"]
    command += [f"--user-data-dir={folder / 'profile'}", "--dump-dom", (folder / "page.html").as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    return json.loads(dom.split("TOLD")[1])
