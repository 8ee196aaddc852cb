"""Learning-rate schedules against torch's own and against the papers' milestones."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tests.run.runs import Killed, digits, kill_at, same, train

import bivallate as bv
from bivallate.errors import UserError
from bivallate.lower.direction import Adam
from bivallate.run.checkpoint import newest
from bivallate.run.optim import set_rate
from bivallate.run.optimizer_state import pack_optimizer, remember_groups, unpack_optimizer
from bivallate.run.progress import Progress
from bivallate.run.rates import Pieces
from bivallate.types import Clock
from bivallate.weighting.lookahead import Lookahead, learning_rates

STEPS = 7


def rates(rate, epochs: int) -> list[float]:
    return [rate(Clock(e, epochs, s, STEPS)) for e in range(epochs) for s in range(STEPS)]


def test_triangle_is_piecewise_linear_per_iteration():
    got = rates(bv.Triangle(0.4), 10)
    t = np.arange(10 * STEPS) / STEPS
    np.testing.assert_allclose(got, np.interp(t, [0, 4, 10], [0, 1, 0]), atol=1e-12)


def test_triangle_equals_torchs_cyclic_rate_and_momentum():
    weight = torch.nn.Parameter(torch.zeros(1))
    theirs = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    half = 5 * STEPS
    cyclic = torch.optim.lr_scheduler.CyclicLR(theirs, 0.0, 0.2, step_size_up=half, step_size_down=half)
    ours = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    for step in range(10 * STEPS):
        clock = Clock(step // STEPS, 10, step % STEPS, STEPS)
        set_rate(ours, bv.SGD(0.2), bv.Triangle(0.5, cycle_momentum=True), clock)
        for key in ("lr", "momentum"):
            assert ours.param_groups[0][key] == pytest.approx(theirs.param_groups[0][key], abs=1e-9), step
        theirs.step()
        cyclic.step()


def test_multistep_drops_at_fractions_of_the_epochs():
    rate = bv.MultiStep((0.5, 100 / 120), 0.1)
    by_epoch = [rate(Clock(e, 120)) for e in range(120)]
    assert by_epoch == pytest.approx([1.0] * 60 + [0.1] * 40 + [0.01] * 20)
    assert [rate(Clock(e, 12)) for e in (5, 6, 9, 10)] == pytest.approx([1, 0.1, 0.1, 0.01])


def test_multistep_takes_factors_of_its_own():
    rate = bv.MultiStep((0.5, 0.75, 11 / 12), factors=(0.1, 0.01, 0.005))
    assert [rate(Clock(e, 120)) for e in (59, 60, 90, 110)] == [1, 0.1, 0.01, 0.005]


def test_cosine_and_flat():
    values = rates(bv.Cosine(floor=0.1, warm_up=0.2), 10)
    assert values[0] == 0
    assert max(values) == pytest.approx(1.0)
    assert values[-1] == pytest.approx(0.1, abs=1e-2)
    assert set(rates(bv.Flat(), 3)) == {1.0}


REFUSED = {
    "epochs for fractions": (
        lambda: bv.MultiStep((50, 75)),
        r"got \(50.*\): epochs 50 and 75 of 100 are 0.5 and 0.75",
    ),
    "falling milestones": (lambda: bv.MultiStep((0.75, 0.5, 0.25)), r"rising within \[0, 1\]"),
    "a negative milestone": (lambda: bv.MultiStep((-0.5,)), r"rising within \[0, 1\]"),
    "too few factors": (
        lambda: bv.MultiStep(factors=(0.1,)),
        r"as many factors as milestones.*got \(0.1,\) for",
    ),
    "too many factors": (lambda: bv.MultiStep((0.5,), factors=(0.1, 0.01)), "as many factors as milestones"),
    "a negative factor": (lambda: bv.MultiStep(factor=-0.1), "factor of the rate must be at least 0"),
    "one negative factor": (
        lambda: bv.MultiStep((0.5,), factors=(-1,)),
        "factor of the rate must be at least 0",
    ),
    "a late peak": (lambda: bv.Triangle(2), "peak.*at most 1, got 2"),
    "an early peak": (lambda: bv.Triangle(-0.5), "peak.*at least 0.*got -0.5"),
    "a long warm-up": (lambda: bv.Cosine(warm_up=1.5), "warm_up.*at most 1, got 1.5"),
    "a negative floor": (lambda: bv.Cosine(floor=-1), "floor.*at least 0.*got -1"),
    "a negative value": (lambda: Pieces(values=(1.0, -1.0)), "value of Pieces.*at least 0, got -1.0"),
    "a large beta": (lambda: bv.AdamW(beta1=1.5), "beta1 must be at least 0 and below 1.*got 1.5"),
    "no memory's end": (lambda: bv.AdamW(beta2=1.0), "beta2 must be at least 0 and below 1.*got 1.0"),
    "a negative momentum": (lambda: bv.SGD(momentum=-0.1), "momentum must be at least 0 and below 1"),
    "nothing to look ahead": (lambda: bv.SGD(momentum=0.0, nesterov=True), "nesterov.*momentum, which is 0"),
    "an attack's beta": (lambda: Adam(beta1=1.0), "beta1 must be at least 0 and below 1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_schedules_and_optimisers_refuse_what_makes_no_sense(case):
    make, words = REFUSED[case]
    with pytest.raises(UserError, match=words):
        make()


def test_schedules_at_their_limits_are_rates_at_every_minibatch():
    ends = [bv.Triangle(0), bv.Triangle(1), bv.Cosine(1, 1), bv.MultiStep(()), bv.MultiStep((0, 0.5, 0.5, 1))]
    for rate in ends:
        assert all(0 <= value <= 1 for value in rates(rate, 3))


def test_adamw_is_torchs_own():
    model = torch.nn.Linear(2, 2)
    group = bv.AdamW(1e-3, weight_decay=0.1).make(model).param_groups[0]
    assert (group["lr"], group["weight_decay"], group["betas"]) == (1e-3, 0.1, (0.9, 0.999))


# groups ----------------------------------------------------------------------


@bv.part
class TwoRates:
    """The biases learn at a tenth of the rate."""

    lr: float = 0.1

    def make(self, model):
        split = {True: [], False: []}
        for p in model.parameters():
            split[p.ndim > 1].append(p)
        groups = [{"params": split[False], "lr": self.lr / 10}, {"params": split[True]}]
        return torch.optim.SGD(groups, self.lr, momentum=0.9)


class Shrinking(torch.optim.SGD):
    """Steps of size 1 / (1 + count); a parameter's count is a number, not a tensor."""

    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            count = self.state[p].setdefault("count", 0)
            p.data.sub_(p.grad, alpha=self.param_groups[0]["lr"] / (1 + count))
            self.state[p]["count"] = count + 1


