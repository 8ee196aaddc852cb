"""`bivallate compare`: the evaluations that runs have in common, in one table."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import bivallate as bv
from bivallate.audits.run_audit import kept_claim
from bivallate.checksummed import read_checksummed, write_checksummed
from bivallate.cli import run
from bivallate.commands.compare import compare as compare_command
from bivallate.commands.score_table import show
from bivallate.evaluation import Score, evaluation_name
from bivallate.evaluation.metrics import METRICS
from bivallate.lower.threat import Linf
from bivallate.reports.collect import collect
from bivallate.reports.page import write_report
from bivallate.reports.tables import evaluations_table, runs_table

QUICK = ["--batch-size", "400", "--model", "linear", "--set", "validation.steps=1", "--eps", "0.1"]
NAMES = ("at-0", "at-1", "plain-0", "plain-1")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Two methods with two seeds each, all attacked by fgsm, the first also by pgd-8."""
    root = tmp_path_factory.mktemp("compare")
    for name in NAMES:
        method, seed = name.split("-")
        few = ["--set", "steps=2", "--epochs", "2"] if method == "at" else ["--epochs", "1"]
        assert run(["train", method, "--out", str(root / name), "--seed", seed, *few, *QUICK]) == 0
        assert run(["evaluate", str(root / name), "--attack", "fgsm", "--json"]) == 0
    assert run(["evaluate", str(root / "at-0"), "--attack", "pgd-8", "--json"]) == 0
    return root


@pytest.fixture
def runs(made, tmp_path, capsys) -> Path:
    shutil.copytree(made, tmp_path / "runs")
    capsys.readouterr()
    return tmp_path / "runs"


def paths(runs: Path, *names: str) -> list[str]:
    return [str(runs / name) for name in names or NAMES]


def as_json(capsys, *arguments: str) -> dict:
    assert run(["compare", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


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


def test_the_strongest_common_attack_is_taken_and_named(runs, capsys):
    assert as_json(capsys, *paths(runs, "at-0"))["attack"] == "pgd-8"
    assert as_json(capsys, *paths(runs, "at-0", "at-1"))["attack"] == "fgsm"
    assert run(["compare", *paths(runs, "at-0", "at-1")]) == 0
    assert "fgsm at Linf eps 0.1, best weights, test data, 359 points" in capsys.readouterr().out


def test_two_points_are_no_evidence_against_all(runs, capsys):
    """Of a few points an attack can leave none by luck: most points count first, then what leaves least."""
    for name in ("at-0", "at-1"):
        for attack in ("pgd-9", "pgd-8"):
            few = [] if attack == "pgd-8" else ["--n", "2"]
            assert run(["evaluate", str(runs / name), "--attack", attack, *few, "--json"]) == 0
        file = next((runs / name / "evaluation").glob("*pgd-9*"))
        score = Score.load(file)
        replace(score, broken_at=torch.ones_like(score.broken_at)).save(file)
    capsys.readouterr()
    made = as_json(capsys, *paths(runs, "at-0", "at-1"))
    assert (made["attack"], made["n"]) == ("pgd-8", 359)
    found = collect([runs / "at-0"])[0].strongest
    assert found is not None
    assert (found.score.attack, found.score.n) == ("pgd-8", 359)


def test_the_strongest_evaluation_stands_first_beside_the_common_one(runs, capsys):
    """One run was attacked harder on fewer points: that leads its row, never instead of what is compared."""
    assert run(["evaluate", str(runs / "at-0"), "--attack", "pgd-9", "--n", "100", "--json"]) == 0
    file = next((runs / "at-0" / "evaluation").glob("*pgd-9*"))
    score = Score.load(file)
    replace(score, broken_at=torch.ones_like(score.broken_at)).save(file)
    capsys.readouterr()
    made = as_json(capsys, *paths(runs, "at-0", "at-1"))
    assert (made["attack"], made["n"]) == ("fgsm", 359)
    lead = {row["run"]: row["strongest"] for row in made["rows"]}
    assert (lead["at-0"]["attack"], lead["at-0"]["n"], lead["at-0"]["robust_accuracy"]) == ("pgd-9", 100, 0)
    assert lead["at-0"]["interval_95"][1] < 0.05
    assert lead["at-1"]["attack"] == "fgsm"
    assert run(["compare", *paths(runs, "at-0", "at-1"), "--markdown"]) == 0
    printed = capsys.readouterr().out
    row = next(line for line in printed.splitlines() if line.startswith("| at-0"))
    assert row.split("|")[2].strip() == "0.00 (0.0-3.7, pgd-9, 100 points)"
    assert run(["compare", *paths(runs), "--over-seeds", "--markdown"]) == 0
    assert "at-0: pgd-9 on 100 points is stronger and left 0.0" in capsys.readouterr().out
    found = collect([runs / "at-0"])[0].strongest
    assert found is not None
    assert (found.score.attack, found.score.n) == ("pgd-9", 100)
    assert kept_claim(runs / "at-0" / "evaluation", "best", Linf(0.1), 359)[0] == 0


def test_another_common_attack_is_said_beside_the_strongest(runs, capsys):
    for name in ("at-0", "at-1"):
        assert run(["evaluate", str(runs / name), "--attack", "pgd-9", "--n", "100", "--json"]) == 0
        file = next((runs / name / "evaluation").glob("*pgd-9*"))
        score = Score.load(file)
        replace(score, broken_at=torch.ones_like(score.broken_at)).save(file)
    capsys.readouterr()
    for options in ([], ["--over-seeds"]):
        made = as_json(capsys, *paths(runs, "at-0", "at-1"), *options)
        assert (made["attack"], made["n"]) == ("pgd-9", 100)
        (said,) = (note for note in made["notes"] if note.startswith("Beside it all have fgsm"))
        kept = Score.load(next((runs / "at-1" / "evaluation").glob("*fgsm*")))
        assert f"at-1 {100 * kept.robust_accuracy:.1f} [" in said
        assert said.count("of 359 points") == 2
    made = as_json(capsys, *paths(runs, "at-0", "at-1"), "--attack", "fgsm")
    assert not any("fgsm" in note for note in made["notes"])
    assert any(note.startswith("Beside it all have pgd-9") for note in made["notes"])


DATA = [
    ('name = "digits"', 'name = "mnist"', "The data sets differ (at-0: mnist, 10 classes; at-1: digits"),
    ('imbalance = "none"', 'imbalance = "step:0.2"', "data.imbalance: at-0 step:0.2, at-1 none"),
    ('stream = "auto"', 'stream = "never"', None),
]


@pytest.mark.parametrize(("old", "new", "said"), DATA)
def test_other_data_is_said(runs, capsys, old, new, said):
    config = runs / "at-0" / "config.toml"
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new))
    made = as_json(capsys, *paths(runs, "at-0", "at-1"))
    text = " ".join(made["notes"])
    assert said in text if said else "data" not in text.replace("training data", "")
    names = [row["data"] for row in made["rows"]]
    assert made["data"] == (names[0] if len(set(names)) == 1 else None)


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


