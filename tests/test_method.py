"""A method is a composition: recombined freely, bound afresh, found by name."""

from __future__ import annotations

import dataclasses
import json
import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch
from tests.methods.glue import EPS, Net, gap, minibatches, train

from bivallate import KLDRO, L2, PGD, Linf, Method, Trades, UserError, methods, register
from bivallate.coupling.implicit import leaf
from bivallate.lower.replay import Free
from bivallate.method import facts_for
from bivallate.methods.entries import create, registry
from bivallate.roles import Role
from bivallate.types import Facts

FACTS = Facts(20, (1, 6, 6), 3)


def test_trades_with_the_weights_of_done_is_one_line() -> None:
    method = methods.trades(Linf(EPS)).but(weighting=KLDRO(temperature=0.3))
    assert isinstance(method.loss, Trades)
    left = train(Net(), method, minibatches())
    plain = train(Net(), methods.trades(Linf(EPS)), minibatches())
    assert left.records[0].effective < 0.999
    assert gap(left.model, plain.model) > 1e-4


def test_but_reaches_into_parts_and_leaves_the_original() -> None:
    at = methods.at(Linf(EPS))
    more = at.but(solver__steps=20, attack_mode="train", threat__eps="4/255")
    assert isinstance(more.solver, PGD)
    assert (more.solver.steps, more.attack_mode, more.threat) == (20, "train", Linf(4 / 255))
    assert at == methods.at(Linf(EPS))
    with pytest.raises(UserError, match="did you mean 'solver'"):
        at.but(solvr=at.solver)
    with pytest.raises(UserError, match="did you mean 'steps'"):
        at.but(solver__stepz=3)
    with pytest.raises(UserError, match="attack mode"):
        at.but(attack_mode="evil")
    with pytest.raises(UserError, match="replays"):
        at.but(replays=0)


@pytest.mark.parametrize("name", sorted(registry()))
@pytest.mark.parametrize("written", [False, True], ids=["made", "from a file"])
def test_another_threat_is_as_if_made_for_it(name, written) -> None:
    small, large = Linf(8 / 255), Linf(16 / 255)
    method = create(name, small)
    method = Method.from_dict(method.to_dict()) if written else method
    assert method.but(threat=large) == create(name, large)
    assert method.but(threat__eps="16/255") == create(name, large)
    assert method.but(name="mine", replays=method.replays).name == "mine"


def test_what_a_method_derived_from_eps_follows_and_what_was_changed_must_be_given() -> None:
    small, large = Linf(0.1), L2(0.5)
    own = methods.at(small, steps=7, step_size=0.5).but(attack_mode="train", name="mine")
    moved = own.but(threat=large)
    assert isinstance(moved.solver, PGD)
    assert (moved.solver.steps, moved.solver.step_size, moved.attack_mode) == (7, 0.25, "train")
    assert moved.but(threat=small) == own
    weighted = methods.trades(small).but(weighting=KLDRO(), solver__steps=3)
    assert weighted.but(threat=large) == methods.trades(large, steps=3).but(weighting=KLDRO())

    changed = methods.at(small).but(solver__step_size=0.03)
    unknown = Method.from_dict(methods.at(small, step_size=0.5).to_dict())
    bat = methods.fast_bat(small, step_size=0.1).but(solver__step_size=0.2, coupling__step_size=0.2)
    replaced = methods.at(small).but(solver=PGD(3, 0.03))
    for method in (changed, unknown, replaced):
        with pytest.raises(UserError, match=r"solver\.step_size .* give it too, as solver__step_size="):
            method.but(threat=large)
        assert method.but(threat=large, solver__step_size=0.3).solver.step_size == 0.3
        assert method.but(threat=large, solver=PGD(1, 0.2)).solver == PGD(1, 0.2)
    assert bat.but(threat__eps=0.05).coupling.step_size == 0.2, "a step that was never derived from eps stays"
    by_hand = Method(small, PGD(3, 0.03))
    assert by_hand.but(threat=large).solver == by_hand.solver
    assert methods.fast_bat(small).but(coupling=leaf).but(threat=Linf(8 / 255)).coupling == leaf


# A process that has imported the parts of AT, and not the catalogue.
BEFORE_THE_CATALOGUE = """
import json, sys
import bivallate.lower.direction, bivallate.lower.pgd, bivallate.lower.start, bivallate.lower.stop
from bivallate.lower.threat import Linf
from bivallate.method import MAKERS, Method
at = Method.from_dict(json.loads(sys.argv[1]))
assert not MAKERS
print(at.but(threat=Linf(4 / 255)).solver.step_size)
"""


def test_another_threat_needs_no_catalogue_that_was_loaded_before() -> None:
    at = json.dumps(methods.at(Linf(8 / 255)).to_dict())
    done = subprocess.run(
        [sys.executable, "-c", BEFORE_THE_CATALOGUE, at], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) == methods.at(Linf(4 / 255)).solver.step_size


