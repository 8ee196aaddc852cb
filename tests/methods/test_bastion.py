"""Bastion: reference, reductions, and its cost over a whole training, counted."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from benchmarks import bastion as benchmark
from benchmarks.bastion_page import held_out
from tests.methods.glue import EPS, Net, agree, gap, minibatches, train
from tests.methods.meter import Metered
from tests.reference import bastion as reference
from torch import nn

import bivallate as bv
from bivallate import Linf, Method, methods
from bivallate.lower.start import uniform
from bivallate.method import facts_for
from bivallate.methods.composed import epochs_within
from bivallate.reproduce.cell import configure
from bivallate.reproduce.paper_table import Scale
from bivallate.reproduce.papers.catalogue import find
from bivallate.reproduce.scaling import at_scale
from bivallate.run.budget import Minibatches, costs_of_epochs
from bivallate.run.recipes.published import recipe_for
from bivallate.types import Batch, Clock

THREAT = Linf(EPS)


@pytest.mark.parametrize("norm", [True, False])
def test_reference(norm: bool) -> None:
    """Epochs with one, two and three steps."""
    epoch = [1, 4, 9]
    straight = partial(reference.bastion, epochs=epoch, run=12)
    left = agree(methods.bastion(THREAT), straight, model=Net(norm), epoch=epoch, epochs=12)
    assert [r.logged["level"] for r in left.records] == [1, 2, 3]


def test_reference_with_other_parameters() -> None:
    hyper = {"beta": 3.0, "steps": 2, "until": 0.5}
    method = methods.bastion(THREAT, step_size=0.5, **hyper)
    straight = partial(reference.bastion, epochs=[0, 3, 6], run=8, alpha=0.5 * EPS)
    agree(method, straight, epoch=[0, 3, 6], epochs=8, **hyper)


def test_at_its_height_it_is_trades_on_a_cross_entropy_attack() -> None:
    trades = methods.trades(THREAT, steps=3, step_size=0.75).but(
        objective=methods.at(THREAT).objective, solver__start=uniform
    )
    data = minibatches()
    ends = [train(Net(), m, data, epoch=2, epochs=3).model for m in (methods.bastion(THREAT), trades)]
    assert gap(*ends) < 1e-12
    before = train(Net(), methods.bastion(THREAT), data, epoch=1, epochs=3).model
    assert gap(before, ends[1]) > 1e-6, "fewer steps must make a difference"


def spent(method: Method, epochs: int) -> float:
    """Passes an example over a training of so many epochs, of one minibatch each, counted at the network."""
    torch.manual_seed(0)
    model = Metered(nn.Sequential(nn.Flatten(), nn.Linear(9, 3)).double()).train()
    x, y = torch.rand(4, 1, 3, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    bound = method.bind(facts_for(model, x, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    reported = 0
    for epoch in range(epochs):
        clock = Clock(epoch, epochs, 0, 1)
        passes = bv.train_step(model, optimizer, bound, Batch(x, y, torch.arange(4)), clock).passes
        reported += passes.forward + passes.backward
    assert reported == model.meter.forward + model.meter.backwards
    return reported / 4


@pytest.mark.parametrize("parameters", [{}, {"steps": 1}, {"steps": 5, "until": 0.9}, {"until": 1.0}])
@pytest.mark.parametrize("budget", [22, 66, 220])
def test_a_whole_training_costs_no_more_than_at_s_and_one_epoch_more_would(
    parameters: dict[str, Any], budget: int
) -> None:
    assert spent(methods.at(THREAT), budget // 22) == budget
    method, epochs = methods.bastion(THREAT, **parameters), epochs_within(budget, **parameters)
    assert spent(method, epochs) <= budget < spent(method, epochs + 1)


def test_the_recipe_costs_no_more_than_ten_epochs_of_at() -> None:
    config = recipe_for("bastion", methods.bastion(THREAT), "mnist")
    assert 210 < spent(config.method, config.epochs) <= spent(methods.at(THREAT), 10)
    assert config.average > 0


def most(method: Method, epochs: int) -> float:
    """What a training of so many epochs costs at most, counted before it."""
    return sum(costs_of_epochs(method, epochs, Minibatches(rows=32, size=32, classes=10)))


@pytest.mark.parametrize("name", ["at", "bilaw", "bastion"])
def test_the_benchmark_gives_each_method_the_epochs_that_the_budget_pays_for(name: str) -> None:
    method = benchmark.EVERY[name]()
    config = benchmark.configure(method, "mnist", seed=0, rows=1000)
    assert (config.average, config.batch_size) == (0.99, 32)
    assert most(method, config.epochs) <= 220 < most(method, config.epochs + 1)
    if name in ("at", "bastion"):
        assert config.epochs == {"at": 10, "bastion": epochs_within(220)}[name]
        assert most(method, config.epochs) == spent(method, config.epochs)


@pytest.mark.parametrize("scale", ["cpu", "full"])
def test_the_table_gives_the_rows_of_equal_cost_what_the_passes_of_at_pay_for(scale: Scale) -> None:
    cells = {c.row: c for c in at_scale(find("T-B1"), scale) if c.group == "MNIST tiny-CNN linf"}
    budget = most(methods.at(THREAT), configure(cells["AT"], 0).epochs)
    for row in ("BASTION", "FAST-BAT (equal cost)", "N-FGSM (equal cost)"):
        config = configure(cells[row], 0)
        assert most(config.method, config.epochs) <= budget
        assert budget < most(config.method, config.epochs + 1)


def test_the_page_ranks_the_mean_of_the_seeds() -> None:
    def record(robust: float) -> dict[str, Any]:
        found = {"clean": 0.9, "robust": robust, "tail_30": 0.25}
        return {"epochs": 3, "passes": 24.0, "train_robust": 0.8, "validation": found}

    runs = {"first": [record(0.5)], "second": [record(0.4), record(0.7)]}
    lines = held_out(runs, ["first", "second", "absent"], ("mnist", 1000)).splitlines()
    assert lines[0].startswith("| MNIST, 1,000 images |")
    assert lines[2:] == [
        "| second | 3 | 24 | 2 | 90.0 [90.0, 90.0] | 55.0 [40.0, 70.0] | 25.0 [25.0, 25.0] | "
        "80.0 [80.0, 80.0] |",
        "| first | 3 | 24 | 1 | 90.0 | 50.0 | 25.0 | 80.0 |",
    ]
