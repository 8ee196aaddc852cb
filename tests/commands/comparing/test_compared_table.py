"""`bivallate compare`: rows, columns, order and footnotes of the table."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from tests.commands.comparing.conftest import NAMES, QUICK, as_json, paths

import bivallate as bv
from bivallate.cli import run
from bivallate.commands.compare import compare as compare_command
from bivallate.commands.score_table import show
from bivallate.evaluation.metrics import METRICS
from bivallate.reports.collect import collect
from bivallate.reports.page import write_report
from bivallate.reports.tables import evaluations_table, runs_table


def test_the_table_is_sorted_tested_and_costed(runs, capsys):
    made = as_json(capsys, *paths(runs))
    assert (made["attack"], made["threat"]) == ("fgsm", {"kind": "Linf", "eps": 0.1})
    rows = made["rows"]
    values = [row["robust_accuracy"] for row in rows]
    assert values == sorted(values, reverse=True)
    assert rows[0]["p_value"] is None
    for row in rows[1:]:
        assert row["p_adjusted"] >= row["p_value"]
        assert row["significant"] == (row["p_adjusted"] < 0.05)
    assert any(row["significant"] for row in rows), "the test asserts nothing about marks otherwise"
    cost = {row["run"]: row["training_passes"] for row in rows}
    assert cost == {"at-0": 12, "at-1": 12, "plain-0": 2, "plain-1": 2}
    stored = json.loads(Path(rows[0]["evaluation"]).read_text())
    assert stored["robust_accuracy"] == values[0]
    assert stored["interval_95"] == rows[0]["interval_95"]


@pytest.mark.parametrize(
    "key", ["clean_accuracy", "tail_30", "worst_class", "class_gini", "seconds", "training_passes"]
)
@pytest.mark.parametrize("given", [None, "--ascending", "--no-ascending"])
def test_rows_are_sorted_by_what_is_asked(runs, capsys, key, given):
    rows = as_json(capsys, *paths(runs), "--sort", key, *([given] if given else []))["rows"]
    values = [row[key] for row in rows]
    rising = key in ("class_gini", "seconds", "training_passes") if given is None else given == "--ascending"
    assert values == sorted(values, reverse=not rising)
    assert len(set(values)) > 1 or key == "worst_class"


@pytest.mark.parametrize("seeds", [[], ["--over-seeds"]], ids=["runs", "seeds"])
def test_every_column_to_sort_by_is_shown(runs, capsys, seeds):
    """A heading of its own, or a place below another one's number; by none the table is sorted unseen."""
    assert run(["compare", *paths(runs), "--markdown", *seeds]) == 0
    lines = capsys.readouterr().out.splitlines()
    heads = next(line for line in lines if line.startswith("| ")).strip("| ").split(" | ")
    titled = {metric.key for metric in METRICS if metric.title in heads}
    below = {metric.companion_key for metric in METRICS if metric.key in titled}
    assert {metric.key for metric in METRICS} == titled | (below - {""})


def test_class_measures_stand_beside_the_worst_class_everywhere(runs, capsys):
    """The classes' Gini coefficient: in what `evaluate` and `compare` print, and in the report's tables."""
    record = collect([runs / "at-0"])[0]
    score = next(e.score for e in record.evaluations if e.score.attack == "fgsm")
    text = f"{score.class_gini:.3f}"
    assert float(text) > 0
    assert run(["compare", *paths(runs), "--attack", "fgsm"]) == 0
    assert text in capsys.readouterr().out
    show(score, list(record.classes))
    assert re.search(rf"Gini coefficient of the classes\W+{text}", capsys.readouterr().out)
    for table in (runs_table([record]), evaluations_table([record])):
        place = table.columns.index("class Gini")
        assert table.columns[place - 1] == "worst class %"
        known = {f"{e.score.class_gini:.3f}" for e in record.evaluations}
        assert {row[place] for row in table.rows} <= known