@bv.part
class Counting:
    """An optimiser with state that is no tensor."""

    lr: float = 0.1

    def make(self, model):
        return Shrinking(model.parameters(), self.lr)


class Halving(torch.optim.SGD):
    """Halves its weight decay after every step, and counts its steps in the group."""

    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            group["weight_decay"] /= 2
            group["taken"] = group.get("taken", 0) + 1


@bv.part
class Forgetting:
    """An optimiser that changes values of its groups."""

    lr: float = 0.1

    def make(self, model):
        return Halving(model.parameters(), self.lr, weight_decay=0.5)


class Watched(Progress):
    """Keeps the rates of every minibatch."""

    def __init__(self) -> None:
        self.seen = []

    def step(self, session, record, lr):
        self.seen.append((lr, [group["lr"] for group in session.optimizer.param_groups]))


@pytest.mark.parametrize("rate", [bv.Triangle(), bv.MultiStep(), bv.Cosine(warm_up=0.3), bv.Flat()], ids=str)
def test_groups_keep_the_ratio_of_their_rates(rate):
    watched = Watched()
    train(None, optimizer=TwoRates(), rate=rate, epochs=2, progress=watched)
    assert len(watched.seen) == 6
    for lr, (slow, quick) in watched.seen:
        assert slow == pytest.approx(lr / 10, rel=1e-12)
        assert quick == lr


def whole_and_killed(folder, monkeypatch, optimizer):
    """Train in folder/whole to the end, and in folder/killed up to the fourth step."""
    train(folder / "whole", optimizer=optimizer)
    with monkeypatch.context() as patch:
        kill_at(patch, 4)
        with pytest.raises(Killed):
            train(folder / "killed", optimizer=optimizer)


