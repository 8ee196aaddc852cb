"""Several threats on the command line: trained under, evaluated within each and within all."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image
from tests.commands.threats.conftest import SHORT, verdicts

import bivallate as bv
from bivallate.cli import run
from bivallate.run.config import Config


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