@pytest.mark.parametrize("options", [{}, {"over_seeds": True}], ids=str)
def test_python_compares_as_the_command_does(runs, capsys, options):
    flags = ["--over-seeds"] if options else []
    made = bv.compare(*paths(runs), **options)
    assert made.to_json() == as_json(capsys, *paths(runs), *flags)
    assert run(["compare", *paths(runs), "--markdown", *flags]) == 0
    assert str(made) == capsys.readouterr().out.rstrip()
    assert len(repr(made)) < 150
    pairs = {(p["first"], p["second"]): p for p in made.to_json()["pairs"]}
    assert len(pairs) == 6
    for pair in pairs.values():
        low, high = pair["interval_95"]
        assert low <= pair["difference"] <= high
        assert pair["difference"] * pair["n"] == pytest.approx(pair["only_first"] - pair["only_second"])


def test_python_takes_runs_and_numbers(runs):
    (record,) = collect([runs / "at-0"])
    done = bv.Run(None, None, [], record.path)  # pyright: ignore[reportArgumentType]
    assert bv.compare(done, runs / "at-1", eps=0.1, norm="linf").about["n"] == 359
    for bad, said in ((bv.Run(None, None, [], None), "keeps nothing on disk"), (3, "got int")):  # pyright: ignore
        with pytest.raises(bv.UserError, match=said):
            bv.compare(bad)  # pyright: ignore[reportArgumentType]


def test_results_of_runs_of_one_name_are_kept_apart(runs, tmp_path, capsys):
    for folder in ("a", "b"):
        shutil.copytree(runs / f"at-{'ab'.index(folder)}", tmp_path / folder / "at")
    both = [str(tmp_path / folder / "at") for folder in "ab"]
    out = tmp_path / "out"
    assert run(["evaluate", *both, both[0], "--attack", "fgsm", "--first", "40", "--out", str(out)]) == 0
    name = "best-linf-0.1-fgsm-seed0-first40.json"
    assert sorted(p.name for p in out.iterdir()) == [f"a_at-{name}", f"b_at-{name}"]
    assert capsys.readouterr().out.count("kept in") == 2