@pytest.mark.parametrize("options", [[], ["--over-seeds"]], ids=str)
def test_an_evaluation_of_weights_that_have_changed_is_marked(runs, capsys, options):
    """The verdicts of a model that is gone are shown, but never silently, and others go before them."""
    fresh = as_json(capsys, *paths(runs), *options)
    assert not any(row["stale"] for row in fresh["rows"])
    assert not any("weights changed" in note for note in fresh["notes"])
    header, _, _ = read_checksummed(runs / "at-0" / "best.safetensors")
    _, others, _ = read_checksummed(runs / "plain-0" / "best.safetensors")
    write_checksummed(runs / "at-0" / "best.safetensors", others, header)
    made = as_json(capsys, *paths(runs), *options)
    marked = [row["stale"] for row in made["rows"] if row["stale"]]
    assert marked == ([["at-0"]] if options else [True])
    assert "!: evaluated before the weights changed; evaluate again: at-0." in made["notes"]
    assert run(["compare", *paths(runs), *options]) == 0
    assert "at-0 !" in capsys.readouterr().out
    (run_of,) = collect([runs / "at-0"])
    assert [e.stale for e in run_of.evaluations] == [True, True]
    page = write_report([runs / "at-0"], runs / "report.md").read_text()
    assert "at-0, fgsm: evaluated before the weights changed; evaluate again." in page
    assert "(best, stale)" in page
    assert kept_claim(runs / "at-0" / "evaluation", "best", Linf(0.1), 359) == (None, "")
    assert "is no claim: evaluated before" in capsys.readouterr().err
    assert run(["evaluate", str(runs / "at-0"), "--attack", "noise", "--json"]) == 0
    found = collect([runs / "at-0"])[0].strongest
    assert found is not None
    assert (found.score.attack, found.stale) == ("noise-10", False)


def test_fewer_points_of_the_present_weights_go_before_all_of_earlier_ones(runs, capsys):
    for name in ("at-0", "at-1"):
        assert run(["evaluate", str(runs / name), "--attack", "noise", "--json"]) == 0
        header, _, _ = read_checksummed(runs / name / "best.safetensors")
        _, others, _ = read_checksummed(runs / "plain-0" / "best.safetensors")
        write_checksummed(runs / name / "best.safetensors", others, header)
        assert run(["evaluate", str(runs / name), "--attack", "noise", "--n", "100", "--json"]) == 0
    capsys.readouterr()
    found = as_json(capsys, *paths(runs, "at-0", "at-1"), "--attack", "noise")
    assert [(row["n"], row["stale"]) for row in found["rows"]] == [(100, False)] * 2


def test_results_of_runs_of_one_name_are_kept_apart(runs, tmp_path, capsys):
    for folder in ("a", "b"):
        shutil.copytree(runs / f"at-{'ab'.index(folder)}", tmp_path / folder / "at")
    both = [str(tmp_path / folder / "at") for folder in "ab"]
    out = tmp_path / "out"
    assert run(["evaluate", *both, both[0], "--attack", "fgsm", "--first", "40", "--out", str(out)]) == 0
    name = "best-linf-0.1-fgsm-seed0-first40.json"
    assert sorted(p.name for p in out.iterdir()) == [f"a_at-{name}", f"b_at-{name}"]
    assert capsys.readouterr().out.count("kept in") == 2


