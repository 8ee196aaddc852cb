"""Reports: their content belongs to the run, and wrong input is named."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import bivallate as bv
from bivallate.cli import run as command
from bivallate.errors import UserError
from bivallate.evaluation import Identity, evaluation_name, rank
from bivallate.quoting import markdown, tex
from bivallate.reports.collect import collect, labels_of
from bivallate.reports.diagnostics.fosc import FOSC
from bivallate.reports.page import write_report
from bivallate.reports.tables import differences_table, radius, runs_table, share_cell
from bivallate.run.config import Validation
from bivallate.run.sentinel import Sentinel

THREAT = bv.Linf(0.15)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Two short runs, one attacked twice, one not at all; a name that needs escaping in every format."""
    root = tmp_path_factory.mktemp("runs")
    data = bv.data.load("digits")
    for name, method in (
        ("at_50%<b>", bv.methods.at(THREAT, steps=1)),
        ("done", bv.methods.done_adam(THREAT, steps=1)),
    ):
        bv.train(
            "linear", data, method, epochs=2, batch_size=256, out=root / name, validation=Validation(1, 50)
        )
    model = bv.load(root / "at_50%<b>")
    for attack in ("fgsm", "pgd-3"):
        score = bv.evaluate(model, data.test, THREAT, attack)
        file = root / "at_50%<b>" / "evaluation" / evaluation_name("best", THREAT, attack, 0)
        replace(score, identity=Identity()).save(file)
    return root


def both(runs: Path) -> list[Path]:
    return [runs / "at_50%<b>", runs / "done"]


