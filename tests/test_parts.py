"""Parts are written down, read back, overridden by path, and say what is wrong."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Literal

import pytest
import torch

import bivallate
from bivallate import (
    KLDRO,
    L2,
    PGD,
    Barrier,
    Equal,
    LastStep,
    Linf,
    Method,
    UserError,
    Weighting,
    methods,
    part,
)
from bivallate.commands.settings import own_parameters
from bivallate.from_text import override, parse_number, read
from bivallate.lower.direction import Adam
from bivallate.lower.start import Zero
from bivallate.lower.stop import Misclassified
from bivallate.methods.entries import registry
from bivallate.part_kinds import KINDS, check_roles, load_own
from bivallate.parts import decode, encode
from bivallate.run.config import Config
from bivallate.run.optim import SGD, AdamW
from bivallate.schedule import Constant, Milestones, Schedule

METHOD = methods.done_adam(Linf(8 / 255))


@pytest.mark.parametrize("name", sorted(registry()))
def test_every_method_survives_being_written_down(name) -> None:
    made = registry()[name].make(Linf(8 / 255))
    entry = json.loads(json.dumps(made.to_dict()))
    assert Method.from_dict(entry) == made
    assert entry["kind"] == "Method"


def test_none_tuples_and_nested_parts_survive() -> None:
    for value in (Barrier(c=None), Milestones((1.0, 2.0), (0.5,)), PGD(3, 0.1, Zero(), Adam()), L2(0.5)):
        assert decode(json.loads(json.dumps(encode(value)))) == value


def test_parts_are_frozen_and_registered() -> None:
    @part
    class Thing:
        size: float = 2.0

    thing = Thing()
    with pytest.raises(dataclasses.FrozenInstanceError):
        thing.size = 3.0  # pyright: ignore[reportAttributeAccessIssue]
    assert decode(encode(Thing(size=5.0))) == Thing(size=5.0)
    assert hash(thing) == hash(Thing())


def test_what_cannot_be_written_is_refused() -> None:
    @dataclasses.dataclass(frozen=True)
    class Stranger:
        size: int = 1

    with pytest.raises(UserError, match=r"@bivallate\.part"):
        encode(Stranger())
    with pytest.raises(UserError, match="numbers, strings"):
        encode(object())
    for entry, hint in (
        ({"kind": "PDG", "steps": 1}, "did you mean 'PGD'"),
        ({"kind": "PGD", "stepz": 1}, "did you mean 'steps'"),
        ({"steps": 1}, "unknown part"),
    ):
        with pytest.raises(UserError, match=hint):
            decode(entry)


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("solver.steps", "20", 20),
        ("solver.step_size", "2/255", 2 / 255),
        ("threat.eps", "16/255", 16 / 255),
        ("coupling.gain", "0.5", 0.5),
        ("coupling.c", "0.01", 0.01),
        ("coupling.c", "none", None),
        ("solver.direction", "Steepest", None),
        ("attack_mode", "eval", "eval"),
        ("accumulate", "true", True),
        ("weighting.rate", "1", 1.0),
        ("weighting.temperature.values", "5, 0.5, 0.05", (5.0, 0.5, 0.05)),
        ("weighting.temperature", "0.5", 0.5),
    ],
)
def test_override(path, text, value) -> None:
    changed = override(METHOD, path, text)
    found = changed
    for name in path.split("."):
        found = getattr(found, name)
    assert (type(found).__name__ == text) if value is None and text != "none" else found == value
    assert dataclasses.replace(changed) == changed
    assert override(METHOD, path, found) == changed
    assert methods.done_adam(Linf(8 / 255)) == METHOD, "the original is as it was"


@part
class Cooled:
    """An optimiser that derives from nothing, as the protocol allows."""

    lr: float = 0.1

    def make(self, model):
        return AdamW(self.lr).make(model)


MISPLACED = {  # change of a configuration -> words of the error: what was found, and what to write instead
    "of the same name": (
        ("optimizer", Adam()),
        "the optimizer of Config: it is bivallate.lower.direction.Adam, a Direction. Did you mean AdamW? "
        "Known: AdamW, Cooled, ",
    ),
    "within a part": (
        ("solver.direction", AdamW()),
        "the direction of PGD: it is bivallate.run.optim.AdamW. Did you mean Adam? Known: Adam, ",
    ),
    "with the right names and another call": (("rate", Zero()), "it is bivallate.lower.start.Zero, a Start."),
    "none of a list": (("average", SGD()), "Known: Cyclic, EMA, SWA"),
    "a class": (("weighting", KLDRO), "the weighting of Method: it is a class, write KLDRO(...). Known: "),
    "no part": (("rate", object()), "it is builtins.object. Known: "),
}


@pytest.mark.parametrize("case", MISPLACED)
def test_a_part_of_another_role_is_refused_where_it_is_put(case) -> None:
    (path, value), said = MISPLACED[case]
    config = Config(METHOD)
    with pytest.raises(UserError, match=f"cannot serve as .*{re.escape(said)}"):
        config.set(path, value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        with pytest.raises(UserError, match=re.escape(said)):
            config.set(path, type(value).__name__)
    with pytest.raises(UserError, match=r"Known: .*Raw.* \(your own derives from Direction\)"):
        PGD(3, 0.1, direction=AdamW())  # pyright: ignore[reportArgumentType]
    assert config.set("optimizer", Cooled()).set("rate", lambda clock: 1.0).optimizer == Cooled()


def test_a_parts_fields_without_a_default_count_among_what_its_role_asks_for() -> None:
    class Plain:
        lr: float

        def make(self, model: torch.nn.Module) -> torch.optim.Optimizer:
            return torch.optim.SGD(model.parameters(), self.lr)

    Plain.__module__ = SGD.__module__  # as if it stood beside the package's own optimisers
    assert Config(METHOD).set("optimizer", part(Plain)(0.1)).optimizer.lr == 0.1  # pyright: ignore[reportCallIssue]


ROLE_FIELDS = {
    *("start", "direction", "stop", "solver", "objective", "inner", "base", "rule", "coupling"),
    *("weighting", "loss", "tau", "level", "turns", "threat", "shift", "data"),
}


def test_every_field_with_a_role_refuses_an_optimiser() -> None:
    load_own()
    refusing = set()
    for kind in [kind for kind in KINDS.values() if kind.__module__.startswith("bivallate.")]:
        for name in {f.name for f in dataclasses.fields(kind) if f.type != "float"} & ROLE_FIELDS:
            if (kind.__name__, name) == ("Search", "objective"):  # may be a function as well
                continue
            blank = object.__new__(kind)
            object.__setattr__(blank, name, SGD())
            with pytest.raises(UserError, match=f"cannot serve as the {name} of {kind.__name__}: "):
                check_roles(blank)
            refusing.add(name)
    assert refusing == ROLE_FIELDS


@pytest.mark.parametrize(
    ("path", "text", "hint"),
    [
        ("solvr.steps", "20", "did you mean 'solver'"),
        ("solver.stepz", "20", "did you mean 'steps'"),
        ("solver.steps", "2.5", "whole number"),
        ("solver.steps", "many", "number"),
        ("solver.step_size", "nan", "number"),
        ("solver.steps.more", "1", "no field"),
        ("accumulate", "perhaps", "true or false"),
        ("threat.eps", "8", "8/255"),
        ("weighting.rate", "0", "rate"),
        ("coupling", "Barier", "did you mean 'Barrier'"),
        ("attack_mode", "evil", "did you mean 'eval'"),
    ],
)
def test_bad_overrides(path, text, hint) -> None:
    with pytest.raises(UserError, match=hint):
        override(METHOD, path, text)


READ = [
    ("20", int, 1, 20),
    ("8/255", float, 1.0, 8 / 255),
    ("3", float, 6, 3.0),
    ("inf", float, 1.0, math.inf),
    ("none", float | None, 1.0, None),
    ("7", int | None, None, 7),
    ("True", bool, False, True),
    ("auto", bool | Literal["auto"], True, "auto"),
    ("false", bool | Literal["auto"], "auto", False),
    ("1, 2", tuple[int, ...], (), (1, 2)),
    ("none", tuple[int, ...], (3,), ()),
    ("", tuple[float, ...], (3.0,), ()),
    ("1,yes", tuple[int, str], (0, ""), (1, "yes")),
    ("Linear", str, "digits", "Linear"),
    ("none", str, "x", "none"),
    ("Equal", Weighting, KLDRO(), Equal()),
    ("0.5", float | Schedule, Milestones((1.0, 2.0), (0.5,)), 0.5),
    ("0.5", None, Milestones((1.0, 2.0), (0.5,)), 0.5),
    ("0.5", Constant | Milestones, Milestones((1.0, 2.0), (0.5,)), 0.5),
    ("5", None, 2, 5),
    ("none", None, 2, None),
    ("1/4,2", None, (1.0,), (0.25, 2.0)),
    ("yes", None, "x", "yes"),
    ("3", None, None, 3),
    ("1e-3", None, None, 1e-3),
    ("token", None, None, "token"),
]


@pytest.mark.parametrize(("text", "hint", "current", "value"), READ)
def test_text_is_read_as_the_hint_asks_and_else_as_what_stands_there(text, hint, current, value) -> None:
    found = read(text, hint, "here", current)
    assert (found, type(found)) == (value, type(value))


NOT_READ = [
    ("2.5", int, 1, "whole number"),
    ("inf", int, 1, "whole number"),
    ("nan", float, 1.0, "number"),
    ("none", float, 1.0, "number"),
    ("yes", bool, True, "true or false"),
    ("yes", bool | Literal["auto"], True, "true or false or auto"),
    ("1,x", tuple[int, ...], (), "number"),
    ("1", tuple[int, str], (0, ""), "2 values"),
    ("Equall", Weighting, KLDRO(), "did you mean 'Equal'"),
    ("PGD", float | Schedule, 1.0, "needs values of its own"),
    ("x", None, 2, "number"),
]


@pytest.mark.parametrize(("text", "hint", "current", "message"), NOT_READ)
def test_text_that_does_not_fit_is_refused(text, hint, current, message) -> None:
    with pytest.raises(UserError, match=rf"here.*{message}|{message}.*here"):
        read(text, hint, "here", current)


def test_a_parameter_a_field_and_an_option_are_read_alike() -> None:
    known, rest = own_parameters("at", [("steps", "7"), ("step_size", "1/4"), ("solver.steps", "7")])
    assert (known, rest) == ({"steps": 7, "step_size": 0.25}, [("solver.steps", "7")])
    config = Config(methods.at(Linf(0.1))).set("solver.steps", "7").set("model.options.size", "7")
    assert config.method.solver.steps == config.model.chosen()["size"] == 7


def test_text_is_taken_apart_in_one_place() -> None:
    root = Path(bivallate.__file__).parent
    found = {p.name for p in root.rglob("*.py") if 'partition("=")' in p.read_text()}
    assert found == {"from_text.py"}


def test_a_part_can_be_exchanged_by_its_name() -> None:
    assert override(METHOD, "coupling", "Detached").coupling == methods.at(Linf(0.1)).coupling
    assert isinstance(override(METHOD, "weighting", "Equal").weighting, type(methods.at(Linf(0.1)).weighting))
    assert override(METHOD, "weighting.temperature", "0.5").weighting.weigh is not None


@pytest.mark.parametrize(("text", "value"), [("8/255", 8 / 255), ("0.03", 0.03), (2, 2.0), ("1e-2", 0.01)])
def test_numbers(text, value) -> None:
    assert parse_number(text) == value


@pytest.mark.parametrize("text", ["8/0", "a/b", "", "8//255", "1/2/3"])
def test_bad_numbers(text) -> None:
    with pytest.raises(UserError, match="8/255"):
        parse_number(text, "eps")


def test_a_part_is_known_by_its_former_name() -> None:
    solver = methods.hat(Linf(0.1)).solver
    assert decode(encode(solver) | {"kind": "Helped"}) == solver


def test_text_names_a_part_by_its_other_names_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bivallate.parts.RENAMED, "Unstopped", "Never")
    early = PGD(2, 0.1, stop=Misclassified(1))
    with pytest.warns(DeprecationWarning, match="Unstopped is now called Never"):
        assert override(early, "stop", "Unstopped") == PGD(2, 0.1)
    with pytest.warns(DeprecationWarning, match="Helped is now"), pytest.raises(UserError, match="values"):
        override(methods.at(Linf(0.1)), "solver", "Helped")
    with pytest.raises(UserError, match="objective=GuidedCrossEntropy needs values of its own"):
        override(
            methods.at(Linf(0.1)), "objective", "GuidedCrossEntropy"
        )  # the class's name, not a former one


def test_constants_read_as_numbers() -> None:
    assert override(KLDRO(temperature=Constant(2.0)), "temperature", "0.5").temperature == 0.5
    assert math.isinf(override(KLDRO(), "guard", "inf").guard)
    assert override(LastStep(0.1), "cross_at", "delta").cross_at == "delta"


@pytest.mark.parametrize(("name", "word"), [("gat", "Guiding"), ("fgsm-pgi", "Smoothed")])
def test_files_keep_the_word_of_a_part_whose_class_has_another_name(name, word) -> None:
    objective = bivallate.methods.entries.create(name, Linf(0.1)).objective
    assert type(objective).__name__ != word
    entry = encode(objective)
    assert entry["kind"] == word
    assert decode(entry) == decode(entry | {"kind": type(objective).__name__}) == objective
