"""Free-AT, YOPO and ATTA: references, reductions, invariants, traps and stored perturbations."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from tests.methods.glue import CLASSES, EPS, SHAPE, Net, agree, gap, minibatches, train
from tests.reference import amortised
from torch import Tensor, nn

import bivallate as bv
from bivallate import L2, PGD, Linf, UserError, methods, models
from bivallate.data.augment import Augment, View
from bivallate.evidence import evidence_of
from bivallate.lower.atta import PerExample
from bivallate.lower.problem import LowerProblem
from bivallate.lower.replay import YOPO
from bivallate.lower.start import gaussian
from bivallate.method import BoundMethod
from bivallate.methods.entries import create
from bivallate.noise import Noise
from bivallate.types import Batch, Clock, Facts
from bivallate.upper.regulariser import grad_align

THREAT = Linf(EPS)


def facts(rows: int = 15, padding: int = 0, shape: tuple[int, int, int] = SHAPE) -> Facts:
    return Facts(rows, shape, CLASSES, torch.device("cpu"), torch.float64, padding)


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def clocks(method: bv.Method, steps: int, epoch: int = 0) -> list[Clock]:
    return [Clock(epoch, 12, t, steps, replay) for t in range(steps) for replay in range(method.replays)]


# Free-AT


@pytest.mark.parametrize("replays", [1, 3, 8])
@pytest.mark.parametrize("sizes", [(6, 6, 3), (6, 3, 6)])
def test_free_reference(replays: int, sizes: tuple[int, ...]) -> None:
    method = methods.free_at(THREAT, replays=replays)
    left = agree(method, amortised.free, replays=replays, batches=minibatches(sizes), lr=0.02)
    for record in left.records:
        assert (record.passes.forward, record.passes.backward) == (record.examples, record.examples)
    assert left.bound.solver.kept.delta.abs().max() > 0.5 * EPS  # pyright: ignore


def test_free_leaves_plain_training_after_its_first_minibatch() -> None:
    data, method = minibatches((6, 6)), methods.free_at(THREAT, replays=1)
    assert gap(train(Net(), method, data).model, train(Net(), methods.plain(THREAT), data).model) > 0


def test_free_takes_the_gradient_before_the_parameter_step_and_stays_feasible() -> None:
    model, method = Net(norm=False), methods.free_at(THREAT, replays=2)
    bound, (x, y, index) = method.bind(facts()), minibatches()[0]
    before = copy.deepcopy(model)
    bv.train_step(model.train(), sgd(model), bound, Batch(x, y, index), Clock())
    problem = LowerProblem(before, Batch(x, y, index), method.objective, THREAT)
    _, grad = problem.logits_and_gradient(torch.zeros_like(x))
    delta = bound.solver.kept.delta  # pyright: ignore
    assert torch.equal(delta, THREAT.project(EPS * grad.sign(), x))
    carried = bound.solver.solve(LowerProblem(model, Batch(1 - x, y, index), method.objective, THREAT)).delta
    assert torch.equal(carried, THREAT.project(delta, 1 - x)), "clipped again to the new images"
    assert not torch.equal(carried, delta)


def test_free_grows_with_a_longer_minibatch() -> None:
    data = minibatches((3, 6))
    left = train(Net(), methods.free_at(THREAT, replays=2), data)
    assert left.bound.solver.kept.delta.shape == (6, *SHAPE)  # pyright: ignore


@pytest.mark.parametrize("make", [methods.free_at, methods.yopo])
def test_a_kept_perturbation_is_of_one_size(make: Any) -> None:
    with pytest.raises(UserError, match="of images of one size: train without phases"):
        make(THREAT).bind(Facts(6, (1, 6, 6), 3, resizes=True))


def test_free_refuses_what_it_cannot_use() -> None:
    method = methods.free_at(THREAT)
    with pytest.raises(UserError, match="needs the coupling Leaf"):
        method.but(coupling=bv.Detached())
    with pytest.raises(UserError, match="accumulate=False"):
        method.but(accumulate=True)
    with pytest.raises(UserError, match="second stream"):
        method.but(weighting=NeedsMeta())
    with pytest.raises(UserError, match="belongs to one run"):
        method.solver.solve(LowerProblem(Net(), Batch(*minibatches()[0]), method.objective, THREAT))


class NeedsMeta(bv.Equal):
    needs_meta = True


# YOPO


@pytest.mark.parametrize(("m", "n"), [(5, 3), (2, 1), (3, 0), (1, 4)])
@pytest.mark.parametrize("first_layer", ["hamiltonian", "both"])
@pytest.mark.parametrize("norm", [True, False])
def test_yopo_reference(m: int, n: int, first_layer: Any, norm: bool) -> None:
    method = methods.yopo(THREAT, m=m, n=n, first_layer=first_layer)
    left = agree(
        method, amortised.yopo, model=Net(norm), m=m, n=n, sigma=EPS / 4, first_layer=first_layer, lr=0.1 / m
    )
    assert len(left.records) == 3 * m
    for record in left.records:
        assert (record.passes.forward, record.passes.backward) == (record.examples, record.examples)


@pytest.mark.parametrize("first_layer", ["hamiltonian", "both"])
@pytest.mark.parametrize("norm", [True, False])
def test_yopo_with_the_loss_of_trades(first_layer: Any, norm: bool) -> None:
    method = methods.yopo(THREAT, m=3, n=2, first_layer=first_layer).but(loss=bv.Trades(4.0))
    hyper = {"m": 3, "n": 2, "sigma": EPS / 4, "first_layer": first_layer, "beta": 4.0}
    agree(method, amortised.yopo, model=Net(norm), lr=0.03, **hyper)


def test_yopo_keeps_what_the_loss_asks_of_other_points() -> None:
    plain = train(Net(norm=False), methods.plain(THREAT), minibatches()).model
    method = methods.yopo(THREAT, m=1, n=1).but(loss=bv.Trades(0.0))
    assert gap(train(Net(norm=False), method, minibatches()).model, plain) < 1e-12
    assert gap(Net(norm=False).stem, plain.get_submodule("stem")) > 1e-3
    anchored = methods.yopo(THREAT, m=1, n=0).but(
        loss=grad_align(bv.Adversarial(), 0.5)
    )  # n = 0: delta stays
    whole = methods.at(THREAT, steps=0, attack_mode="train").but(loss=anchored.loss)
    ends = [train(Net(norm=False), each, minibatches()).model for each in (anchored, whole)]
    assert gap(*ends) < 1e-12


def path_of(method: bv.Method, model: nn.Module, batch: Batch) -> list[Tensor]:
    """delta after each replay of one minibatch."""
    shape = (int(batch.x.shape[1]), int(batch.x.shape[2]), int(batch.x.shape[3]))
    bound, out, optimizer = method.bind(facts(shape=shape)), [], sgd(model)
    for clock in clocks(method, 1):
        bv.train_step(model.train(), optimizer, bound, batch, clock)
        out.append(bound.solver.kept.delta.clone())  # pyright: ignore
    return out


@pytest.mark.parametrize("threat", [THREAT, L2(0.3)])
def test_yopo_with_one_inner_step_walks_as_pgd(threat: Linf | L2) -> None:
    model = Net(norm=False)
    batch = Batch(*minibatches()[0])
    before = copy.deepcopy(model)
    path = path_of(methods.yopo(threat, m=4, n=1), model, batch)
    for k, delta in enumerate(path, start=1):
        pgd = methods.at(threat, steps=k)
        found = pgd.solver.solve(LowerProblem(before, batch, pgd.objective, threat))
        assert (found.delta - delta).abs().max() < 1e-12


def test_yopo_with_an_affine_first_layer_walks_as_pgd_with_longer_steps() -> None:
    model = models.create("tiny-cnn", num_classes=3, shape=(1, 8, 8), mean=0.4, std=0.3, seed=0).double()
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(6, 1, 8, 8, generator=generator, dtype=torch.float64)
    batch, threat = Batch(x, torch.arange(6) % 3, torch.arange(6)), Linf(0.1)
    before = copy.deepcopy(model)
    path = path_of(methods.yopo(threat, m=3, n=3, step_size=0.05), model, batch)
    pgd = methods.at(threat, steps=3, step_size=0.15)
    found = pgd.solver.solve(LowerProblem(before, batch, pgd.objective, threat)).delta
    assert (found - path[-1]).abs().max() < 1e-12
    assert (found.abs() < 0.099).double().mean() > 0.2, "not all of it lies on the bound"


def test_yopo_leaves_no_hook_and_no_mode_behind() -> None:
    model = Net().train()
    train(model, methods.yopo(THREAT, m=2, n=2), minibatches())
    assert not model._forward_pre_hooks
    assert not model.stem._forward_hooks
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())


def test_yopo_hears_the_adversarial_pass_among_others() -> None:
    from bivallate.upper.loss import Trades

    batch, losses = Batch(*minibatches()[0]), []
    method = methods.yopo(THREAT, m=1, n=1)
    for loss in (method.loss, Trades(beta=0.0), Trades(beta=6.0)):
        losses.append(path_of(method.but(loss=loss), Net(norm=False), batch)[0])
    assert not torch.equal(losses[0], losses[2])
    start = method.solver.start(LowerProblem(Net(), batch, method.objective, THREAT))  # pyright: ignore
    assert torch.equal(losses[1], THREAT.project(start, batch.x)), "a robust part of weight 0 moves nothing"


def test_yopo_recovers_from_a_step_that_failed() -> None:
    model, method = Net(), methods.yopo(THREAT, m=1, n=1)
    bound, (x, y, index) = method.bind(facts()), minibatches()[0]
    with pytest.raises(IndexError):
        bv.train_step(model.train(), sgd(model), bound, Batch(x, y + 10, index), Clock())
    model.zero_grad()
    bv.train_step(model.train(), sgd(model), bound, Batch(x, y, index), Clock())
    assert not model._forward_pre_hooks


def test_yopo_refuses_what_it_cannot_use() -> None:
    method = methods.yopo(THREAT)
    with pytest.raises(UserError, match="accumulate=True"):
        method.but(accumulate=False)
    with pytest.raises(UserError, match="needs the coupling Detached"):
        method.but(coupling=bv.Leaf())
    with pytest.raises(UserError, match="second stream"):
        method.but(weighting=NeedsMeta())
    with pytest.raises(UserError, match="did you mean 'both'"):
        YOPO(first_layer="bth")  # pyright: ignore
    unnamed = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).double()
    with pytest.raises(UserError, match=r"does not name it.*stem"):
        train(unnamed, method, minibatches())


# ATTA

PAD, ROWS = 2, 15


def padded() -> tuple[Tensor, list[tuple[Tensor, ...]], list[Batch]]:
    """(natural canvases, views, minibatches cut from them): three epochs of 15 rows, a short last one."""
    generator = torch.Generator().manual_seed(4)
    images = torch.rand(ROWS, *SHAPE, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, CLASSES, (ROWS,), generator=generator)
    augment = Augment(pad=PAD, flip=True, fill=0.5)
    canvases, views, batches = augment.canvas(images), [], []
    for epoch in range(3):
        for rows in torch.randperm(ROWS, generator=generator).split([6, 6, 3]):
            view = augment.view(Noise(0, rows, epoch), SHAPE)
            views.append((view.top, view.left, view.flip))
            batches.append(Batch(view.apply(canvases[rows]), labels[rows], rows, view))
    return canvases, views, batches


EPOCHS = [0, 0, 0, 1, 1, 1, 2, 2, 2]


def straight_atta(model: nn.Module, batches: Any, _: Any, **hyper: Any) -> Any:
    """The reference, fed with the package's draws."""
    canvases, views, _ = padded()

    def draw(purpose: str, epoch: int, like: Tensor, index: Tensor) -> Tensor:
        assert purpose == "bank:normal"
        return Noise(0, index, epoch).normal("start", tuple(like.shape[1:]), torch.float64)

    plain = [(b.x, b.y, b.index) for b in batches]
    return amortised.atta(
        model, plain, draw, canvases=canvases, views=views, epochs=EPOCHS[: len(plain)], **hyper
    )


