"""Several threats on the command line: train under them, evaluate within each and within all."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import bivallate as bv
from bivallate.audits import audit_model
from bivallate.cli import run
from bivallate.reports.collect import collect
from bivallate.reports.headlines import headlines
from bivallate.run.config import Config

SHORT = ["--batch-size", "100", "--model", "linear", "--set", "validation.steps=1", "--set", "steps=2",
         "--epochs", "2"]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("threats") / "run"
    others = ["--eps", "0.1", "--set", "others=l2:0.4,l1:1"]
    assert run(["train", "e-at", "--data", "digits", "--lr", "0.2", *others, "--out", str(out), *SHORT]) == 0
    return out


def verdicts(folder: Path, name: str) -> list[bool]:
    return bv.Score.load(folder / "evaluation" / f"best-{name}-pgd-3-seed0.json").robust.tolist()


def test_a_run_is_evaluated_within_all_its_threats(trained: Path, capsys) -> None:
    capsys.readouterr()
    assert run(["evaluate", str(trained), "--attack", "pgd-3", "--quiet"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "robust" in line]
    each = [verdicts(trained, name) for name in ("linf-0.1", "l2-0.4", "l1-1")]
    for line, name, found in zip(lines, ("Linf 0.1", "L2 0.4", "L1 1"), each, strict=False):
        assert f"pgd-3, {name}: " in line
        assert f"robust {100 * sum(found) / len(found):.2f} %" in line
    both = [all(point) for point in zip(*each, strict=True)]
    assert 0 < sum(both) < min(map(sum, each)), "each threat breaks points that another one does not"
    assert f"pgd-3, under all 3: robust {100 * sum(both) / len(both):.2f} %" in lines[3]
    assert len(lines) == 4


def test_the_options_choose_other_threats(trained: Path, capsys) -> None:
    start = ["evaluate", str(trained), "--attack", "fgsm", "--first", "50", "--json", "--quiet"]
    capsys.readouterr()
    assert run([*start, "--norm", "l2", "--eps", "0.3"]) == 0
    assert json.loads(capsys.readouterr().out)["threat"] == {"kind": "L2", "eps": 0.3}
    assert run([*start, "--threat", "l1:2"]) == 0
    assert json.loads(capsys.readouterr().out)["threat"] == {"kind": "L1", "eps": 2.0}
    assert run([*start, "--threat", "l1:2", "linf:8/255"]) == 0
    first, second, both = json.loads(capsys.readouterr().out)
    within = [{"kind": "L1", "eps": 2.0}, {"kind": "Linf", "eps": 8 / 255}]
    assert both["threats"] == [first["threat"], second["threat"]] == within
    assert both["n"] == 50
    assert both["robust_accuracy"] <= min(first["robust_accuracy"], second["robust_accuracy"])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("threats") / "plain"
    assert run(["train", "plain", "--data", "digits", "--lr", "0.2", "--out", str(out), *SHORT[:4]]) == 0
    return out


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


def test_python_evaluates_within_all_threats_of_a_run_or_of_a_call(trained: Path) -> None:
    score = bv.evaluate(trained, attack="pgd-3")
    each = [verdicts(trained, name) for name in ("linf-0.1", "l2-0.4", "l1-1")]
    assert score.robust.tolist() == [all(point) for point in zip(*each, strict=True)]
    assert score.identity is not None
    assert score.identity.weights == "best"
    before = sorted(trained.glob("evaluation/*"))
    one = bv.evaluate(trained, attack="pgd-3", threat=bv.L2(0.4))
    assert one.robust.tolist() == each[1]
    assert bv.evaluate(trained, attack="clean").robust.tolist() == one.clean.tolist()
    model, data = bv.load(trained), bv.data.load("digits")
    threats = [bv.L2(0.4), bv.L1(1.0)]
    both = bv.evaluate(model, data.test, threats, "pgd-3")
    assert both.robust.tolist() == [a and b for a, b in zip(*each[1:], strict=True)]
    again = bv.evaluate(trained, data.test, both.threat, "pgd-3", batch_size=len(both.y))
    assert again.robust.tolist() == both.robust.tolist()
    new = set(trained.glob("evaluation/*")) - set(before)
    assert {file.name for file in new} <= {"best-linf-0.1-clean-seed0.json"}
    with pytest.raises(bv.UserError, match="twice"):
        bv.evaluate(model, data.test, [bv.L2(0.4), bv.L2(0.4)])
    with pytest.raises(bv.UserError, match="within one threat"):
        bv.evaluate(model, data.test, threats, "pgd-3", resume=trained / "unfinished")


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


def test_the_run_may_stand_behind_the_threats(trained: Path, capsys) -> None:
    capsys.readouterr()
    words = ["--first", "20", "--quiet", "--attack", "fgsm", "--threat", "l2:0.5", "l1:1", str(trained)]
    assert run(["evaluate", *words]) == 0
    assert "fgsm, under all 2: robust" in capsys.readouterr().out


def test_without_an_attack_one_threat_is_enough(trained: Path, capsys) -> None:
    capsys.readouterr()
    assert run(["evaluate", str(trained), "--attack", "clean", "fgsm", "--first", "20", "--quiet"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "robust" in line]
    assert [line.partition(": ")[0].rpartition("/run ")[2] for line in lines] == [
        "clean", "fgsm, Linf 0.1", "fgsm, L2 0.4", "fgsm, L1 1", "fgsm, under all 3",
    ]  # fmt: skip


def test_a_prediction_survives_within_every_threat(trained: Path, tmp_path: Path, capsys) -> None:
    image = str(tmp_path / "x.png")
    bv.data.contact_sheet(bv.data.load("digits"), tmp_path / "x.png", columns=1)
    model, data = bv.load(trained), bv.data.load("digits")
    x, _ = data.test.tensors(torch.arange(100))
    threats = bv.Linf(0.1), bv.L2(0.4), bv.L1(1.0)
    alone = [bv.predict(model, x, one, "pgd-3") for one in threats]
    for of_all, *each in zip(bv.predict(model, x, threats, "pgd-3"), *alone, strict=True):
        broken = [one for one in each if not one.survives]
        assert of_all.survives == (not broken)
        assert (of_all.becomes, of_all.within) == (
            (broken[0].becomes, broken[0].within) if broken else (None, None)
        )
    assert 0 < sum(all(row) for row in zip(*([p.survives for p in one] for one in alone), strict=True)) < 100
    capsys.readouterr()
    assert run(["predict", str(trained), image, "--attack", "pgd-3", "--json"]) == 0
    (said,) = json.loads(capsys.readouterr().out)
    given = ["predict", str(trained), "--attack", "pgd-3", "--threat", "l2:0.001", "linf:0.9", image]
    assert run([*given, "--json"]) == 0
    (large,) = json.loads(capsys.readouterr().out)
    assert set(said) == set(large)
    assert (large["survives"], large["within"]) == (False, {"kind": "Linf", "eps": 0.9})
    assert run(given) == 0
    text = " ".join(capsys.readouterr().out.replace("\u2502", " ").replace("\u2503", " ").split())
    assert "Linf 0.9" in text
    assert "becomes" in text


def test_each_threat_of_a_run_is_audited(trained: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(audit_model, "passes_a_second", lambda *given, shared: 1e5)
    words = ["audit", str(trained), "--n", "50", "--budget", "0.1", "--quiet"]
    capsys.readouterr()
    assert run(words) == 0
    said = capsys.readouterr().out.splitlines()
    within = ["Linf 0.1", "L2 0.4", "L1 1"]
    kept = [f"best-{name}-audit-seed0.json" for name in ("linf-0.1", "l2-0.4", "l1-1")]
    found = [json.loads((trained / "audit" / name).read_text()) for name in kept]
    told = "; ".join(f"{one['verdict']} at {name}" for one, name in zip(found, within, strict=True))
    assert said[-1] == f"verdicts: {told}"
    assert run([*words, "--json", "--threat", "l1:1", "linf:0.1", "--out", str(tmp_path / "out")]) == 0
    l1, linf = json.loads(capsys.readouterr().out)
    assert (l1["threat"], linf["threat"]) == ({"kind": "L1", "eps": 1.0}, {"kind": "Linf", "eps": 0.1})
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted([kept[2], kept[0]])
    report = tmp_path / "report.md"
    assert run(["report", str(trained), "--out", str(report)]) == 0
    assert all(f"{one['verdict']} at {name}" in headlines(collect([trained]))[0].verdict
               for one, name in zip(found, within, strict=True))  # fmt: skip
    with pytest.raises(bv.UserError, match=r"under Linf 0.1, L2 0.4, L1 1: .*threat=bv.Linf\(eps=0.1\)"):
        bv.audit(trained, n=50, minutes=0.05)


def test_an_audit_that_cannot_be_kept_does_not_stop_the_others(
    trained: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(audit_model, "passes_a_second", lambda *given, shared: 1e5)
    folder = tmp_path / "run"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("evaluation", "audit"))
    (folder / "audit").write_text("in the way")
    capsys.readouterr()
    assert run(["audit", str(folder), "--n", "50", "--budget", "0.1", "--quiet"]) == 2
    out = capsys.readouterr().out
    assert [out.count(f"50 points at {name} eps") for name in ("Linf", "L2", "L1")] == [1, 1, 1]


def test_looks_within_one_threat_say_so(trained: Path, plain: Path, tmp_path: Path, capsys) -> None:
    curve = ["curve", str(trained), "--n", "20", "--attack", "fgsm"]
    said = "was trained under Linf 0.1, L2 0.4, L1 1: this is L2 alone"
    capsys.readouterr()
    assert run([*curve, "--norm", "l2", "--json"]) == 0
    printed, told = capsys.readouterr()
    data = json.loads(printed)
    assert data["eps"][-1] == pytest.approx(0.8), "to twice its own radius in that norm"
    assert said in told
    assert run([*curve, "--norm", "l2", "--quiet"]) == 0
    assert said not in capsys.readouterr().err
    few = ["--n", "10", "--steps", "2", "--json"]
    assert run(["distances", str(trained), "--norm", "l2", *few]) == 0
    assert said in capsys.readouterr().err
    assert run(["transfer", str(trained), "--from", str(plain), "--norm", "l2", "--n", "10", "--json"]) == 0
    printed, told = capsys.readouterr()
    assert json.loads(printed)["threat"] == {"kind": "L2", "eps": 0.4}
    assert said in told
    assert "plain was trained" not in told
    assert run(["attack", str(trained), "--save", str(tmp_path / "images"), "--n", "2"]) == 0
    assert "under Linf 0.1, L2 0.4, L1 1: this is the first" in capsys.readouterr().err


REFUSED = {
    "evaluate RUN --threat l2": r"--threat must be a norm and a radius, such as l2:0.5, got 'l2'",
    "evaluate RUN --threat l2:0.5 l2:0.5": "--threat names a threat twice",
    "evaluate RUN --threat l2:0.5 --eps 0.1": "leave out --eps and --norm",
    "evaluate RUN --threat l7:0.5": "unknown norm 'l7'",
    "evaluate RUN --threat l2:much": "--threat must be a number",
    "evaluate RUN --attack fgsm ddn": "ddn searches the smallest L2 norm, got Linf",
    "evaluate RUN --attack fgsm deepfool-5": "deepfool is of Linf and L2, got L1",
    "compare RUN --threat l2:0.4 --eps 0.4": "leave out --eps and --norm",
    "compare RUN --threat l2:0.4 l2:0.4": "--threat names a threat twice",
    "evaluate RUN --threat l2:0.4 l2:0.40000000001": "--threat names a threat twice",
    "compare RUN --threat l2:0.4 l1:1 --attack clean": "clean is no attack",
    "compare --threat l2:0.4 l1:1 RUNS": "got 'RUNS', which is no run's folder either",
    "audit RUN --threat l2:0.4 l1:1 --claimed 0.5": "--claimed is of one threat, and here are 2",
    "audit RUN --threat l2:0.4 l1:0": "an audit needs a radius above 0",
    "audit RUN --claimed 0.5": "--claimed is of one threat, and here are 3",
    "audit RUN --threat l2:0.4 --norm l2": "leave out --eps and --norm",
    "predict RUN x.png --threat l2:0.4 y.png": "got 'y.png', which is no image either",
    "predict RUN x.png --threat l2:0.4 --eps 0.1": "leave out --eps and --norm",
    "predict RUN x.png --attack ddn": "ddn searches the smallest L2 norm, got Linf",
    "train max-at --data digits": "--set others=l2:0.5,l1:12",
    "train msd --data digits --dry-run": "--set others=l2:0.5,l1:12",
    "train e-at --data digits --set others=linf:0.1 --dry-run": "a norm each",
    "train e-at --data digits --set others=l2 --dry-run": "others must be a norm and a radius",
    "train e-at --data digits --set others=l2:-1 --dry-run": "eps must be",
}


@pytest.mark.parametrize("typed", REFUSED)
def test_mistakes_are_one_line(typed: str, trained: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("L", (8, 8)).save("x.png")
    capsys.readouterr()
    assert run(re.sub(r"\bRUN\b", str(trained), typed).split()) == 2
    printed, told = capsys.readouterr()
    assert "robust" not in printed, "refused before anything was attacked"
    said = told.splitlines()[-1]
    assert re.search(REFUSED[typed], said), said


def test_a_whole_threat_takes_its_step_sizes_along(tmp_path: Path) -> None:
    out = tmp_path / "run"
    changed = ["--set", "threat=l2:0.4"]
    assert run(["train", "at", "--data", "digits", *changed, "--out", str(out), *SHORT]) == 0
    method = Config.read(out / "config.toml").method
    assert method == bv.methods.at(bv.L2(0.4), steps=2)
