"""The content of a report's page, from two to thousands of classes."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.reports.hostile import trained, write_audit

import bivallate as bv
from bivallate.cli import run as command
from bivallate.errors import UserError
from bivallate.evaluation import Identity, Score
from bivallate.reports.collect import RunRecord, collect
from bivallate.reports.diagnostics.easy_and_hard import easy_and_hard
from bivallate.reports.diagnostics.per_class import Confusion, per_class
from bivallate.reports.headlines import headlines
from bivallate.reports.matrix import matrix_svg
from bivallate.reports.page import render
from bivallate.reports.pictures import Images, pictures

THREAT = bv.Linf(0.05)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return trained(tmp_path_factory.mktemp("page") / "run", 6, THREAT)


@pytest.fixture(scope="module")
def page(made) -> str:
    return bv.report(made, out=made.parent / "page.html").read_text(encoding="utf-8")


def with_classes(run: Path, classes: int, name: str = "class") -> RunRecord:
    """The run as if its data had so many classes with such names, three points each."""
    (record,) = collect([run])
    (kept,) = record.evaluations
    y = torch.arange(classes).repeat_interleave(3)
    n, wrong = len(y), torch.arange(len(y)) % 5 == 0
    score = replace(
        kept.score, classes=classes, y=y, predicted=torch.where(wrong, (y + 1) % classes, y),
        margin=torch.linspace(-1, 1, n), broken_at=torch.where(wrong, 1, -1), index=torch.arange(n),
    )  # fmt: skip
    names = tuple(f"{name} {k}" for k in range(classes))
    return replace(record, evaluations=(replace(kept, score=score),), classes=names)


class Tables(HTMLParser):
    """Tables with their captions, and the cells of heads with their scopes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: dict[str, int] = {}
        self.scopes: list[str | None] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] = self.tags.get(tag, 0) + 1
        if tag == "th":
            self.scopes.append(dict(attrs).get("scope"))


def test_tables_have_captions_and_scopes_and_the_page_a_landmark(page):
    seen = Tables(page)
    assert seen.tags["table"] == seen.tags["caption"] >= 6
    assert set(seen.scopes) == {"col", "row"}
    assert seen.tags["main"] == seen.tags["h1"] == 1
    assert "script" not in seen.tags
    boxes = re.findall(r'<div class="scroll"[^>]*>', page)
    assert sum('tabindex="0"' in box and "aria-label" in box for box in boxes) >= seen.tags["h2"] - 2


def test_the_page_says_when_and_by_what_it_was_made(page, made):
    assert re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC, bivallate \d", page)
    assert f"torch {torch.__version__}" in page
    (record,) = collect([made])
    assert record.manifest["made_by"]["torch"] == torch.__version__
    assert str(record.manifest["data_fingerprint"])[:12] in page


def test_the_first_numbers_are_those_of_the_strongest_attack(made):
    (record,) = collect([made])
    (kept,) = record.evaluations
    few = torch.arange(60)
    score = kept.score
    harder = replace(
        score, attack="autoattack", y=score.y[few], predicted=score.predicted[few], margin=score.margin[few],
        broken_at=torch.ones_like(few), index=score.index[few],
    )  # fmt: skip
    both = replace(record, evaluations=(kept, replace(kept, score=harder, path=Path("harder.json"))))
    (card,) = headlines([both])
    assert (card.robust, card.attack) == ("0.0", "autoattack on 60 points, Linf 0.05, best weights")
    assert card.beside.startswith(f"fgsm on 359 points left {100 * score.robust_accuracy:.1f} [")
    assert "worst class" in render("html", [both], [])
    assert headlines([record] * 13) == []