@pytest.mark.parametrize(("steps", "reset"), [(1, 10), (2, 2), (1, None), (2, 1)])
def test_atta_reference(steps: int, reset: int | None) -> None:
    batches, bank = padded()[2], []
    method = methods.atta(THREAT, steps=steps, step_size=0.25, reset=reset)
    hyper = {"steps": steps, "alpha": EPS / 4, "reset": reset, "batches": batches, "epoch": EPOCHS}
    left = agree(method, straight_atta, epochs=3, facts=facts(ROWS, PAD), bank=bank, **hyper)
    stored = left.bound.solver.bank - (bank[0] - padded()[0])  # pyright: ignore
    assert stored.abs().max() < 1e-12
    for record in left.records:
        assert record.passes.forward == record.passes.backward == (steps + 1) * record.examples


@pytest.mark.parametrize("attack_loss", ["ce", "kl"])
def test_atta_trades_reference(attack_loss: Any) -> None:
    method = methods.atta_trades(THREAT, step_size=0.25, attack_loss=attack_loss)
    hyper = {"alpha": EPS / 4, "host": "trades", "attack_loss": attack_loss, "batches": padded()[2]}
    left = agree(method, straight_atta, epoch=EPOCHS, epochs=3, facts=facts(ROWS, PAD), **hyper)
    record = left.records[0]
    assert record.passes.backward == 3 * record.examples
    assert record.passes.forward == (3 if attack_loss == "ce" else 4) * record.examples


