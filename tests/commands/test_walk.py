"""Small mistakes on the command line: the answer is one line that says what would be right."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import bivallate as bv
from bivallate.cli import run
from bivallate.errors import check_device, unknown
from bivallate.from_text import override
from bivallate.run.config import Config

SHORT = ["--batch-size", "100", "--model", "linear", "--set", "validation.steps=1", "--epochs", "1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("walk") / "run"
    assert run(["train", "plain", "--out", str(out), "--lr", "0.05", *SHORT]) == 0
    return out


NAME_DATA = "must name a data set, a folder or a file"
NO_FOLDER = "--data-dir must be a folder: there is none at 'nowhere'"
REFUSED = {
    "a sheet of another ending": ("datasets digits --sheet x.bmp", r"as .png, .svg, .pdf, .*got 'x.bmp'"),
    "no name to list": ("datasets ''", NAME_DATA),
    "rows of a fraction": (
        "train at --dry-run --set data.validation=1.5",
        "data.validation must be a fraction below 1 or a whole number of rows, got 1.5",
    ),
    "no name to train on": ("train at --dry-run --data ''", NAME_DATA),
    "no name to check on": ("check-gradient at --data ''", NAME_DATA),
    "a data folder to list": ("datasets digits --data-dir nowhere", NO_FOLDER),
    "a data folder to train on": ("train at --dry-run --data-dir nowhere", NO_FOLDER),
    "a data folder to check on": ("check-gradient at --data-dir nowhere", NO_FOLDER),
    "a data folder of a run": ("attack RUN --save NEW --data-dir nowhere", NO_FOLDER),
    "more than there are to attack": (
        "attack RUN --save NEW --n 99999",
        r"n is 99999, but the data has \d+ po",
    ),
    "two choices of points": ("attack RUN --save NEW --n 3 --first 2", "give n .* or first .*, not both"),
    "more than there are to check": ("check-gradient at --n 99999", "--n is 99999, but digits has"),
    "directions without end": ("check-gradient at --directions 999999", "at most 1000, got 999999"),
    "weights that are not there": ("attack RUN --save NEW --weights ema", "it has the weights best, last$"),
    "a device": (
        "check-gradient at --device gpu",
        r"devices are cpu, cuda, cuda:N, mps; use --device auto or",
    ),
    "a coupling": (
        "train at --dry-run --set coupling=Detach",
        r"'Detach': did you mean 'Detached'\? Known: ",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_small_mistake_is_one_line_that_says_what_is_right(case, trained, tmp_path, capsys):
    typed, said = REFUSED[case]
    places = {"RUN": str(trained), "NEW": str(tmp_path / "new"), "''": ""}
    capsys.readouterr()
    assert run([places.get(word, word) for word in typed.split()]) == 2
    told = capsys.readouterr().err.strip()
    assert re.search(said, told), told
    assert len(told.splitlines()) == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "command",
    [
        "train at --epochs 2 --average SWA",
        "train --config config.toml --average SWA",
        "sweep at --seeds 1 --fix average=SWA",
    ],
)
def test_fields_of_an_average_go_with_its_name(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Config(bv.methods.at(bv.Linf(0.1)), epochs=2).write(tmp_path / "config.toml")
    key = "--fix" if command.startswith("sweep") else "--set"
    assert run([*command.split(), key, "average.start=0.5", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert 'kind = "SWA"\nstart = 0.5' in told or "--average=SWA --set=average.start=0.5" in told


def test_a_dry_run_says_what_training_would_refuse(capsys):
    dry = ["train", "at", "--dry-run", "--epochs", "2"]
    assert run([*dry, "--set", "keep=5"]) == 2
    assert "keep names epoch 5, but training ends with epoch 2" in capsys.readouterr().err
    assert run([*dry, "--patience", "1", "--set", "data.validation=0"]) == 2
    assert "nothing is held out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "words"),
    [("timm:resnet18", ("bivallate[timm]", "img_size")), ("shop.nets:make", ("your own", "num_classes"))],
)
def test_models_that_are_not_the_packages_are_told_how_to_use(name, words, capsys):
    assert run(["models", name]) == 0
    told = capsys.readouterr().out
    assert f"bivallate train METHOD --model {name}" in told
    assert all(word in told for word in words)


@pytest.mark.parametrize(("attack", "head"), [("clean", "attack"), ("pgd-1", "survives")])
def test_a_column_of_predictions_is_headed_by_what_it_says(attack, head, trained, tmp_path, capsys):
    bv.data.contact_sheet(bv.data.load("digits"), tmp_path / "x.png", columns=1)
    capsys.readouterr()
    assert run(["predict", str(trained), str(tmp_path / "x.png"), "--attack", attack]) == 0
    top = capsys.readouterr().out.splitlines()[1]
    assert head in top
    assert ("survives" in top) is (attack != "clean")


@pytest.mark.parametrize(
    ("path", "among", "not_among"),
    [
        ("coupling", {"Detached", "Implicit", "LastStep"}, {"PGD", "KLDRO", "Trades", "Adam"}),
        ("weighting", {"Equal", "KLDRO", "MAIL"}, {"PGD", "Detached", "Trades", "Adam"}),
        ("loss", {"Adversarial", "Trades", "Mart"}, {"PGD", "Detached", "KLDRO", "Adam"}),
        ("threat", {"Linf", "L2", "L1"}, {"PGD", "Detached"}),
        ("solver.direction", {"Steepest", "Raw"}, set()),  # a protocol
    ],
)
def test_an_unknown_part_is_answered_with_parts_of_its_role_alone(path, among, not_among):
    with pytest.raises(bv.UserError, match="Known: ") as raised:
        override(bv.methods.at(bv.Linf(0.1)), path, "Foo")
    names = set(str(raised.value).partition("Known: ")[2].split(", "))
    assert among <= names
    assert not names & not_among


def test_a_name_without_a_near_one_reads_as_a_sentence():
    assert str(unknown("norm", "zzzz", ["linf", "l2"])) == "unknown norm 'zzzz'. Known: l2, linf"


def test_devices_that_are_there_pass():
    assert check_device("cpu", "") == torch.device("cpu")
