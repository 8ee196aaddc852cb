"""Evaluations from the command line and from Python: several at once, saved or printed, with progress."""

from __future__ import annotations

import json
import shutil
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

import bivallate as bv
from bivallate.audits import audit_model
from bivallate.audits.result import AuditProgress
from bivallate.cli import run
from bivallate.evaluation import progress_display
from bivallate.evaluation.evaluation_progress import EvaluationProgress, Searched
from bivallate.evaluation.progress_display import shown_progress

QUICK = ["--batch-size", "400", "--model", "linear", "--set", "validation.steps=1", "--eps", "0.1"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("afternoon")
    for method in ("fast-at", "plain"):
        assert run(["train", method, "--out", str(root / method), "--epochs", "1", *QUICK]) == 0
    return root


@pytest.fixture(autouse=True)
def quiet(runs, capsys, monkeypatch):
    """At a pace that does not depend on the machine, a budget always buys the quick level."""
    monkeypatch.setattr(audit_model, "passes_a_second", lambda *given, shared: 1e5)
    capsys.readouterr()


COMMANDS = {
    "evaluate": (["--attack", "fgsm", "--n", "20"], "evaluation", "robust"),
    "audit": (["--n", "50", "--budget", "0.05"], "audit", "verdict"),
    "curve": (["--attack", "fgsm", "--n", "20", "--eps", "0,0.1"], "diagnosis", "0.1"),
    "distances": (["--n", "10", "--steps", "2", "--targets", "1"], "diagnosis", "fast-at"),
    "transfer": (["--from", "PLAIN", "--attack", "fgsm", "--n", "20"], "evaluation", "robust"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_result_is_printed_where_it_cannot_be_kept(command, runs, tmp_path, capsys):
    """A folder that is a file cannot be written to by anybody, root included."""
    import shutil

    more, place, printed = COMMANDS[command]
    more = [str(runs / "plain") if word == "PLAIN" else word for word in more]
    shutil.copytree(runs / "fast-at", tmp_path / "fast-at")
    shutil.rmtree(tmp_path / "fast-at" / place, ignore_errors=True)
    (tmp_path / "fast-at" / place).write_text("in the way")
    given = [command, str(tmp_path / "fast-at"), *more]
    assert run(given) == 2
    told = capsys.readouterr()
    assert printed in told.out
    assert "kept in" not in told.out
    assert "printed and not kept" in told.err
    (tmp_path / "file").write_text("")
    assert run([*given, "--out", str(tmp_path / "file" / "x.json")]) == 2
    told = capsys.readouterr()
    assert "cannot write --out" in told.err
    assert not told.out, "said before the work"
    assert run([*given, "--out", str(tmp_path / "there" / "x.json"), "--json"]) == 0
    json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "there" / "x.json").read_text())


def test_several_runs_and_attacks_in_one_start(runs, tmp_path, capsys):
    names = [str(runs / "fast-at"), str(runs / "plain")]
    given = ["evaluate", "--attack", "fgsm", "clean", *names, "--n", "90", "--quiet", "--out", str(tmp_path)]
    assert run(given) == 0
    told = capsys.readouterr()
    for name in names:
        for attack in ("fgsm", "clean"):
            assert told.out.count(f"{name} {attack}: clean ") == 1
    assert len(list(tmp_path.glob("*.json"))) == 4
    assert not told.err
    assert run([*given, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(entry["run"], entry["attack"]) for entry in found] == [
        (name, attack) for name in names for attack in ("fgsm", "clean")
    ]
    assert run(["evaluate", "--attack", "fgsm"]) == 2
    assert "name the folder of a run" in capsys.readouterr().err


def test_python_evaluates_and_audits_runs_as_the_commands_do(runs, capsys):
    place = runs / "fast-at"
    score = bv.evaluate(place, attack="pgd-3", n=20, weights="last")
    assert (
        run(["evaluate", str(place), "--attack", "pgd-3", "--n", "20", "--weights", "model", "--json"]) == 0
    )
    same = json.loads(capsys.readouterr().out)
    assert same["robust_accuracy"] == score.robust_accuracy
    kept = list((place / "evaluation").glob("last-*pgd-3-*n20.json"))
    assert len(kept) == 1, "one name for the last weights, and one file"
    found = bv.audit(place, n=50, minutes=0.05)
    assert found.claimed is not None
    assert bv.audit(place, n=50, minutes=0.05, store=False).checks == found.checks
    assert len(list((place / "audit").glob("*.json"))) == 1


@pytest.mark.parametrize("look", [bv.evaluate, bv.audit])
def test_a_model_without_data_gets_a_line(look, runs):
    model = bv.load(runs / "plain")
    with pytest.raises(bv.UserError, match="say what to"):
        look(model)
    with pytest.raises(bv.UserError, match="no run in"):
        look("nowhere")


def test_progress_can_be_asked_for(runs, capsys, monkeypatch):
    monkeypatch.setattr(progress_display, "SHORT", 0.0)
    bv.evaluate(runs / "plain", attack="pgd-2-2", n=20, progress=True, store=False, batch_size=10)
    assert "left" in capsys.readouterr().err


MOMENTS = {
    "evaluation": lambda f: EvaluationProgress(
        "pgd-20", "pgd", f, 0.5, 10, 5, 100 * f, 100 * (1 - f) if f else None
    ),
    "audit": lambda f: AuditProgress("pgd", f, 1000, 100 * f),
    "search": lambda f: Searched("distances", 100, int(100 * f), 100 * f),
}


@pytest.mark.parametrize("kind", MOMENTS)
def test_redirected_progress_is_an_estimate_and_a_line_every_half_minute(kind, monkeypatch):
    stream, clock = StringIO(), [0.0]
    monkeypatch.setattr(progress_display.time, "monotonic", lambda: clock[0])
    with shown_progress(label="run x", console=Console(file=stream, width=200)) as show:
        for second in range(100):
            clock[0] = float(second)
            show(MOMENTS[kind](second / 100))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 4, "at once, and after 30, 60 and 90 seconds"
    assert all(line.startswith("run x: ") and line.endswith("left") for line in lines)
    assert "about 69 s left" in lines[1]
    with shown_progress(silent=True, console=Console(file=stream, width=200)) as show:
        show(MOMENTS[kind](0.5))
    assert len(stream.getvalue().splitlines()) == 4


def test_a_checkpoint_of_another_project_is_evaluated(runs, tmp_path, capsys):
    from safetensors.torch import save_file

    model = bv.load(runs / "plain", "last")
    (tmp_path / "there").mkdir()
    save_file(model.network.state_dict(), tmp_path / "there" / "net.safetensors")
    given = ["--arch", "linear", "--data", "digits", "--eps", "0.1", "--attack", "clean", "--json"]
    for place in (tmp_path / "there", tmp_path / "there" / "net.safetensors"):
        assert run(["evaluate", str(place), *given]) == 0
        assert json.loads(capsys.readouterr().out)["n"] == 359
        assert len(list((tmp_path / "there").iterdir())) == 1, "kept only where --out says"
    assert run(["evaluate", str(tmp_path / "there"), *given, "--out", str(tmp_path / "x.json")]) == 0
    as_it_is = capsys.readouterr()
    assert "holds no normalisation" in as_it_is.err
    assert run(["evaluate", str(tmp_path / "there"), *given, "--normalise"]) == 0
    standardised = capsys.readouterr()
    assert "holds no normalisation" not in standardised.err
    truth = bv.evaluate(model, bv.data.load("digits").test, bv.Linf(0.1), "clean").clean_accuracy
    found = [json.loads(said.out)["clean_accuracy"] for said in (as_it_is, standardised)]
    assert found[1] == truth != found[0]
    held = {"mu": torch.tensor([0.9]), "sigma": torch.tensor([0.1])}
    save_file(model.network.state_dict() | held, tmp_path / "there" / "net.safetensors")
    scores = []
    for more in ([], ["--normalise"]):
        assert run(["evaluate", str(tmp_path / "there"), *given, *more]) == 0
        said = capsys.readouterr()
        assert ("mean=[0.9] and std=[0.1], which is taken" in said.err) is bool(more)
        scores.append(json.loads(said.out)["clean_accuracy"])
    assert scores[0] == scores[1]
    assert json.loads((tmp_path / "x.json").read_text())["attack"] == "clean"
    assert run(["evaluate", str(tmp_path / "there"), "--arch", "linear"]) == 2
    assert "say --data and --eps" in capsys.readouterr().err
    assert run(["evaluate", str(tmp_path), *given]) == 2
    capsys.readouterr()
    assert run(["evaluate", str(runs / "plain"), "--normalise"]) == 2
    assert "leave out --normalise" in capsys.readouterr().err
    assert run(["evaluate", str(runs / "plain"), *given, "--normalise"]) == 0
    assert "says itself how its images are normalised" in capsys.readouterr().err


def test_results_before_one_that_fails_are_printed_as_json_too(runs, tmp_path, capsys):
    broken = tmp_path / "broken"
    shutil.copytree(runs / "plain", broken)
    (broken / "best.safetensors").unlink()
    asked = ["evaluate", str(runs / "plain"), str(broken), "--attack", "clean", "--json", "--quiet"]
    assert run(asked) == 2
    said = capsys.readouterr()
    (result,) = json.loads(said.out)
    assert (result["run"], result["n"]) == (str(runs / "plain"), 359)
    assert "best" in said.err


def test_a_run_of_a_method_that_is_not_installed_is_evaluated(runs, tmp_path):
    import shutil

    shutil.copytree(runs / "plain", tmp_path / "plain")
    place = tmp_path / "plain" / "config.toml"
    text = place.read_text()
    assert 'kind = "Equal"' in text
    place.write_text(text.replace('kind = "Equal"', 'kind = "Mine"'))
    found = bv.evaluate(tmp_path / "plain", attack="clean", n=20)
    assert found.clean_accuracy == bv.evaluate(runs / "plain", attack="clean", n=20).clean_accuracy
    place.write_text(text.replace('name = "digits"', 'nam = "digits"'))
    with pytest.raises(bv.UserError, match="nam"):
        bv.evaluate(tmp_path / "plain", attack="clean", n=20)


SPELLINGS = {"fgsm": "FGSM", "pgd-3": "PGD-3-1", "cw": "cw-30", "apgd-ce": "apgd-ce-100"}


@pytest.mark.parametrize("name", SPELLINGS)
def test_an_attack_has_one_result_however_it_is_spelt(name, runs, tmp_path, capsys):
    import shutil

    shutil.copytree(runs / "plain", tmp_path / "own")
    shutil.rmtree(tmp_path / "own" / "evaluation", ignore_errors=True)
    few = ["--n", "2", "--json", "--quiet"]
    assert run(["evaluate", str(tmp_path / "own"), "--attack", SPELLINGS[name], name, *few]) == 0
    assert json.loads(capsys.readouterr().out)["attack"] == name, "one result, not a list of two"
    bv.evaluate(tmp_path / "own", attack=SPELLINGS[name], n=2)
    kept = [path.name for path in (tmp_path / "own" / "evaluation").iterdir()]
    assert kept == [f"best-linf-0.1-{name}-seed0-n2.json"]


@pytest.mark.parametrize("several", [False, True], ids=["one result", "several"])
@pytest.mark.parametrize("kind", ["own run", "own run --out", "checkpoint --out"])
def test_a_result_that_cannot_be_saved_is_printed_and_the_command_fails(
    kind, several, runs, tmp_path, capsys, monkeypatch
):
    from safetensors.torch import save_file

    from bivallate.evaluation import Score

    def full(score: Score, file: Path) -> None:
        raise bv.UserError(f"cannot write {file}: No space left on device")

    (tmp_path / "there").mkdir()
    save_file(bv.load(runs / "plain", "last").network.state_dict(), tmp_path / "there" / "net.safetensors")
    given = ["evaluate", str(runs / "plain"), "--attack", "clean", *(["fgsm"] if several else []), "--n", "5"]
    if kind.startswith("checkpoint"):
        given[1:2] = [str(tmp_path / "there"), "--arch", "linear", "--data", "digits", "--eps", "0.1"]
    given += ["--out", str(tmp_path / "out")] if kind.endswith("--out") else []
    monkeypatch.setattr(Score, "save", full)
    assert run([*given, "--quiet"]) == 2
    told = capsys.readouterr()
    assert "No space left on device" in told.err
    assert "clean" in told.out
    assert "kept in" not in told.out
