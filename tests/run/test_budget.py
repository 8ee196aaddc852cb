"""What a training costs at most, against what it has cost, and how long it can be within a budget."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

import bivallate as bv
from bivallate import Linf, Method, collective, methods
from bivallate.data import Augment, Batches, Dataset
from bivallate.errors import UserError
from bivallate.lower.solver import Solver
from bivallate.methods.entries import create
from bivallate.parts import part
from bivallate.run import training
from bivallate.run.budget import (
    Minibatches,
    PlannedCost,
    affordable,
    costs_of_epochs,
    epochs_within,
    minibatches_of,
)
from bivallate.run.config import Config, Data, Model, Validation
from bivallate.run.execution import execute
from bivallate.run.from_config import create_model
from bivallate.run.phases import Phase
from bivallate.run.sentinel import Sentinel

THREAT = Linf(0.1)
ROWS, SIZE, EPOCHS = 70, 16, 4  # the last of five minibatches is a short one

EXACT = [
    ("plain", {}),
    ("at", {"steps": 3}),
    ("at", {"steps": 3, "fgsm_first": 0.5}),
    ("trades-awp", {"steps": 2, "warm_up": 2}),
    ("hat", {"steps": 2}),
    ("free-at", {"replays": 3}),
    ("yopo", {}),
    ("atta", {}),
    ("bastion", {}),
    ("curriculum", {"steps": 3}),
    ("gat", {}),
    ("bilaw", {"steps": 2}),
    ("fast-bat", {}),
]
AT_MOST = [
    ("liet", {}),
    ("fat", {"steps": 4}),
    ("gair-fat", {"steps": 4}),
    ("dynamic", {"steps": 4, "c_max": 1.0}),
    ("dynamic", {"steps": 4, "estimate": True}),
    ("curriculum", {"mode": "cai", "steps": 5, "patience": 0, "threshold": 0.1, "held_out": False}),
    ("fast-bat", {"curvature_steps": 3}),
]


def config_of(method: Method, **changes: Any) -> Config:
    """A short run that measures next to nothing."""
    quiet: dict[str, Any] = {"validation": Validation(0, 1), "sentinel": Sentinel(on=False)}
    basis = {"model": Model("linear"), "data": Data(meta=16), "batch_size": SIZE, "epochs": EPOCHS}
    return Config(method, **{**quiet, **basis, "warm_up": 0.5, "threads": 1, **changes})


@pytest.fixture(scope="module")
def data(few: Dataset) -> Dataset:
    assert few.validation is not None
    return few.but(train=few.train.subset(slice(0, ROWS)), validation=few.validation.subset(slice(0, 8)))


def spent(config: Config, data: Dataset) -> float:
    """What the training has cost, by its own record."""
    last = execute(config, data, create_model(config.model, data, 0), None).history[-1]
    return last["total_forward"] + last["total_backward"]


def planned(config: Config, data: Dataset) -> float:
    minibatches = minibatches_of(config, len(data.train), len(data.classes))
    return sum(costs_of_epochs(config.method, config.epochs, minibatches))


@pytest.mark.parametrize(("name", "parameters"), EXACT)
def test_the_count_is_the_cost(name: str, parameters: dict[str, Any], data: Dataset) -> None:
    config = config_of(create(name, THREAT, **parameters))
    assert planned(config, data) == pytest.approx(spent(config, data), abs=1e-9)


@pytest.mark.parametrize(("name", "parameters"), AT_MOST)
def test_the_count_is_a_bound_where_the_method_looks_at_its_examples(
    name: str, parameters: dict[str, Any], data: Dataset
) -> None:
    config = config_of(create(name, THREAT, **parameters))
    used, most = spent(config, data), planned(config, data)
    assert most / 3 < used < most - 0.01


@pytest.mark.parametrize(
    ("rows", "size", "kinds", "steps"),
    [
        (96, 32, [(0, 32, 2), (1, 32, 1)], 3),
        (70, 16, [(0, 16, 2), (1, 16, 2), (4, 6, 1)], 5),
        (33, 16, [(0, 16, 1), (1, 17, 1)], 2),  # a single row is no minibatch
        (33, 32, [(0, 33, 1)], 1),
        (5, 5, [(0, 5, 1)], 1),
        (1, 1, [(0, 1, 1)], 1),
    ],
)
def test_minibatches_are_those_of_a_training(
    rows: int, size: int, kinds: list[tuple[int, int, int]], steps: int, few: Dataset
) -> None:
    cut = Minibatches(rows, size, 10)
    assert (list(cut.kinds()), len(cut)) == (kinds, steps)
    batches = Batches(few.train.subset(slice(0, rows)), size, 0, Augment())
    assert sorted(len(b.y) for b in batches.epoch(0)) == sorted(r for _, r, n in kinds for _ in range(n))


@pytest.mark.parametrize("name", ["at", "bastion", "hat", "curriculum"])
def test_the_epochs_are_the_most_that_the_budget_pays_for(name: str) -> None:
    method, cut = create(name, THREAT, steps=3), Minibatches(32, 32, 10)
    totals = [sum(costs_of_epochs(method, epochs, cut)) for epochs in range(1, 7)]
    before = torch.random.get_rng_state()
    for epochs, (cost, more) in enumerate(itertools.pairwise(totals), 1):
        assert epochs_within(method, cost, cut) == epochs_within(method, (cost + more) / 2, cut) == epochs
    assert torch.equal(before, torch.random.get_rng_state())


def test_what_no_single_epoch_has_is_found_too() -> None:
    """HAT's plain epochs, which are fewer than one in ten: five are all alike, and the sixth is cheap."""
    method, cut = methods.hat(THREAT, steps=3), Minibatches(32, 32, 10)
    five, six = (sum(costs_of_epochs(method, epochs, cut)) for epochs in (5, 6))
    (one,) = costs_of_epochs(method, 1, cut)
    assert (five, six < five + one) == (5 * one, True)
    assert epochs_within(method, six, cut) == 6