def test_without_a_reset_atta_leaves_at_in_its_second_epoch() -> None:
    data = minibatches() + minibatches()
    where = {"epoch": [0, 0, 0, 1, 1, 1], "epochs": 2}
    host = methods.at(THREAT, steps=3).but(solver__start=gaussian)
    kept = methods.atta(THREAT, steps=3, step_size=0.25, reset=None)
    assert gap(train(Net(), kept, data, **where).model, train(Net(), host, data, **where).model) > 0


def test_resets_are_counted_from_one() -> None:
    solver = PerExample(PGD(1, 0.1), reset=10).bind(facts())
    assert [solver._last_reset(e) for e in (0, 8, 9, 18, 19, 37)] == [0, 0, 9, 9, 19, 29]
    assert PerExample(PGD(1, 0.1), reset=None).bind(facts())._last_reset(99) == 0


def test_only_the_window_is_overwritten() -> None:
    method, (_, _, batches) = methods.atta(THREAT), padded()
    bound, model, batch = method.bind(facts(ROWS, PAD)), Net(), batches[0]
    bv.train_step(model.train(), sgd(model), bound, batch, Clock())
    bank = bound.solver.bank[batch.index]  # pyright: ignore
    fresh = 0.001 * Noise(0, batch.index).normal("start", tuple(bank.shape[1:]), torch.float64)
    inside = batch.view.write(torch.zeros_like(bank), torch.ones_like(batch.x)).bool()
    assert torch.equal(bank[~inside], fresh[~inside])
    assert (bank[inside] != fresh[inside]).double().mean() > 0.99
    assert torch.equal(batch.view.apply(batch.view.write(bank.clone(), batch.x)), batch.x)