class Outline(HTMLParser):
    """Tags that are open, identifiers, and everything that would be fetched."""

    VOID = ("meta", "br", "link", "img", "input", "hr")

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.ids: list[str] = []
        self.fetched: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.stack.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href") and not value.startswith(("#", "data:")):
                self.fetched.append(value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.stack.pop()

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_is_whole_and_fetches_nothing(runs, tmp_path):
    text = write_report(both(runs), tmp_path / "report.html").read_text()
    page = Outline()
    page.feed(text)
    assert page.stack == []
    assert page.fetched == []
    assert "@import" not in text
    assert len(page.ids) == len(set(page.ids)) > 10
    references = set(re.findall(r"url\(#([^)]+)\)", text))
    assert references
    assert references <= set(page.ids)
    assert "<b>" not in text
    assert text.count("<svg") == 3  # curves, classes, one confusion


def test_its_numbers_are_the_scores(runs, tmp_path):
    text = write_report(both(runs), tmp_path / "report.html").read_text()
    score = next(e.score for e in collect(both(runs))[0].evaluations if e.score.attack == "pgd-3")
    for value in (
        share_cell(score.robust_accuracy, score.interval_95),
        share_cell(score.clean_accuracy, score.clean_interval_95),
        share_cell(score.tail(30), score.tail_interval(30)),
        share_cell(score.worst_class[1], score.worst_class_interval_95),
    ):
        assert value in text
    strongest = collect(both(runs))[0].strongest
    assert strongest is not None
    for value, interval in zip(strongest.score.per_class, strongest.score.per_class_interval_95, strict=True):
        assert share_cell(value, interval) in text


def test_the_strongest_evaluation_counts_and_a_missing_one_is_said(runs, tmp_path):
    first, second = collect(both(runs))
    assert first.strongest is not None
    assert first.strongest.score.attack == "fgsm"  # the best there is against a linear model
    assert second.strongest is None
    rows = runs_table([first, second]).rows
    assert rows[0][5] == "fgsm (best)"
    assert rows[1][5:12] == ("-",) * 7
    assert rows[0][6] == "359"
    assert rows[0][12] == "2/2"
    text = write_report(both(runs), tmp_path / "report.md").read_text()
    assert "done has not been attacked" in text
    assert "--attack autoattack" in text


def test_other_threats_and_last_weights_do_not_count(runs):
    first = collect(both(runs))[0]
    folder = first.path / "evaluation"
    data, model = bv.data.load("digits"), bv.load(first.path, "last")
    extra = []
    for weights, threat in (("best", bv.Linf(0.5)), ("last", THREAT)):
        score = bv.evaluate(model, data.test, threat, "pgd-2")
        extra.append(folder / evaluation_name(weights, threat, "pgd-2", 0))
        replace(score, identity=Identity(weights=weights)).save(extra[-1])
    again = collect(both(runs))[0]
    for path in extra:
        path.unlink()
    assert len(again.evaluations) == 4
    assert again.strongest is not None
    assert again.strongest.path == first.strongest.path


def test_markdown_and_latex_stand_with_their_figures(runs, tmp_path):
    for ending, figure in ((".md", "svg"), (".tex", "pdf")):
        path = write_report(both(runs), tmp_path / f"r{ending}")
        text = path.read_text()
        files = re.findall(rf"r-figures/[\w-]+\.{figure}", text)
        assert len(set(files)) == 3
        assert all((tmp_path / file).stat().st_size > 1000 for file in files)
    assert r"at\_50\%<b>" in text
    assert text.count("{") == text.count("}")
    rows = [line for line in (tmp_path / "r.md").read_text().splitlines() if line.startswith("| done")]
    assert rows[0].count("|") == 16


def test_settings_that_differ_are_listed(runs):
    table = differences_table(collect(both(runs)))
    assert table is not None
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["method.weighting"] == ("Equal", "KLDRO")
    assert "epochs" not in rows
    assert differences_table(collect(both(runs)[:1])) is None


def test_the_command(runs, tmp_path, capsys):
    out = tmp_path / "all.html"
    assert command(["report", *map(str, both(runs)), "--out", str(out)]) == 0
    assert out.stat().st_size > 10_000
    assert command(["report", str(tmp_path), "--out", str(out)]) == 2
    assert command(["report", str(tmp_path)]) == 2
    assert not (tmp_path / "report.html").exists()
    assert "no run in" in capsys.readouterr().err


def test_the_report_of_one_run_lies_in_its_folder(runs, tmp_path):
    alone = Path(shutil.copytree(both(runs)[1], tmp_path / "alone"))
    assert command(["report", str(alone)]) == 0
    assert (alone / "report.html").stat().st_size > 10_000


def test_the_diagnose_command(runs, tmp_path, capsys):
    picked = ["--what", "curves", "--what", "weight-scatter", "--what", "confusion", "--n", "40"]
    folders = [str(p) for p in both(runs)]
    assert command(["diagnose", *folders, *picked, "--attack", "fgsm", "--out", str(tmp_path / "d")]) == 0
    names = {p.name for p in (tmp_path / "d").iterdir()}
    assert {"curves.json", "curves.pdf", "weight-scatter.npz", "confusion.svg", "confusion.png"} <= names
    assert command(["diagnose", folders[0], "--what", "confusoin"]) == 2
    assert "did you mean 'confusion'" in capsys.readouterr().err
    assert command(["diagnose", folders[0], "--what", "transfer"]) == 2
    assert "at least two runs" in capsys.readouterr().err


def test_python_diagnoses_as_the_command_does(runs, tmp_path, monkeypatch):
    told: dict[str, object] = {}
    first = runs / "at_50%<b>"
    found = bv.diagnose(
        first, runs / "done", what=["attacked"], n=40, out=tmp_path, attack="fgsm", progress=told.__setitem__
    )
    assert told == {"attacked": tmp_path / "attacked.svg"}
    assert found["attacked"].data()["clean"].shape[1:] == (1, 8, 8)
    for bad, said in (({"n": 1}, "at least 2"), ({"what": "curve"}, "did you mean 'curves'")):
        with pytest.raises(UserError, match=said):
            bv.diagnose(first, **bad)
    with pytest.raises(UserError, match="weighs the same"):
        bv.diagnose(first, what="examples", n=20, out=tmp_path)
    asked: list[dict[str, object]] = []
    monkeypatch.setattr(
        "bivallate.reports.diagnostics.diagnose_runs.diagnose", lambda *_, **named: asked.append(named)
    )
    assert command(["diagnose", str(first), "--what", "curves", "--weights", "last", "--seed", "3"]) == 0
    wanted = {"what": ("curves",), "weights": "last", "seed": 3, "n": 500, "attack": "pgd-20", "out": None}
    assert asked[0].items() >= wanted.items()


def test_results_are_short_where_they_are_looked_at(runs):
    first = collect(both(runs))[0]
    score = first.evaluations[0].score
    run = bv.Run(None, None, first.history, first.path)  # pyright: ignore[reportArgumentType]
    for shown in (score, run, bv.compare(first.path), rank(score)):
        assert len(repr(shown)) < 300
    assert repr(score).startswith("<Score of fgsm at Linf 0.15 on 359 points: robust ")
    assert f"2 epochs, held-out clean {first.history[-1]['clean']:.1%}" in repr(run)


def test_alignment_over_epochs_is_what_the_sentinel_saw(runs, tmp_path, capsys):
    wanted = ["--what", "alignment-over-epochs", "--out", str(tmp_path / "d")]
    assert command(["diagnose", str(runs / "at_50%<b>"), *wanted]) == 2  # too short a run for a check
    assert "no run recorded the alignment" in capsys.readouterr().err
    watched = bv.train(
        "linear", "digits", bv.methods.at(THREAT, steps=1), epochs=2, batch_size=256, out=tmp_path / "w",
        sentinel=Sentinel(share=0.5), validation=Validation(1, 50),
    )  # fmt: skip
    assert command(["diagnose", str(tmp_path / "w"), *wanted]) == 0
    drawn = json.loads((tmp_path / "d" / "alignment-over-epochs.json").read_text())["w"]
    assert drawn["epoch"] == [1, 2]
    assert drawn["sentinel_alignment"] == [line["sentinel_alignment"] for line in watched.history]


def test_equal_weights_have_no_extremes(runs, tmp_path, capsys):
    wanted = ["--what", "examples", "--n", "20", "--out", str(tmp_path)]
    assert command(["diagnose", str(runs / "at_50%<b>"), *wanted]) == 2
    assert "weighs the same" in capsys.readouterr().err


def test_no_run_at_all_is_said():
    with pytest.raises(UserError, match="at least one run"):
        collect([])


def test_bad_requests_are_named(runs, tmp_path):
    with pytest.raises(UserError, match=r"\.html, \.md or \.tex"):
        write_report(both(runs), tmp_path / "report.pdf")
    with pytest.raises(UserError, match="at least one run"):
        write_report([], tmp_path / "report.html")
    with pytest.raises(UserError, match="named twice"):
        write_report([runs / "done", runs / "done"], tmp_path / "report.html")


def test_text_is_escaped():
    assert tex(r"a_b & 50% \x") == r"a\_b \& 50\% \textbackslash{}x"
    assert markdown("a|b*c") == r"a\|b\*c"
    assert radius(bv.Linf(8 / 255)) == "Linf 8/255"
    assert radius(bv.Linf(0.2)) == "Linf 0.2"
    assert radius(bv.L2(0.5)) == "L2 0.5"


def test_points_below_the_smallest_fosc_shown_are_still_drawn():
    """Converged points lie below 1e-4; they belong to the first bin."""
    small = np.full((1, 40), 1e-7, dtype=np.float32)
    found = FOSC((1,), small, np.ones_like(small), np.ones((1, 40), dtype=bool))
    heights = found.figure().axes[0].patches[0].get_path().vertices[:, 1]
    assert heights.max() == pytest.approx(100)


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (["r/at-digits-0", "r/trades-digits-0"], ["at-digits-0", "trades-digits-0"]),
        (["r/mail-mnist-tiny-cnn-linf-seed0", "r/at-mnist-tiny-cnn-linf-seed0"], ["mail", "at"]),
        (
            ["r/at-mnist-tiny-cnn-linf-seed0", "r/at-mnist-tiny-cnn-linf-seed1"],
            ["at-mnist-tiny-cnn-linf-seed0", "at-mnist-tiny-cnn-linf-seed1"],
        ),
        (["a/at-mnist-tiny-cnn-linf-seed0", "b/at-mnist-tiny-cnn-linf-seed0"], ["a/at", "b/at"]),
        (["r/at-mnist-tiny-cnn-linf-seed0"], ["at-mnist-tiny-cnn-linf-seed0"]),
    ],
)
def test_labels_tell_runs_apart_and_leave_out_what_all_share(folders, expected):
    assert labels_of([Path(folder) for folder in folders]) == expected