def test_audits_stand_in_the_report(made):
    assert "not audited" in render("md", collect([made]), [])
    try:
        path = write_audit(made, "masked | gradients", model_fingerprint=_print(made))
        (record,) = collect([made])
        text = render("html", [record], [])
        assert "25.0 [17.0, 34.0]" in text
        assert "masked | gradients: masked | gradients" in text
        assert "quiet" not in text
        assert headlines([record])[0].verdict == "suspect"
        write_audit(made, "x")  # of other weights
        (record,) = collect([made])
        assert record.audits[0].stale
        assert headlines([record])[0].verdict == ""
        assert "(best, stale)" in render("html", [record], [])
        for bad in ({"n": "many"}, {"worst_interval_95": 3}, {"checks": [1]}, {"threat": None}):
            write_audit(made, "x", **bad)
            with pytest.raises(UserError, match="not a readable audit"):
                collect([made])
        path.write_text("[" * 100_000)
        with pytest.raises(UserError, match="not a readable audit"):
            collect([made])
    finally:
        path.unlink()


def _print(run: Path) -> str:
    return collect([run])[0].evaluations[0].score.model_fingerprint


def test_images_are_those_that_the_evaluation_names(made, page):
    (record,) = collect([made])
    score, test = record.evaluations[0].score, bv.data.load("digits").test
    drawn = easy_and_hard(bv.load(made), test, THREAT, score, record.classes, attack="fgsm", count=4)
    hard = np.array([kind == "hard" for kind in drawn.kind])
    place = {int(row): k for k, row in enumerate(score.index)}
    stages = score.broken_at[[place[int(row)] for row in drawn.index]].numpy()
    assert (stages[hard] == 1).all()
    assert (stages[~hard] == -1).all()
    assert hard.sum() == 4
    assert (~hard).sum() == 4
    assert (drawn.predicted == drawn.y).all(), "right when clean"
    assert np.abs(drawn.attacked - drawn.clean).max() <= THREAT.eps + 1e-6
    assert (drawn.predicted_attacked[hard] != drawn.y[hard]).all()
    margins = score.margin[[place[int(row)] for row in drawn.index]].numpy()
    assert margins[hard].max() < 0 < margins[~hard].min()
    assert "(hard)" in page
    assert "no images are shown" not in page


def test_a_report_without_data_has_its_numbers_and_says_so(made, tmp_path):
    config = made / "config.toml"
    text = config.read_text()
    try:
        config.write_text(text.replace('name = "digits"', f'name = "{tmp_path}/gone"'))
        page = bv.report(made, out=tmp_path / "r.html").read_text()
    finally:
        config.write_text(text)
    assert "no images are shown" in page
    assert "% <small>robust" in page
    assert command(["report", str(made), "--no-images", "--out", str(tmp_path / "n.html")]) == 0
    assert "(hard)" not in (tmp_path / "n.html").read_text()


def test_other_labels_are_not_shown_as_the_evaluated_ones(made):
    (record,) = collect([made])
    score, test = record.evaluations[0].score, bv.data.load("digits").test
    moved = replace(score, y=(score.y + 1) % 10)
    with pytest.raises(UserError, match="other labels"):
        easy_and_hard(bv.load(made), test, THREAT, moved)
    with pytest.raises(UserError, match="fewer points"):
        easy_and_hard(bv.load(made), (torch.rand(3, 1, 8, 8), torch.zeros(3).long()), THREAT, score)


LONG = "a very long name of a class " * 200


