"""The five additions of docs/extending.md work as they are printed, in at most twenty lines each."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import bivallate as bv
from bivallate.cli import run
from bivallate.data import registry
from bivallate.errors import UserError
from bivallate.evaluation import Score, attack_and_score, metrics, point_columns
from bivallate.evaluation.shared_points import merged
from bivallate.evaluation.significance import Row
from bivallate.evaluation.state import State
from bivallate.lower.objective import logit_margin
from bivallate.reproduce import papers
from bivallate.reproduce.papers import catalogue
from bivallate.run.config import Config

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
SECTIONS = dict(re.findall(r"^## (.*)\n(?:(?!^## )[\s\S])*?```python\n([\s\S]*?)```", PAGE.read_text(), re.M))


COLUMN = re.findall(r"```python\n([\s\S]*?)```", PAGE.read_text().split("## A number")[1])[1]


def code(of: str) -> str:
    if of == "column":
        return COLUMN
    (found,) = (text for heading, text in SECTIONS.items() if of in heading)
    return found


@pytest.fixture
def executed(monkeypatch) -> Callable[[str], dict[str, Any]]:
    """What a block of the page makes, as a module of its own."""

    def run_block(of: str) -> dict[str, Any]:
        module = ModuleType("of_the_page")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(compile(code(of), str(PAGE), "exec", dont_inherit=True), vars(module))
        return vars(module)

    return run_block


def test_five_examples_of_at_most_twenty_lines() -> None:
    lines = {
        heading: sum(bool(line.strip()) for line in text.splitlines()) for heading, text in SECTIONS.items()
    }
    assert len(lines) == 5
    assert max(lines.values()) <= 20, lines


def test_a_rule_for_steps(executed) -> None:
    method = executed("steps")["method"]
    assert bv.Method.from_dict(method.to_dict()) == method
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    batch = bv.Batch(images, torch.arange(6) % 3, torch.arange(6))
    torch.manual_seed(0)  # of some linear models the two rules reach the same corner
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    problem = bv.LowerProblem(model, batch, method.objective, method.threat)
    found = method.solver.solve(problem).delta
    assert found.abs().max() == pytest.approx(0.1)
    one_step = method.but(solver__steps=1, solver__start=bv.zero)
    same = one_step.but(solver__direction=bv.methods.at(bv.Linf(0.1)).solver.direction)
    torch.testing.assert_close(one_step.solver.solve(problem).delta, same.solver.solve(problem).delta)
    assert not torch.equal(
        found, method.but(solver__direction=same.solver.direction).solver.solve(problem).delta
    )


def test_a_data_set(executed, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(registry, "KNOWN", dict(registry.KNOWN))
    executed("data set")
    monkeypatch.setenv("BIVALLATE_DATA", str(tmp_path))
    monkeypatch.setenv("BIVALLATE_CACHE", str(tmp_path / "cache"))
    drawn = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 5)):
        for shape in ("circle", "square"):
            folder = tmp_path / "shapes" / split / shape
            folder.mkdir(parents=True)
            for k in range(count):
                Image.fromarray(drawn.integers(0, 256, (12, 12), np.uint8)).save(folder / f"{k}.png")
    assert run(["train", "fgsm-at", "--data", "shapes", "--epochs", "1", "--out", str(tmp_path / "r")]) == 0
    config = Config.read(tmp_path / "r" / "config.toml")
    assert (config.method.threat, config.model.name, config.optimizer.lr) == (bv.Linf(0.2), "linear", 0.1)
    loaded = bv.data.load("shapes")
    assert (loaded.mean, loaded.std, str(loaded.augment)) == ((0.4,), (0.3,), "crop:1,flip")
    capsys.readouterr()
    assert run(["datasets"]) == 0
    assert "2 classes, 1x12x12, 40 + 10 images" in capsys.readouterr().out
    monkeypatch.setenv("BIVALLATE_DATA", str(tmp_path / "cache"))
    with pytest.raises(bv.UserError, match="shapes is not there"):
        bv.data.load("shapes")


def test_an_optimiser(executed) -> None:
    made = executed("optimiser")
    model = made["run"].model
    optimizer = made["QuickHead"](0.02).make(model)
    assert [group["lr"] for group in optimizer.param_groups] == [0.02, 0.2]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    assert len(made["run"].history) == 1


def test_a_number_of_compare(executed, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(metrics, "METRICS", metrics.METRICS)
    executed("number")
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
    over_seeds = json.loads(capsys.readouterr().out)["rows"][0]
    assert over_seeds["lost"]["mean"] == sum(lost) / 2
    taken = {*rows[0], *over_seeds, *(f.name for f in dataclasses.fields(Row))}
    assert taken - {key for m in metrics.METRICS for key in (m.key, m.json_key)} == metrics.ROW_KEYS
    assert run(["compare", *runs, "--sort", "lots"]) == 2
    assert "did you mean 'lost'" in capsys.readouterr().err


def test_a_column_of_points(executed, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(metrics, "METRICS", metrics.METRICS)
    run_folder = str(tmp_path / "a")
    assert run(["train", "plain", "--out", run_folder, "--model", "linear", "--epochs", "1"]) == 0
    assert run(["evaluate", run_folder, "--attack", "fgsm", "--n", "40"]) == 0  # has no such column
    with restored_columns():
        executed("column")
        assert run(["evaluate", run_folder, "--attack", "pgd-3-2", "--n", "40"]) == 0
        (path,) = (tmp_path / "a" / "evaluation").glob("*pgd-3-2*.json")
        score = Score.load(path)
        assert score.more["loss"].shape == (40,)
        # loss and margin are of one and the same point: a misclassified one has a probability below 1/2
        assert bool((score.more["loss"][score.margin < 0] > math.log(2)).all())
        assert bool((score.margin < 0).any())
        model, data, ball = bv.load(run_folder), bv.data.load("digits").test, bv.Linf(0.15)
        clean = attack_and_score(model, data, ball, "clean", n=40).mean_of("loss")
        assert clean < score.mean_of("loss")
        partial = tmp_path / "verdicts"
        whole, again = (attack_and_score(model, data, ball, "pgd-2", n=40, resume=partial) for _ in range(2))
        assert torch.equal(whole.more["loss"], again.more["loss"])
        halves = [State.load(partial, key_of(partial)).select(slice(k, None, 2)) for k in range(2)]
        assert torch.equal(merged(halves, 40).more["loss"], whole.more["loss"])
        capsys.readouterr()
        assert run(["compare", run_folder, "--attack", "pgd-3-2", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["rows"][0]["loss"] == score.mean_of("loss")
        assert run(["compare", run_folder, "--attack", "fgsm", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["rows"][0]["loss"] is None
    assert torch.equal(Score.load(path).more["loss"], score.more["loss"])  # also where nobody declares it
    with pytest.raises(UserError, match=r"belongs to another evaluation .* the columns kept differ"):
        attack_and_score(model, data, ball, "pgd-2", n=40, resume=partial)
    attack_and_score(model, data, ball, "pgd-2", n=40, resume=tmp_path / "fewer")
    with restored_columns():
        point_columns.MORE_COLUMNS["mine"] = logit_margin
        with pytest.raises(UserError, match=r"belongs to another evaluation .* the columns kept differ"):
            attack_and_score(model, data, ball, "pgd-2", n=40, resume=tmp_path / "fewer")


@pytest.mark.parametrize(
    "keys",
    [
        {"key": "n"},
        {"key": "values"},
        {"key": "x", "interval_key": "seed"},
        {"key": "tail_30"},
        {"key": "interval_95"},
        {"key": "tail_30_interval_95"},
        {"key": "clean_accuracy", "interval_key": "mine"},
        {"key": "x", "interval_key": "robust_accuracy"},
        {"key": "x", "interval_key": "clean_interval_95"},
        {"key": "x", "interval_key": "x"},
    ],
    ids=str,
)
def test_a_metric_that_would_overwrite_an_entry_of_its_row_is_refused(keys) -> None:
    before = metrics.METRICS
    with pytest.raises(UserError, match="another entry of the rows"):
        metrics.add(metrics.Metric(title="mine", value=lambda score, _: 0.0, **keys))
    assert metrics.METRICS is before


def one_a_class(logits, y):
    return logits


@pytest.mark.parametrize(
    ("name", "of", "fault"),
    [
        ("margin", logit_margin, "the name of another entry"),
        ("stage", logit_margin, "the name of another entry"),
        ("mine", one_a_class, "got the shape"),
        ("mine", lambda logits, y: logits[:, 0] * math.nan, "got NaN"),
    ],
)
def test_a_column_that_files_could_not_hold_is_refused(name, of, fault) -> None:
    model = bv.models.create("linear", num_classes=10, shape=(1, 8, 8), seed=0)
    data = bv.data.load("digits").test
    with restored_columns():
        point_columns.MORE_COLUMNS[name] = of
        with pytest.raises(UserError, match=fault):
            attack_and_score(model, data, bv.Linf(0.1), "clean", n=4)


def key_of(partial: Path) -> str:
    return json.loads(partial.read_text())["key"]


@contextmanager
def restored_columns():
    """Columns that are declared within are gone afterwards."""
    before = dict(point_columns.MORE_COLUMNS)
    try:
        yield
    finally:
        point_columns.MORE_COLUMNS.clear()
        point_columns.MORE_COLUMNS.update(before)


def test_a_table(tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "tables_of_this_test.py").write_text(code("table"))
    monkeypatch.setattr(papers, "__path__", [*papers.__path__, str(tmp_path)])
    monkeypatch.chdir(tmp_path)
    catalogue.tables.cache_clear()
    try:
        assert list(catalogue.tables())[-1] == "T-X1"
        assert catalogue.find("t-x1").hardware == "one RTX 3090"
        assert run(["reproduce", "T-X1", "--scale", "smoke"]) == 0
    finally:
        catalogue.tables.cache_clear()
    told = capsys.readouterr().out
    assert "Fast-BAT above Fast-AT in PGD-20" in told
