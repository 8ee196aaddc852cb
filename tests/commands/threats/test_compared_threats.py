"""Runs that were trained under several threats, compared and reported by what withstands all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.commands.threats.conftest import verdicts

import bivallate as bv
from bivallate.cli import run


def test_runs_are_compared_by_what_withstands_all(trained: Path, plain: Path, tmp_path: Path, capsys) -> None:
    threats = ["--threat", "linf:0.1", "l2:0.4", "l1:1"]
    assert run(["evaluate", str(trained), str(plain), "--attack", "pgd-3", "--quiet", *threats]) == 0
    capsys.readouterr()
    assert run(["compare", "--attack", "pgd-3", "--json", *threats, str(trained), str(plain)]) == 0
    made = json.loads(capsys.readouterr().out)
    kinds = [one["kind"] for one in made["threat"]["threats"]]
    assert kinds == ["Linf", "L2", "L1"]
    for row, folder in zip(made["rows"], (trained, plain), strict=True):
        each = [verdicts(folder, name) for name in ("linf-0.1", "l2-0.4", "l1-1")]
        both = [all(point) for point in zip(*each, strict=True)]
        assert row["run"] == folder.name
        assert row["robust_accuracy"] == sum(both) / len(both)
        assert len(row["evaluations"]) == 3
    assert made["pairs"][0]["only_first"] > made["pairs"][0]["only_second"]
    assert "Trained for another threat than the one compared here: plain." in made["notes"]
    assert run(["compare", "--attack", "pgd-3", str(trained)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith("pgd-3 at all of Linf eps 0.1, L2 eps 0.4, L1 eps 1, best weights"), (
        "its own threats"
    )
    assert run(["compare", "--attack", "pgd-3", str(trained), "--norm", "l2"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith("pgd-3 at L2 eps 0.4")
    assert (
        "under more threats than compared here: run; --threat linf:0.1 l2:0.4 l1:1.0 compares within" in text
    )


def test_what_a_comparison_lacks_is_said_with_its_command(trained: Path, plain: Path, capsys) -> None:
    fgsm = ["evaluate", str(trained), "--attack", "fgsm", "--first", "30", "--quiet"]
    one = ["evaluate", str(plain), "--attack", "fgsm", "--first", "30", "--quiet", "--threat", "l2:0.4"]
    assert run(fgsm) == run(one) == 0
    capsys.readouterr()
    threats = ["--threat", "linf:0.1", "l2:0.4", "l1:1"]
    assert run(["compare", str(trained), str(plain), "--attack", "fgsm", *threats]) == 2
    said = capsys.readouterr().err
    assert (
        "plain has no evaluation of the best weights on the test data by fgsm at all of Linf 0.1, L2" in said
    )
    command = said.splitlines()[-1].strip()
    assert command == f"bivallate evaluate {plain} --attack fgsm --threat linf:0.1 l1:1.0 --first 30"
    assert run([*command.split()[1:], "--quiet"]) == 0
    assert run(["compare", str(trained), str(plain), "--attack", "fgsm", *threats]) == 0


@pytest.fixture
def seeds(trained: Path, tmp_path: Path) -> list[Path]:
    """Two copies of the run: pgd-3 within all threats, and fgsm, which is stronger here, within Linf."""
    runs = [tmp_path / "a", tmp_path / "b"]
    for folder in runs:
        shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("evaluation"))
        for threats in (["pgd-3"], ["fgsm", "--eps", "0.1"]):
            assert run(["evaluate", str(folder), "--quiet", "--attack", *threats]) == 0
    return runs


def test_what_withstands_all_leads_even_if_one_threat_has_a_stronger_attack(
    seeds: list[Path], capsys
) -> None:
    capsys.readouterr()
    assert run(["compare", *map(str, seeds), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    both = "pgd-3", "fgsm + pgd-3"
    assert made["attack"] == both[1], "the strongest within each threat"
    score = bv.evaluate(seeds[0], attack="pgd-3", store=False)
    assert made["rows"][0]["robust_accuracy"] < score.robust_accuracy
    assert run(["compare", *map(str, seeds), "--json", "--attack", "pgd-3"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["attack"], len(made["threat"]["threats"])) == (both[0], 3)
    assert made["rows"][0]["robust_accuracy"] == score.robust_accuracy
    assert made["rows"][0]["strongest"]["attack"] == both[1], "a stronger one is shown beside it"


def test_a_stronger_attack_within_one_threat_is_shown_beside_what_all_have(seeds: list[Path], capsys) -> None:
    """Both joins begin with the same file, for fgsm is within the second threat alone."""
    for folder in seeds:
        shutil.rmtree(folder / "evaluation")
    noise = ["evaluate", *map(str, seeds), "--attack", "noise-2", "--quiet"]
    assert run(noise) == 0
    assert run(["evaluate", str(seeds[0]), "--attack", "fgsm", "--threat", "l2:0.4", "--quiet"]) == 0
    capsys.readouterr()
    assert run(["compare", *map(str, seeds)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Strongest: what the strongest evaluation of a run in this threat left" in text


def test_a_report_never_says_more_than_its_strongest_evidence(seeds: list[Path]) -> None:
    fgsm = bv.Score.load(seeds[0] / "evaluation" / "best-linf-0.1-fgsm-seed0.json")
    pgd = bv.Score.load(seeds[0] / "evaluation" / "best-linf-0.1-pgd-3-seed0.json")
    assert fgsm.robust_accuracy < pgd.robust_accuracy
    out = seeds[0].parent / "report.md"
    assert run(["report", str(seeds[0]), "--out", str(out)]) == 0
    (row,) = [line for line in out.read_text().splitlines() if line.startswith("| a | e-at | digits")]
    assert "| fgsm + pgd-3 (best) |" in row
    for file in (seeds[1] / "evaluation").glob("*l1*"):
        file.unlink()
    assert run(["report", *map(str, seeds), "--out", str(out)]) == 0
    assert "b has not been attacked with the same weights and points within each threat" in out.read_text()


def test_reports_and_comparisons_tell_runs_of_other_threats_apart(
    seeds: list[Path], plain: Path, capsys
) -> None:
    assert run(["evaluate", str(plain), "--quiet", "--attack", "fgsm"]) == 0
    out = seeds[0].parent / "report.md"
    capsys.readouterr()
    assert run(["report", str(seeds[0]), str(plain), "--out", str(out)]) == 0
    assert (
        "within different threats and cannot be compared: a: all of Linf 0.1, L2 0.4, L1 1" in out.read_text()
    )
    assert run(["compare", *map(str, seeds), "--threat", "linf:0.1", "l2:0.4", "--attack", "pgd-3"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Trained for another threat" not in text
    assert "Trained under more threats than compared here: a, b; --threat linf:0.1 l2:0.4 l1:1.0" in text


def test_a_report_shows_what_withstands_all(trained: Path, tmp_path: Path, capsys) -> None:
    assert run(["evaluate", str(trained), "--attack", "pgd-3", "--quiet"]) == 0
    report = ["report", str(trained), "--out", str(tmp_path / "report.md")]
    assert run(report) == 0
    text = (tmp_path / "report.md").read_text()
    each = [verdicts(trained, name) for name in ("linf-0.1", "l2-0.4", "l1-1")]
    both = [all(point) for point in zip(*each, strict=True)]
    (row,) = [line for line in text.splitlines() if line.startswith("| run | e-at | digits")]
    assert "| Linf 0.1, L2 0.4, L1 1 | pgd-3 (best) |" in row
    assert f"| {100 * sum(both) / len(both):.1f} \\[" in row
    assert "all of Linf 0.1, L2 0.4, L1 1 |" in text
