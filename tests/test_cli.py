"""The command line: what works, and for every mistake of a user one clear message and status 2."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import bivallate as bv
from bivallate.cli import _whole, run
from bivallate.from_text import whole_number
from bivallate.run.config import Config

QUICK = ["--epochs", "1", "--batch-size", "400", "--model", "linear", "--set", "validation.steps=1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "run"
    assert run(["train", "at", "--out", str(out), "--set", "steps=2", *QUICK]) == 0
    return out


@pytest.fixture
def copied(trained, tmp_path) -> Path:
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def test_train_writes_a_complete_run_folder(trained):
    names = {p.name for p in trained.iterdir()}
    assert names >= {
        "config.toml",
        "metrics.jsonl",
        "model.safetensors",
        "model.json",
        "best.safetensors",
        "checkpoints",
    }
    line = json.loads((trained / "metrics.jsonl").read_text())
    assert line["forward"] == 3
    assert line["backward"] == 3
    assert 0 <= line["robust"] <= line["clean"] <= 1


def test_a_configuration_file_repeats_the_run(trained, tmp_path):
    assert run(["train", "--config", str(trained / "config.toml"), "--out", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        trained / "model.safetensors"
    ).read_bytes()


def test_evaluate_prints_a_table_and_json(trained, capsys):
    assert run(["evaluate", str(trained), "--attack", "pgd-3-2", "--n", "50"]) == 0
    assert "robust" in capsys.readouterr().out
    assert (
        run(["evaluate", str(trained), "--attack", "pgd-3-2", "--n", "50", "--json", "--weights", "last"])
        == 0
    )
    result = json.loads(capsys.readouterr().out)
    wanted = "schema attack threat n clean_accuracy robust_accuracy interval_95 per_class tail_30 stages"
    assert set(wanted.split()) <= set(result)
    assert result["n"] == 50
    assert run(["evaluate", str(trained), "--attack", "pgd-3-2", "--n", "60"]) == 0
    assert len(list((trained / "evaluation").glob("*.json"))) == 3, "none overwrites another"


@pytest.mark.parametrize("command", ["methods", "models", "datasets", "attacks"])
def test_lists(command, capsys):
    assert run([command, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) >= 8
    assert run([command]) == 0
    assert capsys.readouterr().out


def test_a_method_card(capsys):
    assert run(["methods", "fast-bat"]) == 0
    card = capsys.readouterr().out
    assert "LastStep" in card
    assert "eq. 12-13" in card
    for name in bv.methods.entries.registry():
        assert run(["methods", name, "--json"]) == 0, "also a default that JSON has no number for"
        json.loads(capsys.readouterr().out)


def test_resume_of_a_run_with_the_users_own_network(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(
        "import torch\ndef net(): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    options = [
        "--epochs",
        "1",
        "--batch-size",
        "400",
        "--set",
        "validation.steps=1",
        "--out",
        str(tmp_path / "run"),
    ]
    assert run(["train", "plain", "--model", "mine:net", *options]) == 0
    assert run(["resume", str(tmp_path / "run")]) == 2
    assert "--model package.module:factory" in capsys.readouterr().err
    assert run(["resume", str(tmp_path / "run"), "--model", "mine:net"]) == 0
    assert (
        run(["evaluate", str(tmp_path / "run"), "--attack", "fgsm", "--n", "20", "--model", "mine:net"]) == 0
    )


def test_no_code_is_imported_because_a_configuration_names_it(trained, tmp_path, monkeypatch, capsys):
    (tmp_path / "trap.py").write_text(
        "import torch\nfrom pathlib import Path\nPath(__file__).with_name('sprung').touch()\n"
        "def net(): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "config.toml"
    text = (trained / "config.toml").read_text()
    file.write_text(text.replace('name = "linear"', 'name = "trap:net"'))
    assert file.read_text() != text
    given = ["train", "--config", str(file), "--epochs", "1", "--out"]
    assert run([*given, str(tmp_path / "run")]) == 2
    assert "--model trap:net" in capsys.readouterr().err
    assert not (tmp_path / "sprung").exists()
    assert not (tmp_path / "run").exists()
    assert run([*given, str(tmp_path / "run"), "--model", "trap:net"]) == 0
    assert run([*given, str(tmp_path / "again"), "--set", "model.name=trap:net"]) == 0
    assert (tmp_path / "sprung").exists()


def test_resume_on_another_machine(tmp_path, capsys):
    out = tmp_path / "run"
    assert run(["train", "plain", "--out", str(out), *QUICK]) == 0
    text = (out / "config.toml").read_text().replace('device = "auto"', 'device = "cuda"')
    (out / "config.toml").write_text(text)
    if not torch.cuda.is_available():
        assert run(["resume", str(out)]) == 2
        assert "--device auto or cpu" in capsys.readouterr().err
    assert run(["resume", str(out), "--device", "cpu", "--threads", "1", "--data-dir", str(tmp_path)]) == 0
    assert (out / "config.toml").read_text() == text


MISTAKES = {
    "unknown command": (["trian", "at"], "Did you mean"),
    "unknown option": (["train", "at", "--epoch", "3"], "--epochs"),
    "no method": (["train"], "name a method"),
    "unknown method": (["train", "fast-bta"], "did you mean 'fast-bat'"),
    "unknown model": (["train", "at", "--model", "tiny-cn"], "did you mean 'tiny-cnn'"),
    "unknown data set": (["train", "at", "--data", "digts"], "did you mean 'digits'"),
    "unknown recipe": (["train", "at", "--recipe", "fst"], "did you mean 'fast'"),
    "unknown norm": (["train", "at", "--norm", "l3"], "unknown norm"),
    "another norm's radius": (
        ["train", "at", "--norm", "l2"],
        "--norm l2 needs a radius, --eps, such as 0.5",
    ),
    "and by its other name": (["train", "at", "--norm", "L_2"], "needs a radius, --eps"),
    "epochs of a fraction": (["train", "at", "--epochs", "2.9"], "2.9"),
    "a batch of a fraction": (["train", "at", "--batch-size", "99.9"], "99.9"),
    "a seed of a fraction": (["train", "at", "--seed", "0.5"], "0.5"),
    "points of a fraction": (["evaluate", "RUN", "--n", "10.5"], "10.5"),
    "first of a fraction": (["evaluate", "RUN", "--first", "1e-3"], "1e-3"),
    "threads of a fraction": (["resume", "RUN", "--threads", "1.5"], "1.5"),
    "epochs that are no number": (["train", "at", "--epochs", "inf"], "inf"),
    "unknown key": (["train", "at", "--set", "solvr.steps=3"], "did you mean 'solver'"),
    "unknown field": (["train", "at", "--set", "solver.step=3"], "did you mean 'steps'"),
    "unknown average": (["train", "at", "--set", "average=cyclc"], "'Cyclic'? Known: Cyclic, EMA, SWA"),
    "unknown step rule": (
        ["train", "at", "--set", "solver.direction=x"],
        "Known: Adam, Proportional, Raw, Steepest",
    ),
    "unknown part": (["train", "at", "--set", "coupling=Detachd"], "did you mean 'Detached'"),
    "no value": (["train", "at", "--set", "solver.steps"], "KEY=VALUE"),
    "text for a number": (["train", "at", "--set", "solver.steps=many"], "must be a whole number"),
    "half a step": (["train", "at", "--set", "steps=1.5"], "whole number"),
    "negative steps": (["train", "at", "--set", "steps=-3"], "at least 0"),
    "zero epochs": (["train", "at", "--epochs", "0"], "epochs"),
    "negative rate": (["train", "at", "--lr", "-1"], "learning rate"),
    "eps negative": (["train", "at", "--eps", "-1"], "at least 0"),
    "eps not a number": (["train", "at", "--eps", "nan"], "finite"),
    "eps over zero": (["train", "at", "--eps", "8/0"], "such as 0.03 or 8/255"),
    "eps in grey levels": (["train", "at", "--eps", "8"], "write 8/255"),
    "eps without its step sizes": (["train", "at", "--set", "threat.eps=0.4"], "use --eps 0.4"),
    "batch larger than data": (["train", "at", "--batch-size", "99999"], "batch size"),
    "no device": (["train", "at", "--device", "tpu9"], "device"),
    "no run": (["evaluate", "nowhere"], "no run in nowhere"),
    "resume nothing": (["resume", "nowhere"], "no run in nowhere"),
    "bad factory": (["train", "at", "--model", "no.such.module:net"], "no.such.module"),
    "no configuration": (["train", "--config", "nowhere.toml"], "cannot read"),
    "temperature": (["train", "done-adam", "--set", "weighting.temperature=-1"], "temperature"),
    "misspelt choice": (["train", "fast-bat", "--set", "linearisation=ns-pdg"], "did you mean 'ns-pgd'"),
    "misspelt coupling": (["train", "done-adam", "--set", "coupling=barier"], "did you mean 'barrier'"),
    "a part of another kind": (
        ["train", "at", "--set", "weighting=Barrier"],
        "cannot serve as the weighting",
    ),
    "an optimiser that is none": (
        ["train", "at", "--set", "optimizer=KLDRO"],
        "cannot serve as the optimizer",
    ),
    "a part without its values": (["train", "at", "--set", "weighting=Linf"], "eps"),
    "negative seed": (["train", "at", "--seed", "-3"], "seed"),
    "step of nothing": (["train", "fast-bat", "--set", "step_size=0"], "positive"),
    "nothing to validate": (["train", "at", "--set", "validation.rows=0"], "at least 1"),
    "endless steps": (["train", "at", "--set", "solver.steps=inf"], "whole number"),
    "too many threads": (["train", "at", "--threads", "100000"], "threads"),
    "no time between checkpoints": (["train", "at", "--set", "checkpoint_minutes=-1"], "positive"),
    "barrier in L2": (["train", "done-adam", "--norm", "l2", "--eps", "0.5"], "Linf"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_is_one_message_and_status_2(what, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments, message = MISTAKES[what]
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert not (tmp_path / "runs").exists(), "nothing is left behind"


def test_mistakes_with_a_run(copied, tmp_path, capsys):
    def fails(arguments: list[str], message: str) -> None:
        assert run(arguments) == 2
        assert message in capsys.readouterr().err

    path = str(copied)
    fails(["evaluate", path, "--attack", "pdg-20"], "did you mean")
    fails(["evaluate", path, "--attack", "pgd-0"], "pgd-0")
    fails(["evaluate", path, "--weights", "bst"], "did you mean 'best'")
    fails(["evaluate", path, "--weights", "ema"], "ema")
    fails(["evaluate", path, "--eps", "8"], "write 8/255")
    for command in (["evaluate", path], ["audit", path], ["curve", path]):
        fails([*command, "--norm", "l2"], "--norm l2 needs a radius of its own, --eps, such as 0.5 (128/255)")
    fails(["evaluate", path, "--n", "0"], "n")
    fails(["evaluate", path, "--seed", "-1"], "seed")
    fails(["train", "--config", f"{path}/config.toml", "--eps", "0.1", "--out", f"{path}-2"], "--set")
    fails(["evaluate", path, "--n", "1000000"], "1000000")
    fails(["train", "at", "--out", path], "--overwrite")
    (copied / "config.toml").write_text("epochs = [broken")
    fails(["train", "--config", f"{path}/config.toml", "--out", f"{path}-2"], "not valid TOML")
    assert run(["resume", path]) == 0
    assert "was damaged: written again from the checkpoint" in capsys.readouterr().err
    (copied / "config.toml").write_text("epoch = 3\n")
    fails(["resume", path], "did you mean 'epochs'")


def test_no_place_for_the_result_is_one_message(copied, capsys):
    shutil.rmtree(copied / "evaluation", ignore_errors=True)
    (copied / "evaluation").write_text("a file where the folder should be")
    assert run(["evaluate", str(copied), "--attack", "fgsm", "--n", "20"]) == 2
    assert "cannot" in capsys.readouterr().err


def test_the_weights_of_a_kept_epoch_can_be_evaluated_and_compared(tmp_path, capsys):
    out = tmp_path / "run"
    assert run(["train", "plain", "--out", str(out), *QUICK, "--set", "keep=1"]) == 0
    assert run(["evaluate", str(out), "--attack", "fgsm", "--n", "20", "--weights", "epoch-1"]) == 0
    capsys.readouterr()
    assert run(["compare", str(out), "--weights", "epoch-1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["n"] == 20
    assert run(["evaluate", str(out), "--weights", "epoch-0"]) == 2
    assert "unknown weights 'epoch-0'" in capsys.readouterr().err
    (out / "epoch-notes.safetensors").write_text("mine")
    assert run(["train", "plain", "--out", str(out), *QUICK, "--overwrite"]) == 0
    assert [p.name for p in out.glob("epoch-*")] == ["epoch-notes.safetensors"]


def test_overwrite_leaves_nothing_of_the_replaced_run(tmp_path, capsys):
    out = tmp_path / "run"
    given = ["train", "at", "--out", str(out), "--set", "steps=1", *QUICK]
    assert run(given) == 0
    fresh = {p.relative_to(out) for p in out.rglob("*")}
    assert run(["evaluate", str(out), "--attack", "fgsm", "--n", "20", "--json"]) == 0
    assert run(["diagnose", str(out), "--what", "curves", "--n", "20"]) == 0
    assert (out / "diagnosis" / "curves.svg").exists()
    (out / "report-figures").mkdir()
    for name in "report.html", "report.md", "report.tex", "report-figures/curves.svg":
        (out / name).write_text("old")
    (out / "notes.txt").write_text("mine")
    assert run([*given, "--overwrite"]) == 0
    assert {p.relative_to(out) for p in out.rglob("*")} == fresh | {Path("notes.txt")}


def test_overwrite_spares_folders_that_are_no_runs(tmp_path, capsys):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    assert run(["train", "at", "--out", str(tmp_path / "thesis"), "--overwrite", *QUICK]) == 2
    assert "not a run folder" in capsys.readouterr().err
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years of work"


WEIGHTS = {
    "truncated": lambda p: p.write_bytes(p.read_bytes()[:-9]),
    "empty": lambda p: p.write_bytes(b""),
    "pickle": lambda p: torch.save({"w": torch.zeros(1)}, p),
    "another architecture": lambda p: save_file({"w": torch.zeros(1)}, p),
}


@pytest.mark.parametrize("what", WEIGHTS)
def test_bad_weights_are_never_loaded(what, copied, capsys):
    WEIGHTS[what](copied / "best.safetensors")
    assert run(["evaluate", str(copied), "--attack", "clean"]) == 2
    captured = capsys.readouterr()
    assert "best.safetensors" in captured.err
    assert "Traceback" not in captured.err


def images(shape=(20, 1, 8, 8), low=0.0, high=1.0) -> torch.Tensor:
    return low + (high - low) * torch.rand(shape)


BAD_DATA = {
    "above one": (images(high=2.0), torch.arange(20) % 4, "[0, 1]"),
    "below zero": (images(low=-1.0), torch.arange(20) % 4, "[0, 1]"),
    "not finite": (images() * float("nan"), torch.arange(20) % 4, "finite"),
    "wrong shape": (images((20, 64)), torch.arange(20) % 4, "(N, C, H, W)"),
    "integers": (torch.ones(20, 1, 8, 8, dtype=torch.int32), torch.arange(20) % 4, "uint8"),
    "empty": (images((0, 1, 8, 8)), torch.zeros(0, dtype=torch.long), "no rows"),
    "fewer labels": (images(), torch.arange(19) % 4, "one per image"),
    "float labels": (images(), torch.arange(20).float(), "integers"),
    "negative labels": (images(), torch.arange(20) - 5, "label"),
    "a class missing": (images(), torch.where(torch.arange(20) % 4 == 2, 0, torch.arange(20) % 4), "class"),
}


@pytest.mark.parametrize("what", BAD_DATA)
def test_bad_tensors_are_refused_before_training(what):
    x, y, message = BAD_DATA[what]
    with pytest.raises(bv.UserError) as caught:
        bv.train("linear", (x, y), bv.methods.at(bv.Linf(0.1)), epochs=1, batch_size=4)
    assert message in str(caught.value)


def test_labels_outside_the_classes_in_an_evaluation():
    model = bv.models.create("linear", num_classes=3, shape=(1, 8, 8))
    with pytest.raises(bv.UserError, match="label"):
        bv.evaluate(model, (images(), torch.arange(20)), bv.Linf(0.1), "fgsm")


def test_a_class_missing_in_an_evaluation_is_a_warning_and_null():
    model = bv.models.create("linear", num_classes=5, shape=(1, 8, 8))
    score = bv.evaluate(model, (images(), torch.arange(20) % 4), bv.Linf(0.1), "fgsm")
    assert score.per_class[4] is None
    assert score.warnings


def test_divergence_stops_with_the_epoch_the_batch_and_the_cause(tmp_path, capsys):
    options = [
        "--lr",
        "1e30",
        "--epochs",
        "3",
        "--batch-size",
        "200",
        "--model",
        "fc1",
        "--out",
        str(tmp_path / "run"),
    ]
    assert run(["train", "plain", *options]) == 2
    message = capsys.readouterr().err
    assert "at epoch 1, minibatch" in message
    assert "learning rate" in message
    assert list((tmp_path / "run" / "checkpoints").glob("*.safetensors"))


def test_numpy_arrays_train_too():
    x, y = np.random.default_rng(0).random((40, 1, 8, 8), dtype=np.float32), np.arange(40) % 4
    run_ = bv.train("linear", (x, y), bv.methods.plain(bv.Linf(0.1)), epochs=1, batch_size=8)
    assert len(run_.history) == 1


WHOLE = {
    **dict.fromkeys(["30", "30.0", "0030", "3e1", "0x1e", "+30", "60/2", " 30 ", "3_0", "+0x1E", "0o36"], 30),
    "-0b1": -1,
    "9007199254740993": 9007199254740993,
    **dict.fromkeys(["2.9", "12e", "1e-1", "1e400", "inf", "nan", "0x", "1/0", "many", "", "0x1e.0"]),
}


@pytest.mark.parametrize("text", WHOLE)
def test_a_whole_number_is_read_alike_as_an_option_and_by_set(text, capsys):
    plan = Config(bv.methods.at(bv.Linf(0.1)))
    if WHOLE[text] is not None:
        assert _whole(text) == whole_number(text, "epochs") == WHOLE[text]
        assert WHOLE[text] < 1 or plan.set("epochs", text).epochs == WHOLE[text]
        return
    with pytest.raises(bv.UserError, match=re.escape(f"epochs must be a whole number, got {text!r}")):
        plan.set("epochs", text)
    assert run(["train", "at", "--epochs", text]) == 2
    assert f"--epochs must be a whole number, got {text!r}" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["methods", "models", "datasets", "recipes", "attacks"])
def test_lists_are_a_name_and_a_line_of_eighty_columns(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert run([command, "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert run([command]) == 0
    told = capsys.readouterr()
    lines = told.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(entries) < len(lines) <= len(entries) + 3
    assert lines[-1].endswith(f"bivallate {command} NAME")
    name = lines[0].split()[0].split("[")[0].removesuffix("-N")
    assert run([command, name]) == 0
    assert name in capsys.readouterr().out


MISSPELT = [
    ("stepz=7", "steps"),
    ("optimiser.lr=1", "optimizer"),
    ("epohcs=3", "epochs"),
    ("solvr.steps=3", "solver"),
]


@pytest.mark.parametrize(("setting", "meant"), MISSPELT)
def test_a_misspelt_key_is_matched_against_the_methods_own_too(setting, meant, capsys):
    assert run(["train", "at", "--set", setting]) == 2
    assert f"did you mean '{meant}'" in capsys.readouterr().err


def test_check_gradient_has_the_options_of_its_siblings(capsys):
    given = ["check-gradient", "at", "--model", "linear", "--n", "2", "--directions", "1", "--device", "cpu"]
    assert run([*given, "--norm", "l2", "--eps", "0.5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["method"] == "at"
