"""Parts are written down, read back, overridden by path, and say what is wrong."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from bivallate import KLDRO, L2, PGD, Barrier, LastStep, Linf, Method, UserError, methods, part
from bivallate.lower.pgd import Adam
from bivallate.lower.start import Zero
from bivallate.methods.entries import registry
from bivallate.parts import decode, encode, override, parse_number
from bivallate.schedule import Constant, Milestones

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


def test_constants_read_as_numbers() -> None:
    assert override(KLDRO(temperature=Constant(2.0)), "temperature", "0.5").temperature == 0.5
    assert math.isinf(override(KLDRO(), "guard", "inf").guard)
    assert override(LastStep(0.1), "cross_at", "delta").cross_at == "delta"
