"""The content of an evaluation's file says what it is; file names are labels; foreign files are left out."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import bivallate as bv
from bivallate.audits.run_audit import kept_claim
from bivallate.cli import run
from bivallate.data import load
from bivallate.errors import UserError
from bivallate.evaluation import Identity, Score
from bivallate.lower.threat import Linf
from bivallate.reports.collect import RunRecord, collect
from bivallate.reports.page import render
from bivallate.reports.stored_evaluations import Evaluation, RunFingerprints
from bivallate.run.evaluation_target import EvaluationTarget

OLD = Path(__file__).parents[1] / "evaluation" / "old" / "run"  # trained and attacked at commit 487ed02
THREAT = Linf(0.15)
NAMES = {
    "best-linf-0.15-autoattack-seed0-first40.json": Identity(first=40),
    "best-linf-0.15-pgd-20-seed0.json": Identity(),
    "best-linf-0.15-pgd-3-seed0-on_other.npz_bfef752d.json": Identity(data="other.npz_bfef752d"),
    "best-linf-0.15-transfer-pgd-5-from-second_cc13eaf7-seed0-first60.json": Identity(first=60),
    "best-train-linf-0.15-fgsm-seed0-first80.json": Identity(split="train", first=80),
    "ema-l2-0.5-cw-seed0-first60.json": Identity(weights="ema", first=60),
    "epoch-1-validation-linf-0.15-fgsm-seed0.json": Identity(weights="epoch-1", split="validation"),
    "last-linf-0.15-pgd-5-2-seed2-n50.json": Identity(weights="last", n=50),
}


@pytest.fixture
def old(tmp_path) -> Path:
    return Path(shutil.copytree(OLD, tmp_path / "old"))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Path]:
    """Two runs of one kind, each attacked by its own command."""
    root, quick = tmp_path_factory.mktemp("stored"), ["--model", "linear", "--epochs", "1", "--eps", "0.15"]
    for name, seed in (("a", "0"), ("b", "1")):
        assert run(["train", "plain", "--out", str(root / name), "--seed", seed, *quick]) == 0
        assert run(["evaluate", str(root / name), "--attack", "fgsm", "--json"]) == 0
    return root / "a", root / "b"


@pytest.fixture
def pair(made, tmp_path, capsys) -> tuple[Path, Path]:
    capsys.readouterr()
    return tuple(Path(shutil.copytree(place, tmp_path / place.name)) for place in made)  # pyright: ignore


def record(place: Path) -> RunRecord:
    (found,) = collect([place])
    return found


def only(place: Path) -> Evaluation:
    (found,) = record(place).evaluations
    return found


def test_a_run_of_version_1_is_read_as_before(old):
    found = record(old)
    assert {e.path.name: e.identity for e in found.evaluations} == NAMES
    assert not any(e.stale for e in found.evaluations)
    assert found.strongest is not None
    assert found.strongest.score.attack == "pgd-20", "forty points are too few to lead"
    assert [(a.weights, a.split, a.verdict, a.stale) for a in found.audits] == [
        ("best", "test", "believable", False),
        ("epoch-1", "validation", "believable", False),
    ]
    assert kept_claim(old / "evaluation", "best", THREAT, 359)[1] == "evaluation pgd-20, 359 points"
    assert "autoattack" in render("md", [found], [])


def test_a_run_of_version_1_is_compared_with_a_new_one(old, pair, capsys):
    wanted = ["--attack", "pgd-3", "--first", "40", "--json"]
    for place in (old, pair[0]):
        assert run(["evaluate", str(place), *wanted]) == 0
    capsys.readouterr()
    assert run(["compare", str(old), str(pair[0]), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert rows[1]["p_value"] is not None, "the same points, so that they are tested"


def test_a_file_says_what_it_is_and_its_name_does_not(pair):
    place = pair[0]
    before = only(place)
    manifest = json.loads((place / "model.json").read_text())
    assert before.identity == Identity(manifest["run"], data_set=manifest["data_fingerprint"])
    assert before.score.model_fingerprint == json.loads(before.path.read_text())["model_fingerprint"]
    for name in ("mine.json", "last-train-l2-9-autoattack-seed5-on_usps-n7.json"):
        before.path.rename(place / "evaluation" / name)
        before = only(place)
        assert before.identity.data == ""
        assert (before.weights, before.split, before.stale) == ("best", "test", False)
    assert record(place).strongest is not None
    shutil.copy(before.path, before.path.with_name("copy.json"))
    assert len(record(place).evaluations) == 2
    for k, text in enumerate(("[]", "{}", '"text"', '{"schema": "mine-1", "points": 3}')):
        before.path.with_name(f"notes{k}.json").write_text(text)
    assert len(record(place).evaluations) == 2, "somebody else's files are passed over"
    assert record(place).left_out == []


def cut(text: str) -> str:
    return text[: len(text) // 2]


def without(**changes: object) -> Callable[[str], str]:
    """Replace entries of an evaluation; None takes an entry out, and null its value."""

    def changed(text: str) -> str:
        entry = json.loads(text) | changes
        return json.dumps({key: None if v == "null" else v for key, v in entry.items() if v is not None})

    return changed


DAMAGE = {
    "cut off": (cut, "not valid JSON"),
    "no text": (lambda text: "\0\0", "not a readable evaluation"),
    "a column lost": (without(points={}), "lacks index, margin, predicted, stage, y"),
    "an entry lost": (without(stage_names=None), "lacks stage_names"),
    "of a later version": (without(schema="bivallate-evaluation-9"), "got 'bivallate-evaluation-9'"),
    "schema lost": (without(schema=None), "schema must be 'bivallate-evaluation-2', got None"),
    "of the first version": (without(schema="bivallate-evaluation-1", attack=None), "lacks attack"),
}
NAMED = ("best-linf-0.15-fgsm-seed0.json", "best-l1-0.15-fgsm-seed0.json", "mine.json")


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_evaluation_is_told_whatever_its_name(pair, capsys, kind, name):
    damage, said = DAMAGE[kind]
    own = only(pair[0])
    text = own.path.read_text()
    own.path.unlink()
    own.path.with_name(name).write_text(damage(text))
    with pytest.raises(UserError, match=re.escape(said)) as raised:
        collect([pair[0]])
    assert name in str(raised.value)
    kept_claim(own.path.parent, "best", THREAT, 359)
    assert name in capsys.readouterr().err


def test_what_a_file_system_leaves_beside_an_evaluation_is_no_evaluation(pair):
    own = only(pair[0])
    own.path.with_name(f"._{own.path.name}").write_bytes(b"\x00\x05\x16\x07")
    assert only(pair[0]).path == own.path


@pytest.mark.parametrize("name", [*NAMED, "last-validation-linf-0.15-fgsm-seed0-first7.json"])
@pytest.mark.parametrize("given", ["null", None, Identity(weights="", split="", first=7).to_json()])
def test_no_name_takes_the_place_of_an_identity(pair, capsys, given, name):
    own = only(pair[0])
    nameless = without(identity=given)(own.path.read_text())
    own.path.unlink()
    own.path.with_name(name).write_text(nameless)
    found = record(pair[0])
    assert found.evaluations == ()
    (note,) = found.left_out
    assert note.startswith(f"a: {name} is left out, it does not say which weights and split")
    assert note in render("md", [found], [])
    assert kept_claim(own.path.parent, "best", THREAT, 359) == (None, "")
    assert f"{name} is no claim: left out, it does not say which weights" in capsys.readouterr().err


IN_PYTHON = {
    "the run's weights and split": ("a", "best", lambda data: data.test, "test"),
    "another split": ("a", "last", lambda data: data.validation, "validation"),
    "a split of data divided otherwise": ("a", "best", lambda data: load("digits", seed=7).test, "test"),
    "the weights of another run": ("b", "best", lambda data: data.test, None),
    "a part of a split": ("a", "best", lambda data: data.test.subset([0, 1, 2]), None),
    "tensors": ("a", "best", lambda data: data.test.tensors(), None),
}


@pytest.mark.parametrize("kind", IN_PYTHON)
def test_a_score_made_in_python_counts_where_its_weights_and_its_split_are_the_runs(pair, kind):
    of, weights, split_of, name = IN_PYTHON[kind]
    own, made = only(pair[0]), pair[0] if of == "a" else pair[1]
    data = EvaluationTarget.of(pair[0]).data
    score = bv.evaluate(bv.load(made, weights=weights), split_of(data), THREAT, "fgsm", first=2)
    score.save(pair[0] / "evaluation" / "mine.json")
    found = record(pair[0])
    counted = [e.identity for e in found.evaluations if e.path != own.path]
    if name is None:
        assert counted == []
        assert "mine.json is left out, it does not" in found.left_out[0]
        return
    assert [(one.run, one.split, one.data_set) for one in counted] == [
        (own.identity.run, name, own.identity.data_set)
    ]
    assert found.left_out == []
    assert score.model_fingerprint == RunFingerprints.of(pair[0]).fingerprint_of(counted[0].weights)
    assert not any(e.stale for e in found.evaluations)


FOREIGN = {
    "another run's": (lambda own, other: other, "its weights are another run's"),
    "another run's, of weights that this one has not": (
        lambda own, other: replace(other, identity=replace(other.identity, weights="epoch-7")),
        "its weights are another run's",
    ),
    "other data": (
        lambda own, other: replace(own, identity=replace(own.identity, data_set="0" * 16)),
        "its points are of other data",
    ),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_does_not_fit_the_run_is_named_and_not_mixed(pair, capsys, kind):
    own, other = (only(place) for place in pair)
    change, reason = FOREIGN[kind]
    weaker = replace(
        change(own.score, other.score), broken_at=other.score.broken_at.clamp(min=1)
    )  # would lead
    weaker.save(pair[0] / "evaluation" / "copied.json")
    found = record(pair[0])
    assert [e.path for e in found.evaluations] == [own.path]
    (note,) = found.left_out
    assert note == f"a: copied.json is left out, it does not belong to this run: {reason}."
    assert note in render("md", [found], [])
    assert run(["compare", *map(str, pair), "--json"]) == 0
    compared = json.loads(capsys.readouterr().out)
    assert note in compared["notes"]
    assert {Path(row["evaluation"]).name for row in compared["rows"]} == {own.path.name, other.path.name}
    assert kept_claim(pair[0] / "evaluation", "best", THREAT, 359)[0] == own.score.robust_accuracy


def test_no_file_chooses_where_weights_are_read(pair, monkeypatch):
    own = only(pair[0]).score
    assert own.identity is not None
    away = replace(own, identity=replace(own.identity, weights="../b/best"))
    away.save(pair[0] / "evaluation" / "away.json")
    read = []
    monkeypatch.setattr(
        "bivallate.reports.stored_evaluations.read_weights", lambda path: read.append(path.name) or {}
    )
    record(pair[0])
    assert set(read) == {"best.safetensors"}


def test_audits_say_what_they_are_of_too(old):
    audits = old / "audit"
    entry = json.loads((audits / "best-linf-0.15-audit-seed0.json").read_text())
    manifest = json.loads((old / "model.json").read_text())
    own = Identity(manifest["run"], data_set=manifest["data_fingerprint"], split="validation")
    for name, identity in (
        ("x.json", own),
        ("other-data.json", replace(own, data="usps")),
        ("foreign.json", replace(own, run="f" * 16, weights="epoch-1")),
    ):
        (audits / name).write_text(json.dumps(entry | {"identity": identity.to_json()}))
    (audits / "notes.json").write_text("[]")
    found = [(a.path.name, a.split, a.stale) for a in record(old).audits]
    assert [f for f in found if "audit" not in f[0]] == [("x.json", "validation", False)]
    assert len(found) == 3
    nameless = json.dumps(entry | {"identity": None})
    (audits / "epoch-1-validation-linf-0.15-audit-seed0.json").write_text(nameless)
    assert len(record(old).audits) == 2, "the name is read where no version could say more"
    for bad in (cut(nameless), json.dumps(entry | {"n": "many", "identity": own.to_json()})):
        (audits / "x.json").write_text(bad)
        with pytest.raises(UserError, match=r"x\.json is not a readable audit"):
            record(old)


def test_an_identity_goes_through_the_file(pair, tmp_path):
    score = only(pair[0]).score
    score.save(tmp_path / "x.json")
    assert Score.load(tmp_path / "x.json").identity == score.identity