def test_a_run_with_groups_resumes_to_the_bit_and_names_its_parameters(tmp_path, monkeypatch):
    whole_and_killed(tmp_path, monkeypatch, TwoRates())
    kept = newest(tmp_path / "killed" / "checkpoints").tensors
    assert {k for k in kept if k.startswith("optimizer.")} == {
        f"optimizer.network.stem.1.{name}.momentum_buffer" for name in ("weight", "bias")
    }
    bv.resume(tmp_path / "killed", dataset=digits())
    same(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize("optimizer", [Counting(), Forgetting()], ids=str)
def test_a_run_whose_optimiser_keeps_numbers_resumes_to_the_bit(tmp_path, monkeypatch, optimizer):
    whole_and_killed(tmp_path, monkeypatch, optimizer)
    bv.resume(tmp_path / "killed", dataset=digits())
    same(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize("value", [3, 0.1, True, None, torch.ones(2), [1.0], "late"], ids=str)
def test_state_of_an_optimiser_is_kept_or_refused(value):
    model = torch.nn.Linear(1, 1)
    here, there = (torch.optim.SGD(model.parameters(), 0.1) for _ in range(2))
    here.state[model.bias]["own"] = value
    if isinstance(value, list | str):
        with pytest.raises(UserError, match=r"SGD keeps bias\.own as (list|str), which a checkpoint cannot"):
            pack_optimizer(here, model)
        return
    tensors, numbers = pack_optimizer(here, model)
    unpack_optimizer(there, model, {**tensors, **json.loads(json.dumps(numbers))})
    found = there.state[model.bias]["own"]
    assert type(found) is type(value)
    assert torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"weight_decay": 0.25},
        {"dampening": 0.5, "own": True},
        {"betas": (0.8, 0.9)},
        {"maximize": None},
        {"own": "late"},
        {"own": torch.ones(1)},
    ],
    ids=str,
)
def test_what_an_optimiser_changes_in_its_groups_is_kept_or_refused(changed):
    model = torch.nn.Linear(1, 1)
    here, there = (torch.optim.SGD(model.parameters(), 0.1) for _ in range(2))
    for one in (here, there):
        remember_groups(one)
    here.param_groups[0] |= {"lr": 0.01, **changed}
    if isinstance(changed.get("own"), str | torch.Tensor):
        with pytest.raises(UserError, match=r"keeps groups\[0\]\.own as (str|Tensor), which a checkpoint"):
            pack_optimizer(here, model)
        return
    _, numbers = pack_optimizer(here, model)
    assert numbers == {f"groups[0].{key}": value for key, value in changed.items()}
    as_made = {k: v for k, v in there.param_groups[0].items() if k != "params"}
    unpack_optimizer(there, model, json.loads(json.dumps(numbers)))
    found = {k: v for k, v in there.param_groups[0].items() if k != "params"}
    assert found == as_made | changed  # the rate is that of the schedule
    unpack_optimizer(there, model, {})  # as the sentinel goes back to an earlier state
    assert {k: v for k, v in there.param_groups[0].items() if k in as_made and k != "params"} == as_made


@pytest.mark.parametrize("key", ["groups[0].params", "groups[0].lr", "groups[7].weight_decay"])
def test_a_checkpoint_sets_only_what_an_optimiser_may_have_changed(key):
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(KeyError, match=r"groups\[\d\]"):
        unpack_optimizer(optimizer, model, {key: 1.0})


def test_the_virtual_step_of_learned_weights_moves_each_group_at_its_own_rate():
    model = bv.models.create("tiny-cnn", num_classes=3, shape=(1, 8, 8), seed=0).double()
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(6, 1, 8, 8, generator=generator, dtype=torch.float64)
    batch = bv.Batch(
        x,
        torch.arange(6) % 3,
        torch.arange(6),
        None,
        bv.Batch(x.flip(0), torch.arange(6) % 3, torch.arange(6)),
    )
    bound = bv.methods.bilaw(bv.Linf(0.1), steps=0).bind(bv.Facts(12, (1, 8, 8), 3, dtype=torch.float64))
    problem = bv.LowerProblem(model.train(), batch, bound.objective, bound.threat)
    lr = learning_rates(TwoRates().make(model), model)
    assert set(lr.values()) == {0.1, 0.01}
    weights = torch.linspace(0.5, 1.5, 6, dtype=torch.float64).requires_grad_()
    slopes = [
        torch.autograd.grad(Lookahead(problem, bound, x, lr)(weights, second_order=second), weights)[0]
        for second in (False, True)
    ]
    torch.testing.assert_close(*slopes, rtol=1e-9, atol=1e-13)
    one = torch.autograd.grad(Lookahead(problem, bound, x, 0.1)(weights), weights)[0]
    assert (one - slopes[0]).abs().max() > 1e-6
