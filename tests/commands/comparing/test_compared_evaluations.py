"""`bivallate compare`: which of the stored evaluations are compared."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace

import pytest
import torch
from tests.commands.comparing.conftest import NAMES, as_json, paths

from bivallate.audits.run_audit import kept_claim
from bivallate.checksummed import read_checksummed, write_checksummed
from bivallate.cli import run
from bivallate.evaluation import Score, evaluation_name
from bivallate.lower.threat import Linf
from bivallate.reports.collect import collect
from bivallate.reports.page import write_report


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