def test_a_random_model_is_said_in_every_table(tmp_path, capsys, monkeypatch):
    (tmp_path / "noisy.py").write_text(
        "import torch\nfrom torch import nn\n\n"
        "class Noisy(nn.Linear):\n    def forward(self, x):\n"
        "        return super().forward(x.flatten(1) + 0.1 * torch.randn_like(x.flatten(1)))\n\n"
        "def net():\n    return Noisy(64, 10)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own, quick = str(tmp_path / "own"), [p if p != "linear" else "noisy:net" for p in QUICK]
    assert run(["train", "plain", "--out", own, "--epochs", "1", *quick]) == 0
    assert run(["evaluate", own, "--attack", "fgsm", "--model", "noisy:net", "--json"]) == 0
    capsys.readouterr()
    assert any("outputs depend on randomness" in note for note in as_json(capsys, own)["notes"])
    page = write_report([Path(own)], tmp_path / "report.md").read_text()
    assert "outputs depend on randomness" in page


def test_seeds_of_a_method_are_one_row(runs, capsys):
    single = {row["run"]: row for row in as_json(capsys, *paths(runs))["rows"]}
    rows = as_json(capsys, *paths(runs), "--over-seeds")["rows"]
    assert {row["method"]: row["seeds"] for row in rows} == {"at": [0, 1], "plain": [0, 1]}
    for row in rows:
        values = [single[name]["robust_accuracy"] for name in row["runs"]]
        assert row["robust_accuracy"]["values"] == values
        assert row["robust_accuracy"]["mean"] == pytest.approx(sum(values) / 2)
        low, high = row["robust_accuracy"]["interval_95"]
        assert low < row["robust_accuracy"]["mean"] < high
    config = runs / "at-1" / "config.toml"
    config.write_text(config.read_text().replace("batch_size = 400", "batch_size = 200"))
    assert len(as_json(capsys, *paths(runs), "--over-seeds")["rows"]) == 3, "another setting is another row"


@pytest.mark.parametrize("seeds", [[], ["--over-seeds"]], ids=["runs", "seeds"])
def test_a_training_that_failed_is_said_below_the_mean_that_hides_it(runs, capsys, seeds):
    broken, guesses, mended = (runs / name / "metrics.jsonl" for name in NAMES[:3])
    step = {"kind": "catastrophic", "step": 3, "text": "fgsm 90 %, pgd 0 %", "rolled_back": False}
    for file, more in (
        (broken, {"alarms": [step | {"epoch": 1}, step | {"epoch": 2}]}),
        (guesses, {"at_chance": True}),
        (mended, {"alarms": [step | {"epoch": 1, "rolled_back": True}]}),
    ):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        lines[-1] |= more
        file.write_text("\n".join(map(json.dumps, lines)) + "\n")
    notes = as_json(capsys, *paths(runs), *seeds)["notes"]
    assert f"At chance at the end of their training: {NAMES[1]}." in notes
    assert f"Catastrophic overfitting, by the sentinel's alarm: {NAMES[0]} (epoch 1)." in notes


def test_a_seed_counts_once(runs, capsys):
    shutil.copytree(runs / "at-0", runs / "copy")
    assert run(["compare", *paths(runs, "at-0", "copy"), "--over-seeds"]) == 2
    assert "at-0, copy are one method, but their seeds repeat (0, 0)" in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--over-seeds"]], ids=str)
def test_markdown_has_a_row_for_each_and_the_footnotes(runs, capsys, options):
    assert run(["compare", *paths(runs), "--markdown", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + (2 if options else 4)
    assert len({line.replace(r"\|", "").count("|") for line in table}) == 1
    assert any(line.startswith(r"\*: ") for line in lines)


MISTAKES = [
    (["--sort", "robust_acuracy"], "did you mean 'robust_accuracy'"),
    (["--attack", "pdg-20"], "did you mean"),
    (["--weights", "bst"], "did you mean 'best'"),
    (["--split", "tset"], "did you mean 'test'"),
    (["--eps", "many"], "such as 0.03 or 8/255"),
    (["--norm", "l3"], "unknown norm"),
    (["--json", "--markdown"], "not both"),
]


@pytest.mark.parametrize(("options", "message"), MISTAKES, ids=lambda v: str(v))
def test_a_mistake_is_one_message(runs, capsys, options, message):
    assert run(["compare", *paths(runs), *options]) == 2
    assert message in capsys.readouterr().err


def test_no_runs_or_the_same_twice(runs, capsys):
    assert run(["compare"]) == 2
    assert "at least one run" in capsys.readouterr().err
    assert run(["compare", *paths(runs, "at-0", "at-0")]) == 2
    assert "named twice" in capsys.readouterr().err
    shutil.rmtree(runs / "at-0" / "evaluation")
    shutil.rmtree(runs / "at-1" / "evaluation")
    assert run(["compare", *paths(runs, "at-0", "at-1")]) == 2
    assert "at-0, at-1 have no evaluation" in capsys.readouterr().err


def test_the_plane_shows_what_the_table_says(runs, tmp_path, capsys):
    for more, rows in (((), 4), (("--over-seeds",), 2)):
        assert run(["compare", *paths(runs), "--plane", str(tmp_path / "plane.svg"), "--json", *more]) == 0
        said = capsys.readouterr()
        assert "plane.svg" in said.err
        table, drawn = json.loads(said.out), json.loads((tmp_path / "plane.json").read_text())
        assert drawn["attack"] == "fgsm"
        assert len(drawn["standings"]) == rows == len(table["rows"])
        for row, point in zip(table["rows"], drawn["standings"], strict=True):
            own = (row["robust_accuracy"], row["worst_class"])
            expected = own if not more else tuple(value["mean"] for value in own)
            assert (point["mean"], point["worst"]) == expected
            assert point["worst"] <= point["mean"]
            spans = ("mean_interval_95", "worst_interval_95")
            assert more or all(point[s][0] <= point[s.partition("_")[0]] <= point[s][1] for s in spans)
        assert drawn["front"]
        assert (tmp_path / "plane.svg").stat().st_size > 5000
    assert run(["compare", *paths(runs, "at-0"), "--plane", str(tmp_path / "one.svg")]) == 2
    assert "name two or more" in capsys.readouterr().err


def test_the_help_of_sort_names_every_metric() -> None:
    listed = str(compare_command.__doc__).split("a column: ")[1].split("\n    ascending")[0]
    words = {*re.findall(r"[a-z_0-9]+", listed)} - {"of", "the", "evaluation"}
    assert words == {metric.key for metric in METRICS}