def test_steps_of_a_method_whose_function_is_not_known_must_be_given() -> None:
    @register("with-steps")
    def with_steps(threat, steps):
        return methods.fast_bat(threat).but(solver__steps=steps)

    made, large = with_steps(Linf(0.1), steps=1), Linf(0.2)
    assert made.but(threat=large) == with_steps(large, steps=1)
    named = Method(Linf(0.1), made.solver, coupling=made.coupling, name="elsewhere")
    for method in (Method.from_dict(made.to_dict()), named):
        with pytest.raises(UserError, match=rf"solver\.step_size of {method.name} .* not known here"):
            method.but(threat=large)
        with pytest.raises(UserError, match=r"coupling\.step_size .* as coupling__step_size="):
            method.but(threat=large, solver__step_size=0.3)
        assert method.but(threat=large, solver=PGD(1, 0.2), coupling=leaf).threat == large


@pytest.mark.parametrize("order", [("solver", "coupling"), ("coupling", "solver")])
def test_parts_that_need_each_other_are_replaced_together(order) -> None:
    at, parts = methods.at(Linf(EPS)), {"solver": Free(0.5), "coupling": leaf}
    method = at.but(solver__step_size=0.25, **{name: parts[name] for name in order}, replays=2)
    assert (method.solver, method.coupling, method.replays) == (Free(0.25), leaf, 2)
    back = method.but(**{name: getattr(at, name) for name in order}, replays=1)
    assert back == at
    with pytest.raises(UserError, match="needs the coupling Leaf"):
        at.but(solver=Free())


def roles_of(value: Any) -> list[Role]:
    """All parts in the fields of a value, found apart from the package's own walk."""
    inner = (
        [getattr(value, f.name) for f in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []
    )
    return [
        *filter(lambda each: isinstance(each, Role), inner),
        *(part for each in inner for part in roles_of(each)),
    ]


def heirs(cls: type) -> list[type]:
    return [cls, *(each for heir in cls.__subclasses__() for each in heirs(heir))]


@pytest.mark.parametrize("name", sorted(registry()))
def test_every_part_is_asked_whether_it_fits(name, monkeypatch) -> None:
    method, asked = create(name, Linf(EPS)), set()
    for cls, own in {cls: vars(cls)["check"] for cls in heirs(Role) if "check" in vars(cls)}.items():

        def check(self, method, own=own) -> None:
            asked.add(id(self))
            own(self, method)

        monkeypatch.setattr(cls, "check", check)
    dataclasses.replace(method)
    parts = roles_of(method)
    assert [part for part in parts if id(part) not in asked] == []
    assert len(parts) >= 5


@pytest.mark.parametrize("name", sorted(registry()))
def test_the_catalogue(name) -> None:
    entry = registry()[name]
    made = create(name, Linf(EPS))
    assert made.name == name
    assert pickle.loads(pickle.dumps(made)) == made
    assert entry.summary.endswith(".")
    assert entry.paper
    assert "F" in entry.cost
    assert "threat" not in entry.parameters
    assert entry.make.__doc__ is not None
    assert "Cost" in entry.make.__doc__ or "as `" in entry.make.__doc__, "the docstring says what it costs"


def test_names_and_parameters_are_checked() -> None:
    with pytest.raises(UserError, match="did you mean 'fast-bat'"):
        create("fast-bta", Linf(EPS))
    with pytest.raises(UserError, match="did you mean 'steps'"):
        create("at", Linf(EPS), stepz=3)
    assert create("at", L2(0.5), steps=3) == methods.at(L2(0.5), steps=3)


def test_a_users_own_method() -> None:
    @register("mine-of-this-test")
    def mine(threat, *, steps: int = 2) -> Method:
        """Mine."""
        return methods.at(threat, steps=steps)

    made = create("mine-of-this-test", Linf(EPS), steps=5)
    assert made == mine(Linf(EPS), steps=5)
    assert (made.name, registry()["mine-of-this-test"].parameters) == ("mine-of-this-test", {"steps": 2})


def test_runs_share_nothing() -> None:
    spec = methods.done_pgd(Linf(EPS))
    one, two = spec.bind(FACTS), spec.bind(FACTS)
    left = train(Net(), spec, minibatches())
    state = left.bound.state_dict()
    assert torch.isfinite(state["weighting.log_u"])
    assert torch.isnan(one.state_dict()["weighting.r"])
    one.load_state_dict(state)
    assert torch.equal(one.state_dict()["weighting.log_u"], state["weighting.log_u"])
    assert torch.isnan(two.state_dict()["weighting.r"])
    with pytest.raises((KeyError, RuntimeError)):
        one.load_state_dict({"weighting.other": torch.zeros(())})
    assert methods.at(Linf(EPS)).bind(FACTS).state_dict() == {}


def test_facts_are_the_models() -> None:
    facts = facts_for(Net(), torch.zeros(4, 1, 6, 6), classes=3)
    assert (facts.rows, facts.shape, facts.classes, facts.dtype) == (4, (1, 6, 6), 3, torch.float64)


def test_deterministic_and_seeded() -> None:
    for name in ("at", "fast-bat", "done-adam", "trades"):
        runs = [train(Net(), create(name, Linf(EPS)), minibatches(), seed=s).model for s in (0, 0, 1)]
        assert gap(runs[0], runs[1]) == 0
        assert gap(runs[0], runs[2]) > 0