def test_half_precision_moves_little_and_stays_feasible() -> None:
    batches, banks = padded()[2], []
    for half in (False, True):
        left = train(
            Net(), methods.atta(THREAT, half=half), batches, epoch=EPOCHS, epochs=3, facts=facts(ROWS, PAD)
        )
        banks.append(left.bound.solver.bank)  # pyright: ignore
    assert banks[1].dtype == torch.float16
    rounded = (banks[0] - banks[1].double()).abs()
    assert rounded.median() < 2e-5
    assert rounded.max() > 0


def test_atta_writes_what_the_step_trained_on() -> None:
    method = methods.atta(THREAT).but(coupling=bv.LastStep(0.05))
    bound, model, batch = method.bind(facts()), Net(), Batch(*minibatches()[0])
    problem = LowerProblem(model, batch, method.objective, THREAT)
    solution = bound.solver.solve(problem)
    coupled = method.coupling(problem, solution)
    delta = coupled.delta
    terms = method.loss(problem.with_solution(coupled), batch.x + delta)
    bound.solver.feedback(problem, delta, evidence_of(problem, terms, solution))
    assert torch.equal(bound.solver.bank[batch.index], delta.detach())  # pyright: ignore
    assert not torch.equal(delta, solution.delta)


def test_atta_refuses_what_it_cannot_use() -> None:
    method = methods.atta(THREAT)
    with pytest.raises(UserError, match="second stream"):
        method.but(weighting=NeedsMeta())
    with pytest.raises(UserError, match="reset must be at least 1"):
        methods.atta(THREAT, reset=0)
    with pytest.raises(UserError, match="did you mean 'kl'"):
        methods.atta_trades(THREAT, attack_loss="k")  # pyright: ignore
    with pytest.raises(UserError, match="padding of the augmentation"):
        train(Net(), method, padded()[2], facts=facts(ROWS, 0))
    with pytest.raises(UserError, match="padding of the augmentation"):
        train(Net(), method, minibatches(), facts=facts(ROWS, PAD))
    turned = View(*padded()[1][0], SHAPE[1:], PAD, torch.full((6,), 5.0))  # pyright: ignore
    batch = padded()[2][0]
    with pytest.raises(UserError, match="rotated"):
        train(Net(), method, [Batch(batch.x, batch.y, batch.index, turned)], facts=facts(ROWS, PAD))