@pytest.mark.parametrize(
    ("classes", "name"), [(2, "class"), (10, LONG), (43, LONG), (1000, LONG)], ids=lambda v: str(v)[:10]
)
def test_a_page_is_bounded_for_any_number_of_classes_and_any_names(made, classes, name):
    """Bounded by what is put in, before any layout sees it: rows, figures' names, letters of a name."""
    record = with_classes(made, classes, name)
    shown = pictures([record])
    text = render("html", [record], [])
    assert text.count("<tr>") < 250
    assert LONG not in text
    ticks = [len(ax.get_xticks()) for p in shown if p.name == "classes-0" for ax in p.drawn.draw().axes]
    assert max(ticks) <= 50
    (matrix,) = (p for p in shown if p.name == "confusion-0")
    assert matrix.kind == ("narrow" if classes <= 20 else "matrix")
    assert isinstance(matrix.drawn, Confusion)
    svg = matrix_svg(matrix.drawn, "x")
    assert len(svg) < 2000 + 400 * classes
    labels = re.findall(r'<text x="\d+" y="(\d+)">', svg)[:classes]
    places = np.diff([int(y) for y in labels])
    assert (places >= 12).all(), "lines of text do not meet"
    width, height = matrix.drawn.draw().get_size_inches()
    assert max(width, height) < 20


def test_of_many_classes_the_weakest_and_the_strongest_are_shown(made):
    record = with_classes(made, 1000)
    score = record.evaluations[0].score
    drawn = per_class({"run": score}, record.classes)
    shown, values = drawn.shown, score.per_class
    assert len(shown) == 30
    left_out = [v for k, v in enumerate(values) if k not in shown and v is not None]
    assert max(values[k] or 0 for k in shown[:20]) <= min(left_out)
    assert min(values[k] or 0 for k in shown[20:]) >= max(left_out)
    text = render("md", [record], [])
    assert "the 30 weakest and strongest of 1000 classes" in text
    assert "Commonest errors" in text


def test_the_commonest_errors_are_counted():
    counts = np.array([[5, 2, 0], [0, 4, 7], [1, 0, 3]])
    assert Confusion("a", ("x", "y", "z"), counts).commonest(2) == [(1, 2, 7), (0, 1, 2)]
    assert Confusion("a", ("x", "y", "z"), np.eye(3)).commonest() == []


def test_classes_without_a_point_are_named(made):
    (record,) = collect([made])
    kept = record.evaluations[0].score
    few = torch.isin(kept.y, torch.tensor([3, 7])).logical_not()
    lacking = Score(
        **{
            **vars(kept),
            **{name: getattr(kept, name)[few] for name in ("y", "predicted", "margin", "broken_at", "index")},
            "warnings": ("no point of class 3, 7: these classes have no accuracy", "other"),
        }
    )
    named = replace(record, classes=tuple("abcdefghij"))
    assert named.warnings(lacking) == [
        "other",
        "no point of class d, h: without accuracy, and not in tail scores",
    ]


def test_python_reports_as_the_command_does(made, monkeypatch):
    asked: list[tuple[list[Path], Path, Images | None]] = []  # and who hears of progress, which differs
    monkeypatch.setattr("bivallate.reports.page.write_report", lambda *a: asked.append(a[:3]) or a[1])
    assert bv.report(made, images=False) == made / "report.html"
    assert command(["report", str(made), "--no-images"]) == 0
    place = str(made.parent)
    bv.report(made, made.parent, out="r.md", data_dir=place, model="m:f")
    options = ["--out", "r.md", "--data-dir", place, "--model", "m:f"]
    assert command(["report", str(made), str(made.parent), *options]) == 0
    assert asked[0] == asked[1] == ([made], made / "report.html", None)
    assert asked[2] == asked[3] == ([made, made.parent], Path("r.md"), Images(place, "m:f"))


def test_no_run_is_no_report():
    with pytest.raises(UserError, match="at least one run"):
        bv.report()


def test_pairs_are_tested_on_common_points(made, tmp_path):
    other = trained(tmp_path / "other", 1, THREAT)
    text = render("md", collect([made, other]), [])
    assert "Pairs of runs: fgsm, Linf 0.05" in text
    row = next(line for line in text.splitlines() if line.startswith("| run | other | 359 |"))
    assert "[" in row
    for file in (other / "evaluation").glob("*.json"):
        replace(Score.load(file), identity=Identity(weights="last")).save(file)
    text = render("md", collect([made, other]), [])
    assert "The runs have no evaluation in common" in text
