"""LBGAT: reference, both networks' gradients, rates, layouts, and what it can be composed with."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.methods.glue import EPS, Net, agree, gap, minibatches, train
from tests.reference.guided_boundary import lbgat
from torch import Tensor, nn
from torch.func import functional_call

import bivallate as bv
from bivallate import Linf, UserError, methods
from bivallate.lower.helper_network import MOMENTUM, BoundHelperNetwork, HelperNetwork
from bivallate.lower.problem import LowerProblem
from bivallate.lower.second_network import tensors_of
from bivallate.method import check_two_labels, facts_for
from bivallate.schedule import Milestones
from bivallate.types import Batch, Clock, Terms
from bivallate.upper.boundary_guided import BoundaryGuided
from bivallate.upper.loss import Trades

THREAT = Linf(EPS)
RATES = (0.1, 0.05, 0.02)


def guide_of(bound: Any, model: nn.Module) -> dict[str, Tensor]:
    """The second network's tensors, and its momentum."""
    assert isinstance(bound.solver, BoundHelperNetwork)
    return bound.solver.kept(model)


@pytest.mark.parametrize(
    "hyper",
    [
        {},
        {"alpha": 6.0},
        {"alpha": 2.0, "gamma": 0.3, "guide_lr": 0.04},
        {"guide_lr": 0.0},
        {"guide_momentum": 0.5, "guide_weight_decay": 0.1},
    ],
    ids=str,
)
def test_lbgat(hyper: dict[str, Any]) -> None:
    others: list[nn.Module] = []
    theirs = {name.replace("weight_decay", "decay"): value for name, value in hyper.items()}

    def kept(*args: Any, **more: Any) -> None:
        others.append(lbgat(*args, **more, **theirs))

    ended = agree(methods.lbgat(THREAT, steps=3, **hyper), kept, lr=RATES, steps=3, step=EPS / 4)
    guide, expected = guide_of(ended.bound, ended.model), others[0].state_dict()
    assert guide.keys() == expected.keys() | {MOMENTUM + name for name, _ in Net().named_parameters()}
    assert max(float((guide[n].double() - v.double()).abs().max()) for n, v in expected.items()) < 1e-10
    assert max(float((guide[n].double() - ended.model.state_dict()[n]).abs().max()) for n in expected) > 1e-3
    assert ended.records[-1].logged["guide_loss"] > 0


