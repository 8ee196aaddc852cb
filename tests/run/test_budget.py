"""What a training costs at most, against what it has cost, and how long it can be within a budget."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bivallate import Linf, Method, methods
from bivallate.data import Augment, Batches, Dataset
from bivallate.errors import UserError
from bivallate.lower.solver import Solver
from bivallate.methods.entries import create
from bivallate.parts import part
from bivallate.run.budget import Minibatches, affordable, costs_of_epochs, epochs_within, minibatches_of
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
@pytest.mark.parametrize("passes", [30, 61])
def test_the_epochs_are_the_most_that_the_budget_pays_for(name: str, passes: float) -> None:
    method, cut = create(name, THREAT, steps=3), Minibatches(32, 32, 10)
    epochs = epochs_within(method, passes, cut)
    costs = [sum(costs_of_epochs(method, n, cut)) for n in (epochs, epochs + 1)]
    assert costs[0] <= passes < costs[1]
    before = torch.random.get_rng_state()
    epochs_within(method, passes, cut)
    assert torch.equal(before, torch.random.get_rng_state())


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
    with pytest.raises(UserError, match=r"one epoch of at costs 22 .* more than --passes 21"):
        epochs_within(methods.at(THREAT), 21, cut)
    with pytest.raises(UserError, match=r"passes of custom cannot be counted .*no stem here"):
        epochs_within(Method(THREAT, Broken()), 100, cut)
    finer = config_of(methods.at(THREAT), sentinel=Sentinel(rollback=True))
    with pytest.raises(UserError, match=r"sentinel\.lowers"):
        affordable(finer, 100, 70, 10)
    config, cost = affordable(config_of(methods.at(THREAT)), 100, 70, 10)
    assert (config.epochs, cost) == (4, 88)