def test_what_is_told_of_a_cost_pays_for_it() -> None:
    method, cut = methods.gat(THREAT), Minibatches(70, 16, 10)
    cost = PlannedCost(4, sum(costs_of_epochs(method, 4, cut)))
    assert str(cost) == "4 epochs, at most 25.83 passes an example"
    assert (float(cost.at_most) - cost.passes) == pytest.approx(0.0014286, abs=1e-6)
    assert epochs_within(method, float(cost.at_most), cut) == epochs_within(method, cost.passes, cut) == 4
    assert str(PlannedCost(1, 12345.0)) == "1 epoch, at most 12345 passes an example"


def test_a_training_from_python_within_a_budget(
    few: Dataset, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    more: dict[str, Any] = {"batch_size": 64, "threads": 1, "validation": Validation(0, 1)}
    run = bv.train("linear", few, methods.gat(THREAT), passes=20.5, progress=True, **more)
    used = run.history[-1]["total_forward"] + run.history[-1]["total_backward"]
    assert (
        f"passes=20.5 pays for {len(run.history)} epochs, at most {round(used, 2):.12g} passes"
        in capsys.readouterr().err
    )
    assert used <= 20.5 < used * (1 + 1 / len(run.history))
    with monkeypatch.context() as other:  # another process than the first is silent
        other.setattr(collective, "rank", lambda: 1)
        other.setattr(training, "begin_or_resume", lambda config, *_, **__: config)
        bv.train("linear", few, methods.plain(THREAT), passes=2, progress=True, **more)
    assert "pays for" not in capsys.readouterr().err
    for wrong, said in (
        ({"passes": 30, "epochs": 2}, "leave out epochs, or passes"),
        ({"passes": "30"}, "passes must be a number"),
        ({"passes": True}, "passes must be a number"),
        ({"passes": 0}, "passes must be above 0"),
        ({"passes": math.nan}, "passes must be above 0"),
        ({"passes": math.inf}, "inf passes pay for more than 10,000 epochs of plain"),
        ({"passes": 20_001}, "20001 passes pay for more than 10,000 epochs"),
        ({"passes": 1}, r"one epoch of plain costs 2 .* and 1 are allowed"),
    ):
        with pytest.raises(UserError, match=said):
            bv.train("linear", few, methods.plain(THREAT), **wrong, **more)  # pyright: ignore[reportArgumentType]


def test_a_second_stream_and_phases_count_by_their_own_minibatches(data: Dataset) -> None:
    bilaw = config_of(methods.bilaw(THREAT, steps=2))
    assert minibatches_of(bilaw, 70, 10) == Minibatches(54, 16, 10)
    phases = (Phase(0.5, batch=0.5), Phase())
    assert minibatches_of(config_of(methods.at(THREAT), phases=phases), 70, 10).size == 8
    assert minibatches_of(config_of(methods.at(THREAT)), 9, 10).size == 9


@part
class Broken(Solver):
    """Does not run."""

    def solve(self, problem: Any) -> Any:
        raise RuntimeError("no stem here")


def test_what_cannot_be_counted_or_paid_for_is_said(data: Dataset) -> None:
    cut = Minibatches(32, 32, 10)
    with pytest.raises(UserError, match=r"one epoch of at costs 22 .* and 21 are allowed"):
        epochs_within(methods.at(THREAT), 21, cut)
    with pytest.raises(UserError, match=r"passes of custom cannot be counted .*no stem here"):
        epochs_within(Method(THREAT, Broken()), 100, cut)
    finer = config_of(methods.at(THREAT), sentinel=Sentinel(rollback=True))
    with pytest.raises(UserError, match=r"sentinel\.lowers"):
        affordable(finer, 100, 70, 10)
    config, cost = affordable(config_of(methods.at(THREAT)), 100, 70, 10)
    assert (config.epochs, cost) == (4, PlannedCost(4, 88))