def test_the_gradients_of_both_networks_are_their_derivatives() -> None:
    """In the second step, in which the networks differ; the attacked points are held."""
    (method, points), batches = _heard(methods.lbgat(THREAT, steps=2, alpha=2.0, gamma=0.7)), minibatches()
    method = method.but(solver__momentum=0.0, solver__weight_decay=0.0)
    model = Net().train()
    bound = method.bind(facts_for(model, batches[0][0], 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    bv.train_step(model, optimizer, bound, Batch(*batches[0]), Clock())
    z = {n: p.detach().clone() for n, p in model.named_parameters()}
    g = {n: guide_of(bound, model)[n].clone() for n in z}
    x, y, _ = batches[1]
    bv.train_step(model, optimizer, bound, Batch(*batches[1]), Clock(step=1))
    found = [{n: (z[n] - p.detach()) / 0.5 for n, p in model.named_parameters()}]
    found.append({n: guide_of(bound, model)[MOMENTUM + n] for n in g})
    norms = copy.deepcopy(model).train()

    def loss(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
        clean, adv = functional_call(norms, one, (x,)), functional_call(norms, one, (points[-1],))
        said = functional_call(norms, other, (x,))
        divergence = F.kl_div(adv.log_softmax(1), clean.softmax(1), reduction="batchmean")
        return float((F.mse_loss(adv, said) + 0.7 * F.cross_entropy(said, y) + 2 * divergence).detach())

    generator, h = torch.Generator().manual_seed(0), 1e-6
    for k, at in enumerate((z, g)):
        way = {n: torch.randn(v.shape, generator=generator, dtype=v.dtype) for n, v in at.items()}
        ends = [{n: v + t * way[n] for n, v in at.items()} for t in (h, -h)]
        values = [loss(end, g) if k == 0 else loss(z, end) for end in ends]
        slope = sum(float((found[k][n] * way[n]).sum()) for n in at)
        assert abs(slope) > 0.1
        assert (values[0] - values[1]) / (2 * h) == pytest.approx(slope, rel=1e-6)


def _heard(method: bv.Method) -> tuple[bv.Method, list[Tensor]]:
    """The method with a loss that keeps the points it is asked about."""
    points: list[Tensor] = []

    class Hearing(BoundaryGuided):
        def __call__(self, problem: LowerProblem, x_adv: Tensor) -> Terms:
            points.append(x_adv.detach())
            return super().__call__(problem, x_adv)

    loss: Any = method.loss
    return method.but(loss=Hearing(loss.alpha, loss.gamma)), points


def test_each_weight_has_its_own_rate_and_frozen_ones_stay() -> None:
    model, (rows, *_) = Net().train(), minibatches()
    model.conv.requires_grad_(False)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    bound = methods.lbgat(THREAT, steps=1).bind(facts_for(model, rows[0], 3))
    stem = {"params": model.stem.parameters(), "lr": 0.01}
    optimizer = torch.optim.SGD([stem, {"params": model.head.parameters()}], lr=0.2)
    bv.train_step(model, optimizer, bound, Batch(*rows), Clock())
    guide = guide_of(bound, model)
    for name, value in before.items():
        rate = {"stem": 0.01, "head": 0.2}.get(name.split(".")[0], 0.0)
        assert (MOMENTUM + name in guide) == (not name.startswith("conv"))
        moved = rate * guide.get(MOMENTUM + name, torch.zeros(()))
        assert torch.allclose(guide[name], value - moved, atol=1e-15), name
    assert float((guide["stem.weight"] - before["stem.weight"]).abs().max()) > 1e-5


def test_a_schedule_of_its_own() -> None:
    method = methods.lbgat(THREAT, steps=1)
    falling = method.but(solver__lr=Milestones((0.1, 0.01), (0.5,)))
    assert bv.Method.from_dict(falling.to_dict()) == falling
    turns = {"epoch": (0, 1, 1), "epochs": 2}
    ends = [train(Net(), m, minibatches(), lr=lr, **turns) for m, lr in ((falling, 0.1), (method, 0.1))]
    assert gap(ends[0].model, ends[1].model) > 1e-6


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_a_saved_second_network_takes_the_layout_of_the_trained_one(form: torch.memory_format) -> None:
    model, (rows, *_) = Net().to(memory_format=form).train(), minibatches()
    method = methods.lbgat(THREAT, steps=1)
    bound, again = (method.bind(facts_for(model, rows[0], 3)) for _ in range(2))
    bv.train_step(model, torch.optim.SGD(model.parameters(), lr=0.1), bound, Batch(*rows), Clock())
    state = bound.state_dict()
    saved = {k: v.contiguous() if isinstance(v, Tensor) else v for k, v in state.items()}
    again.load_state_dict(saved)
    mine, theirs, own = guide_of(bound, model), guide_of(again, model), tensors_of(model)
    assert mine.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(value, mine[name])
        assert value.stride() == mine[name].stride() == own[name.removeprefix(MOMENTUM)].stride()
        assert not value.requires_grad


def test_what_it_goes_with() -> None:
    method = methods.lbgat(THREAT)
    check_two_labels(method)  # CutMix
    with pytest.raises(UserError, match="HelperNetwork"):
        methods.at(THREAT).but(loss=BoundaryGuided())
    with pytest.raises(UserError, match="HelperNetwork"):
        methods.hat(THREAT).but(loss=BoundaryGuided())
    for wrong in ({"alpha": -1.0}, {"gamma": -1.0}, {"guide_lr": -0.1}, {"guide_momentum": 1.5}):
        with pytest.raises(UserError, match=next(iter(wrong)).removeprefix("guide_")):
            methods.lbgat(THREAT, **wrong)
    batches = minibatches()
    few = methods.lbgat(THREAT, steps=2, alpha=1.0)
    host, idle, moved = (
        train(Net(), few.but(loss=loss), batches)
        for loss in (few.loss, bv.AWP(few.loss, gamma=0.0), bv.AWP(few.loss, gamma=0.01))
    )
    assert gap(host.model, idle.model) == 0
    assert gap(host.model, moved.model) > 1e-6
    assert all(v.isfinite().all() for v in guide_of(moved.bound, moved.model).values())


def test_a_solver_that_another_loss_ignores_changes_nothing() -> None:
    """Its network has no gradient then, and the trained one goes its way."""
    trades = methods.trades(THREAT, steps=2)
    beside = trades.but(solver=HelperNetwork(trades.solver))  # pyright: ignore[reportArgumentType]
    assert isinstance(beside.loss, Trades)
    ends = [train(Net(), method, minibatches()) for method in (trades, beside)]
    assert gap(ends[0].model, ends[1].model) == 0