# what all of them remember


def run(
    method: bv.Method, data: list[Batch], padding: int, stop: int | None
) -> tuple[nn.Module, BoundMethod]:
    """Trains; at call `stop` everything is saved and rebuilt from what was saved."""
    model, bound = Net(), method.bind(facts(ROWS, padding))
    optimizer = sgd(model)
    for call, clock in enumerate(clocks(method, len(data))):
        if call == stop:
            saved = copy.deepcopy([model.state_dict(), optimizer.state_dict(), bound.state_dict()])
            grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
            model, bound = Net(seed=9), method.bind(facts(ROWS, padding))
            optimizer = sgd(model)
            for part, state in zip((model, optimizer, bound), saved, strict=True):
                part.load_state_dict(state)  # pyright: ignore
            for parameter, grad in zip(model.parameters(), grads, strict=True):
                parameter.grad = grad
        bv.train_step(model.train(), optimizer, bound, data[clock.step], clock)
    return model, bound


@pytest.mark.parametrize("stop", [1, 3, 4])
@pytest.mark.parametrize("name", ["free-at", "yopo", "atta", "atta-trades"])
def test_a_resumed_run_goes_on_as_if_nothing_had_happened(name: str, stop: int) -> None:
    parameters: dict[str, dict[str, Any]] = {"free-at": {"replays": 3}, "yopo": {"m": 3, "n": 2}}
    method = create(name, THREAT, **parameters.get(name, {}))
    padding = PAD if name.startswith("atta") else 0
    data = padded()[2][:6] if padding else [Batch(*b) for b in minibatches()]
    whole, memory = run(method, data, padding, None)
    parted, resumed = run(method, data, padding, stop)
    assert gap(whole, parted) == 0
    state = resumed.state_dict()
    assert state
    for key, value in memory.state_dict().items():
        assert torch.equal(value, state[key])


@pytest.mark.parametrize("name", ["free-at", "yopo", "atta", "atta-trades"])
def test_they_can_be_written_down_share_nothing_and_take_one_row(name: str) -> None:
    method = create(name, THREAT)
    assert bv.Method.from_dict(method.to_dict()) == method
    a, b = method.bind(facts()), method.bind(facts())
    for key, value in a.state_dict().items():
        assert value.data_ptr() != b.state_dict()[key].data_ptr() or value.numel() == 0
    records = train(Net(), method, minibatches((4, 1))).records
    assert all(torch.isfinite(torch.tensor(r.loss)) for r in records)


def test_memories_reach_in_l2() -> None:
    for make in (partial(methods.free_at, replays=2), methods.yopo, methods.atta):
        left = train(Net(), make(L2(0.3)), minibatches())
        state = left.bound.state_dict()
        key = "solver.bank" if "solver.bank" in state else "solver.kept.delta"
        sizes = state[key].flatten(1).norm(dim=1)
        assert 0.1 < sizes.max() <= 0.3 + 1e-9
