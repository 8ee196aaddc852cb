"""The names in messages: each known name once, classes by their names."""

from __future__ import annotations

import re

import pytest
import torch

import bivallate as bv
from bivallate.cli import run
from bivallate.commands.settings import own_parameters
from bivallate.data import sources
from bivallate.data.columns import _no_column
from bivallate.data.label_table import LabelTable
from bivallate.errors import UserError, unknown
from bivallate.evaluation.preflight import preflight
from bivallate.from_text import override
from bivallate.methods.entries import create
from bivallate.models.foreign_state import unwrapped
from bivallate.quoting import coded
from bivallate.run.recipes.published import recipe_for
from bivallate.style import figure, whole_ticks

PLAN = recipe_for(None, create("plain", bv.Linf(0.1)), "digits")


def _raised(error: UserError) -> None:
    raise error


LISTS = {
    "nothing is known": lambda at: _raised(unknown("thing", "x", [])),
    "a name is known twice": lambda at: _raised(unknown("thing", "x", ["b", "a", "b"])),
    "a method without parameters": lambda at: create("plain", bv.Linf(0.1), steps=1),
    "a network without options": lambda at: bv.models.create("linear", num_classes=2, shape=(1, 2, 2), a=1),
    "a part without fields": lambda at: override(PLAN, "method.coupling.x", "1"),
    "a parameter that is a part's name too": lambda at: own_parameters("bilaw", [("zzz", "1")]),
    "a set whose folder has another spelling": lambda at: sources.local_path("zzz", at),
    "a file without weights": lambda at: bv.models.load(at),
    "an empty checkpoint": lambda at: unwrapped({}, at, "model"),
    "a table without columns": lambda at: LabelTable(at, [], []).column("x", "label"),
    "Parquet without columns": lambda at: _raised(_no_column("label", "no label column", at, [])),
}


@pytest.mark.parametrize("case", LISTS)
def test_a_list_of_names_is_never_empty_and_names_nothing_twice(case, tmp_path):
    (tmp_path / "fashion_mnist").mkdir()
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(UserError) as raised:
        LISTS[case](tmp_path)
    text = str(raised.value)
    assert not re.search(r"(Known:|has|are|tried)\s*([;:,.]|$)", text), text
    listed = re.search(r"(?:Known:|columns are|it has) (.*?)(?:;|$)", text)
    if listed:
        names = [name.lower().translate(str.maketrans("", "", "-_ ")) for name in listed[1].split(", ")]
        assert all(names), text
        assert len(names) == len(set(names)), text


@pytest.fixture
def animals():
    model = bv.models.create("linear", num_classes=3, shape=(1, 2, 2)).eval()
    model.classes = ["cat", "d\x1bog", "owl"]
    return model


def _scored(model, y):
    x = torch.linspace(0.1, 0.9, 8 * 4).view(8, 1, 2, 2)
    return " ".join(bv.evaluate(model, (x, y), bv.Linf(0.01), "clean").warnings)


def _looked(model, y):
    x = torch.linspace(0.1, 0.9, 8 * 4).view(8, 1, 2, 2)
    return str(preflight(model, (x, y)))


@pytest.mark.parametrize("ask", [_scored, _looked])
def test_classes_are_told_by_name_where_a_model_has_names_and_else_by_number(ask, animals):
    y = torch.full((8,), 1)
    told = ask(animals, y)
    assert ("cat, owl" in told) if ask is _scored else ("every label is d\\x1bog" in told), told
    animals.classes = None
    told = ask(animals, y)
    assert ("class 0, 2" in told) if ask is _scored else ("every label is 1" in told), told


def test_options_without_a_default_print_none_and_check_gradient_has_the_shared_ones(capsys):
    for name in ("train", "resume", "check-gradient"):
        assert run([name, "--help"]) == 0
        assert '[default: ""]' not in (told := capsys.readouterr().out)
    assert "without a run" in told