def of_schema_1(score: Score) -> str:
    """A file as they were when the name alone said which weights and points they are of."""
    entry = score.to_json() | {"schema": "bivallate-evaluation-1"}
    del entry["identity"]
    return json.dumps(entry)


@pytest.mark.parametrize("name", ["shifted-seed1", "n359", "first2", "usps", "on_x-seed0-n3"])
def test_no_name_of_a_data_set_passes_for_the_runs_own_data(runs, capsys, name):
    folder = runs / "at-0" / "evaluation"
    (own,) = folder.glob("*fgsm*")
    score = Score.load(own)
    assert score.identity is not None
    for n in (None, 2):
        other = replace(score, identity=replace(score.identity, data=name, n=n))
        other.save(folder / other.identity.file_name(score.threat, "fgsm", 0))
        named = evaluation_name("best", score.threat, "fgsm", 1, f"n{n}" if n else "", name)
        (folder / named).write_text(of_schema_1(score))
    found = {e.path.name: e.data for e in collect([runs / "at-0"])[0].evaluations}
    assert len(found) == 6
    assert sorted(found.values()) == ["", "", name, name, name, name]


def test_a_radius_may_be_rounded(runs, capsys):
    """8/255 and its decimals are one radius, whichever was typed."""
    for name, eps in (("at-0", "8/255"), ("at-1", "0.031372549"), ("plain-0", "0.03137255")):
        assert run(["evaluate", str(runs / name), "--attack", "fgsm", "--eps", eps, "--json"]) == 0
    capsys.readouterr()
    made = as_json(capsys, *paths(runs, "at-0", "at-1", "plain-0"), "--eps", "8/255")
    assert [row["p_value"] is None for row in made["rows"]] == [True, False, False]
    for path in runs.glob("*/evaluation/*0.1-fgsm*"):
        path.unlink()
    assert len(as_json(capsys, *paths(runs, "at-0", "at-1", "plain-0"))["rows"]) == 3


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


def test_a_shared_seed_does_not_cost_points(runs, capsys):
    for name, seed in (("at-0", "0"), ("at-1", "1")):
        for few in ([], ["--first", "2"]):
            wanted = ["--attack", "pgd-3", "--seed", "0" if few else seed, *few]
            assert run(["evaluate", str(runs / name), *wanted, "--json"]) == 0
    capsys.readouterr()
    assert as_json(capsys, *paths(runs, "at-0", "at-1"), "--attack", "pgd-3")["n"] == 359


@pytest.mark.parametrize(
    "options", [["--attack", "pgd-8"], ["--eps", "0.2"], ["--norm", "l2"], ["--weights", "last"]], ids=str
)
def test_what_a_run_lacks_is_made_by_the_command_that_is_named(runs, capsys, options):
    arguments = ["compare", *paths(runs, "at-0", "at-1"), *options]
    assert run(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("  bivallate ")]
    assert len(commands) == (1 if "--attack" in options else 2)
    for command in commands:
        assert run([*command, "--json"]) == 0
    assert run(arguments) == 0


def test_the_command_names_the_points_too(runs, capsys):
    assert run(["evaluate", str(runs / "at-0"), "--attack", "pgd-3", "--n", "40", "--seed", "2"]) == 0
    capsys.readouterr()
    assert run(["compare", *paths(runs, "at-0", "at-1"), "--attack", "pgd-3"]) == 2
    assert "--attack pgd-3 --n 40 --seed 2" in capsys.readouterr().err


def test_different_points_are_said_and_not_tested(runs, capsys):
    for name, n in (("at-0", "40"), ("at-1", "50")):
        assert run(["evaluate", str(runs / name), "--attack", "pgd-3", "--n", n, "--json"]) == 0
    capsys.readouterr()
    made = as_json(capsys, *paths(runs, "at-0", "at-1"), "--attack", "pgd-3")
    assert made["n"] is None
    assert made["rows"][1]["p_value"] is None
    assert "at-0: 40, at-1: 50" in made["notes"][-1]
    assert run(["evaluate", str(runs / "at-1"), "--attack", "pgd-3", "--n", "40", "--json"]) == 0
    capsys.readouterr()
    assert as_json(capsys, *paths(runs, "at-0", "at-1"), "--attack", "pgd-3")["n"] == 40


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


def test_evaluations_on_another_data_set_take_no_part(runs, capsys):
    before = as_json(capsys, *paths(runs))
    for name in NAMES:
        folder = runs / name / "evaluation"
        for file in list(folder.glob("*fgsm*")):
            score = Score.load(file)
            assert score.identity is not None
            elsewhere = replace(score.identity, data="usps")
            replace(score, identity=elsewhere).save(folder / f"usps-{file.name}")
            (folder / file.name.replace("-seed0", "-seed0-usps")).write_text(of_schema_1(score))
    assert as_json(capsys, *paths(runs)) == before


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
