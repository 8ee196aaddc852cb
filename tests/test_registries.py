"""Names registered in a test do not outlive it; old names still work."""

from __future__ import annotations

import importlib

import pytest
import torch
from conftest import REGISTRIES, of_the_package, restored, tables

import bivallate as bv
from bivallate import models
from bivallate.evaluation.named_attacks import Attack, family
from bivallate.lower.problem import LowerProblem
from bivallate.methods.entries import MAKERS, registry
from bivallate.part_kinds import load_own as load_own_parts
from bivallate.types import Clock, Evidence


def names() -> list[set[str]]:
    return [set(table) for table in tables().values()]


def test_what_a_test_registers_is_gone_after_it() -> None:
    registry()
    load_own_parts()  # else the first part of a test would load them, beside its own
    before, at = names(), MAKERS["at"]
    with restored():

        @bv.part
        class OfThisTest:
            x: int = 1

        @bv.register("of-this-test")
        def method(threat):
            return bv.methods.plain(threat)

        bv.register("at")(method)

        @models.register("of-this-test")
        def network(num_classes, shape, activation): ...

        @family("of-this-test", "of-this-test", "nothing")
        def attack() -> Attack:
            return Attack("of-this-test")

        assert len(names()) == len(REGISTRIES)
        assert all(len(now) == len(then) + 1 for now, then in zip(names(), before, strict=True))
    assert names() == before
    assert MAKERS["at"] is at


def test_what_the_package_registers_while_a_test_runs_stays() -> None:
    whole = {
        place: {name: entry for name, entry in table.items() if of_the_package(REGISTRIES[place](entry))}
        for place, table in tables().items()
    }  # without what modules of tests register
    assert all(whole.values())
    for table in tables().values():
        table.clear()
    with restored():  # as if all was imported within
        for place, table in tables().items():
            table.update(whole[place])
    assert {place: list(table) for place, table in tables().items()} == {p: list(t) for p, t in whole.items()}


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("bivallate.data.registry", "Known", "KnownDataset"),
        ("bivallate.data.registry", "usual", "training_defaults"),
        ("bivallate.data.registry", "find", "by_name_or_raise"),
        ("bivallate.data.registry", "get", "by_name"),
        ("bivallate.audits", "Moment", "AuditProgress"),
        ("bivallate.evaluation", "evaluate", "attack_and_score"),
        ("bivallate.evaluation", "compare", "rank"),
        ("bivallate.evaluation", "parse", "attack_named"),
        ("bivallate.evaluation", "Crafted", "AttackedImages"),
    ],
)
def test_former_names_still_work(module, old, new) -> None:
    found = importlib.import_module(module)
    with pytest.deprecated_call(match=new):
        assert getattr(found, old) is getattr(found, new)
    with pytest.raises(AttributeError, match="nothing"):
        found.nothing  # noqa: B018


FORMER_METHODS = {
    "ascent": "logits_and_gradient",
    "first_ascent": "first_gradient",
    "ascent_at_zero": "gradient_at_zero",
    "solved": "with_solution",
}


@pytest.mark.parametrize("old", FORMER_METHODS)
def test_former_methods_of_a_problem_still_work(old) -> None:
    class Asked(LowerProblem):
        pass

    new = FORMER_METHODS[old]
    assert callable(getattr(LowerProblem, new))
    setattr(Asked, new, lambda self, *given, **named: (given, named))
    with pytest.deprecated_call(match=new):
        assert getattr(object.__new__(Asked), old)(1, signs=True) == ((1,), {"signs": True})


def test_a_former_field_of_the_evidence_is_read_and_given() -> None:
    logits, y = torch.zeros(2, 3), torch.arange(2)
    others = {"logits": logits, "y": y, "index": y, "kappa": y, "clock": Clock(), "clean": lambda: logits}
    with pytest.deprecated_call(match=r"loss of Evidence\.__init__ is now called robust"):
        evidence = Evidence(loss=torch.ones(2), **others)  # pyright: ignore
    with pytest.deprecated_call(match=r"Evidence\.loss is now called robust"):
        assert evidence.loss is evidence.robust  # pyright: ignore
