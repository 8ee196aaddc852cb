"""A new metric of `compare`, as a worked example: one declaration, and it is sorted, printed and stored."""

from __future__ import annotations

import json

from bivallate.cli import run
from bivallate.evaluation import metrics
from bivallate.evaluation.metrics import Metric

LOST = Metric(
    "lost",
    "lost %",
    lambda score, _: score.clean_accuracy - score.robust_accuracy,
    less_is_better=True,
)


def test_a_metric_is_declared_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(metrics, "METRICS", (*metrics.METRICS, LOST))  # in the package: a line of METRICS
    runs = [str(tmp_path / name) for name in ("a", "b")]
    for seed, place in enumerate(runs):
        few = ["--model", "linear", "--epochs", "1", "--eps", "0.1", "--seed", str(seed)]
        assert run(["train", "plain", "--out", place, *few]) == 0
        assert run(["evaluate", place, "--attack", "fgsm", "--json"]) == 0
    capsys.readouterr()
    assert run(["compare", *runs, "--sort", "lost", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    lost = [row["lost"] for row in rows]
    assert lost == sorted(lost)
    assert lost[0] == rows[0]["clean_accuracy"] - rows[0]["robust_accuracy"] > 0
    assert run(["compare", *runs]) == 0
    assert "lost %" in capsys.readouterr().out
    assert run(["compare", *runs, "--over-seeds", "--sort", "lost", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["lost"]["mean"] == sum(lost) / 2
    assert run(["compare", *runs, "--sort", "lots"]) == 2
    assert "did you mean 'lost'" in capsys.readouterr().err
