"""Predictions, audits and the other looks at a run that was trained under several threats."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import bivallate as bv
from bivallate.audits import audit_model
from bivallate.cli import run
from bivallate.reports.collect import collect
from bivallate.reports.headlines import headlines


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