def test_a_single_epoch_has_a_whole_tick_and_commands_in_notes_are_code():
    _, ax = figure(1)
    ax.plot([2], [0.5], "o")
    whole_ticks(ax)
    assert all(float(tick).is_integer() for tick in ax.get_xticks())
    assert coded("`a` <b>") == "<code>a</code> &lt;b&gt;"
    assert bv.Logger.__name__ == "Logger"


def _train(**given: object) -> object:
    return bv.train("linear", "digits", "plain", **{"epochs": 1, **given})  # pyright: ignore


def _network(**given: object) -> object:
    return bv.models.create(**{"name": "linear", "num_classes": 3, "shape": (1, 2, 2), **given})  # pyright: ignore


def _method(**given: object) -> object:
    return bv.methods.at(bv.Linf(0.1), **given)  # pyright: ignore


SLIPS = {
    "a seed that is text": (_train, {"seed": "3"}, "seed must be a whole number, got '3'"),
    "epochs that are none": (_train, {"epochs": "three"}, "epochs"),
    "epochs that are text": (_train, {"epochs": "3"}, "epochs must be a whole number .* got '3'"),
    "a rate that is text": (_train, {"lr": "0.1"}, "lr must be a number, got '0.1'"),
    "a switch that is text": (_train, {"overwrite": "false"}, "overwrite must be true or false, got 'false'"),
    "a batch that is text": (_train, {"batch_size": "8"}, "batch_size must be a whole number"),
    "steps that are text": (_method, {"steps": "3"}, "steps must be a whole number, got '3'"),
    "a step's length that is text": (_method, {"step_size": "3"}, "step_size must be a number, got '3'"),
    "a side that is text": (bv.data.load, {"data": "digits", "size": "8"}, "size must be a whole .* got '8'"),
    "a seed of pictures": (bv.diagnose, {"seed": "3"}, "seed must be a whole number .* got '3'"),
    "minutes that are text": (_train, {"max_minutes": "3"}, "max_minutes must be a number, got '3'"),
    "a number for a folder": (_train, {"out": 3}, "out must be a path, got 3"),
    "a number for a run": (bv.load, {"path": 3}, "must be a path, got 3"),
    "a number for a run to resume": (bv.resume, {"path": 3}, "run's folder must be a path, got 3"),
    "a seed of data": (bv.data.load, {"data": "digits", "seed": "a"}, "seed must be .* got 'a'"),
    "a share": (bv.data.load, {"data": "digits", "validation": "a"}, "validation must be a number, got 'a'"),
    "one side for a shape": (_network, {"shape": 8}, r"needs shape=\(channels, height, width\), got 8"),
    "classes that are text": (_network, {"num_classes": "3"}, "at least 2 classes, got num_classes='3'"),
    "a seed of weights": (_network, {"seed": "a"}, "seed must be .* got 'a'"),
    "a number for a name": (_network, {"name": 3}, "a name, such as 'tiny-cnn', got 3"),
}


@pytest.mark.parametrize(("ask", "given", "message"), SLIPS.values(), ids=SLIPS)
def test_values_of_the_wrong_kind_are_told(ask, given: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ask(**given)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("trades.beta", "inf", "beta must be finite, got inf"),
        ("fgsm-pgi.weight", "inf", "weight must be finite, got inf"),
        ("gat.weight", "-1", "weight must be at least 0, got -1"),
        ("bilaw.net_weight_decay", "inf", "both finite"),
        ("fast-at-ga.coefficient", "inf", "GradAlign's coefficient must be finite, got inf"),
        ("fat.omega", "-1", "jitter must be at least 0, got -1"),
        ("fast-bat.rho", "inf", "gain must be finite, got inf"),
        ("at-awp.decay", "-0.1", "AWP decay must be at least 0, got -0.1"),
    ],
)
def test_a_strength_is_finite_and_not_negative(name, value, said, capsys):
    method, parameter = name.split(".")
    assert run(["train", method, "--dry-run", "--set", f"{parameter}={value}"]) == 2
    assert said in capsys.readouterr().err
