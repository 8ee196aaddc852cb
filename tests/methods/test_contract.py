"""Requirements on every method of the catalogue, tested over the registry."""

from __future__ import annotations

import copy
import json
from functools import cache
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from tests.methods.meter import Metered, promised
from torch import Tensor, nn

import bivallate as bv
from bivallate import L1, L2, Linf, Method, UserError
from bivallate.lower.problem import LowerProblem
from bivallate.lower.threat import Threat
from bivallate.method import BoundMethod
from bivallate.methods.entries import create, registry
from bivallate.types import Batch, Clock, Facts, StepRecord, Terms
from bivallate.upper.awp import AWP
from bivallate.upper.class_losses import Reweighed
from bivallate.upper.helper_examples import HelperExamples
from bivallate.upper.improved_kl import ImprovedKL
from bivallate.upper.loss import Loss, Mart, Trades
from bivallate.upper.smoothness_losses import Guided, LocallyLinear

NAMES = sorted(n for n, e in registry().items() if e.make.__module__.startswith("bivallate."))
LINF, EUCLIDEAN, SPARSE = Linf(0.05), L2(0.4), L1(2.0)
SIZE, CLASSES, ROWS = 8, 3, 20
K = 3
# every method at a small size and past its burn-in
SMALL: dict[str, Any] = {"steps": K, "replays": 2, "m": 2, "n": 2, "warm_up": 0, "hidden": (4,)}
BOXES_ONLY = {"done-adam", "done-fast", "done-gd", "done-pgd"}
# the law of the coefficient was fitted for Linf; with a coefficient of its own the method goes on
LAW_OF_THE_BOX = {"fast-at-ga": {"coefficient": 0.2}, "elle": {"coefficient": 10.0}}
# the threats beside LINF, EUCLIDEAN or SPARSE
OTHERS = {LINF: (EUCLIDEAN, SPARSE), EUCLIDEAN: (SPARSE, LINF), SPARSE: (LINF, EUCLIDEAN)}
# how to keep every example of an early-stopping attack moving to the end
PATIENT: dict[str, dict[str, Any]] = {
    "dynamic": {"c_max": 0.0},
    "fat": {"tau": K},
    "fat-trades": {"tau": K},
    "gair-fat": {"tau": (K, K, K)},
}


class Small(nn.Module):
    """A convolution, BatchNorm, a smooth activation, another BatchNorm without buffers, a linear layer."""

    def __init__(self, channels: int = 1, classes: int = CLASSES, seed: int = 0) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.loose = nn.BatchNorm2d(4, track_running_stats=False)
        self.act = nn.Softplus(beta=2)
        self.head = nn.Linear(64, classes)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, p in self.named_parameters():
                noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
                p.copy_(0.4 * noise + (1 if "weight" in name and p.ndim == 1 else 0))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.loose(self.act(self.norm(self.stem(x)))).flatten(1))


def small(name: str, threat: Threat = LINF, **more: Any) -> Method:
    """The method at test size."""
    known, usual = registry()[name].parameters, SMALL | {"others": OTHERS.get(threat, ())}
    return create(name, threat, **{**{k: v for k, v in usual.items() if k in known}, **more})


def minibatch(
    size: int,
    first: int = 0,
    *,
    channels: int = 1,
    classes: int = CLASSES,
    dtype: torch.dtype = torch.float64,
    meta: bool = True,
) -> Batch:
    """Rows first, first + 1, ...: some pixels at 0 and 1; with a second stream unless told otherwise."""
    generator = torch.Generator().manual_seed(17 + first + size)
    x = 1.2 * torch.rand(size, channels, SIZE, SIZE, generator=generator, dtype=torch.float64) - 0.1
    y = torch.randint(0, classes, (size,), generator=generator)
    where = {"channels": channels, "classes": classes, "dtype": dtype, "meta": False}
    second = minibatch(4, ROWS - 4, **where) if meta else None
    return Batch(x.clamp(0, 1).to(dtype), y, torch.arange(first, first + size), None, second)


def fed(method: Method, batch: Batch) -> Batch:
    """The batch as the method's trainer would hand it over: a second stream where it is needed alone."""
    meta = batch.meta if method.weighting.needs_meta else None
    return Batch(batch.x, batch.y, batch.index, batch.view, meta)


def facts(channels: int = 1, classes: int = CLASSES, dtype: torch.dtype = torch.float64) -> Facts:
    return Facts(ROWS, (channels, SIZE, SIZE), classes, torch.device("cpu"), dtype, 0, 3)


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)


def last_epoch(step: int, replay: int, epoch: int = 3) -> Clock:
    """A moment of the last of four epochs: every burn-in is over, every curriculum at its height."""
    return Clock(epoch, 4, step, 3, replay, seed=3)


class Recording(Loss):
    """A loss that keeps every pair (x, x_adv) it is asked about."""

    def __init__(self, loss: Any) -> None:
        self.loss, self.reuses_forward = loss, loss.reuses_forward
        self.seen: list[tuple[Tensor, Tensor]] = []

    def __call__(self, problem: LowerProblem, x_adv: Tensor) -> Terms:
        self.seen.append((problem.x.detach().clone(), x_adv.detach().clone()))
        return self.loss(problem, x_adv)


class Listening:
    """A running weighting whose weights are kept."""

    def __init__(self, rule: Any) -> None:
        self.rule, self.weights = rule, list[Tensor]()

    def __call__(self, evidence: Any) -> Tensor:
        weights = self.rule(evidence)
        self.weights.append(weights.detach().clone())
        return weights

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rule, name)


def step_through(model: nn.Module, bound: BoundMethod, batch: Batch, step: int = 0) -> list[StepRecord]:
    """One minibatch with all its replays."""
    optimizer = sgd(model)
    return [bv.train_step(model, optimizer, bound, batch, last_epoch(step, r)) for r in range(bound.replays)]


def equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Equal to the bit, plain values included."""
    assert a.keys() == b.keys()
    return all(
        torch.equal(v.nan_to_num(-7), b[k].nan_to_num(-7)) if isinstance(v, Tensor) else v == b[k]
        for k, v in a.items()
    )


def far(a: nn.Module, b: nn.Module) -> float:
    """The largest difference between parameters."""
    return max(
        float((p - q).detach().abs().max()) for p, q in zip(a.parameters(), b.parameters(), strict=True)
    )


# ---------------------------------------------------------------- runs, repeats, resumes


def run(name: str, stop: int | None = None) -> tuple[nn.Module, BoundMethod]:
    """Two epochs of 6, 6 and 1 rows; at call `stop` all is written to tensors and JSON, and built anew."""
    method = small(name)
    model, bound = Small().double().train(), method.bind(facts())
    optimizer, call = sgd(model), 0
    for epoch in (2, 3):
        for t, (size, first) in enumerate(((6, 0), (6, 6), (1, 12))):
            batch = fed(method, minibatch(size, first))
            for replay in range(method.replays):
                if call == stop:
                    model, optimizer, bound = revived(method, model, optimizer, bound)
                record = bv.train_step(model, optimizer, bound, batch, last_epoch(t, replay, epoch))
                assert torch.isfinite(torch.tensor([record.loss, record.weight_mean, record.effective])).all()
                call += 1
    return model, bound


def revived(
    method: Method, model: nn.Module, optimizer: torch.optim.SGD, bound: BoundMethod
) -> tuple[nn.Module, torch.optim.SGD, BoundMethod]:
    """Fresh ones that know only what was saved: gradients too, which replays may be adding up."""
    state = bound.state_dict()
    tensors = {k: v.contiguous() for k, v in state.items() if isinstance(v, Tensor)}
    plain = json.loads(json.dumps({k: v for k, v in state.items() if k not in tensors}))
    other, again = Small(seed=9).double().train(), method.bind(facts())
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    again.load_state_dict({**load(save(tensors)), **plain})
    for new, old in zip(other.parameters(), model.parameters(), strict=True):
        new.grad = None if old.grad is None else old.grad.clone()
    fresh = sgd(other)
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return other, fresh, again


@cache
def whole(name: str) -> tuple[nn.Module, BoundMethod]:
    """The run without interruption."""
    return run(name)


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_to_a_last_batch_of_one_and_repeats_to_the_bit(name: str) -> None:
    (model, bound), (again, other) = whole(name), run(name)
    assert far(model, Small().double()) > 1e-3, "nothing was learned"
    assert all(torch.isfinite(v).all() for v in model.state_dict().values())
    assert equal(model.state_dict(), again.state_dict())
    assert equal(bound.state_dict(), other.state_dict())


@pytest.mark.parametrize("stop", [1, 4])
@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_is_the_whole_run(name: str, stop: int) -> None:
    """Stop 1 lies between the replays of a minibatch, where there are any, and 4 in the second epoch, where
    there are none."""
    (model, bound), (parted, resumed) = whole(name), run(name, stop)
    assert equal(model.state_dict(), parted.state_dict())
    assert equal(bound.state_dict(), resumed.state_dict())


def test_the_methods_with_a_memory_have_one() -> None:
    remembering = {n for n in NAMES if whole(n)[1].state_dict()}
    assert remembering == {
        *("atta", "atta-trades", "free-at", "yopo", "cfa", "cfol", "dafa", "wat"),
        *("fgsm-pgi", "liet", "sora", "ikl", "hat", "lbgat", "e-at"),
        *("bilaw", "bilaw-trades", "done-adam", "done-fast", "done-gd", "done-pgd"),
    }


# ---------------------------------------------------------------- what one step leaves behind


@pytest.mark.parametrize("name", NAMES)
def test_a_step_leaves_the_model_as_it_was_found(name: str) -> None:
    method = small(name)
    model = Small().double().train()
    model.head.bias.requires_grad_(False)
    bias = model.head.bias.detach().clone()

    def flags() -> list[Any]:
        modes = [(m.training, getattr(m, "track_running_stats", None)) for m in model.modules()]
        hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
        return [modes, hooks, [(p.requires_grad, p.is_leaf, id(p)) for p in model.parameters()]]

    before = flags()
    step_through(model, method.bind(facts()), fed(method, minibatch(6)))
    assert flags() == before
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(model.head.bias, bias)
    assert model.loose.running_mean is None
    host = method.loss.loss if isinstance(method.loss, AWP | Reweighed) else method.loss
    forwards = (
        3
        if isinstance(host, HelperExamples)
        else 2
        if isinstance(host, Trades | Mart | Guided | ImprovedKL | LocallyLinear)
        else 1
    )
    # only the upper level's own passes move the running statistics
    assert int(model.norm.num_batches_tracked) == forwards * method.replays


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_finite_and_reach_every_parameter(name: str) -> None:
    model = Small().double()
    batch = minibatch(6)
    meta = None if batch.meta is None else (batch.meta.x, batch.meta.y)
    method = small(name)
    found = bv.upper_gradient(
        model,
        method,
        (batch.x, batch.y),
        clock=last_epoch(0, 0),
        meta=meta if method.weighting.needs_meta else None,
    )
    assert found.keys() == dict(model.named_parameters()).keys()
    for parameter, gradient in found.items():
        assert torch.isfinite(gradient).all(), parameter
        assert gradient.abs().max() > 0 or parameter == "stem.bias", parameter  # BatchNorm undoes that one


# ---------------------------------------------------------------- where the points lie, and whose they are


def beyond(method: Method, delta: Tensor) -> float:
    """How far training points lie out of their ball: N-FGSM's, and those of its kind, is wider by design.

    Of several balls each point is in one."""
    wider = 3.0 if method.name in ("n-fgsm", "aaer", "sora") else 1.0
    balls = method.solver.threats(method.threat)
    return float(torch.stack([ball.size(delta) - wider * ball.eps for ball in balls]).amin(0).max())


WORLDS: list[tuple[Threat, torch.dtype, int, int]] = [
    (LINF, torch.float64, 2, 3),
    (LINF, torch.float32, 43, 1),
    (EUCLIDEAN, torch.float32, 2, 1),
    (EUCLIDEAN, torch.float64, 43, 3),
    (SPARSE, torch.float32, 43, 1),
    (SPARSE, torch.float64, 2, 3),
]


@pytest.mark.parametrize("world", WORLDS, ids=lambda w: f"{type(w[0]).__name__}-{w[1]}-{w[2]}-{w[3]}")
@pytest.mark.parametrize("name", NAMES)
def test_points_are_feasible_in_every_norm_precision_and_shape(name: str, world: Any) -> None:
    threat, dtype, classes, channels = world
    more: dict[str, Any] = {}
    if not isinstance(threat, Linf):
        if name in BOXES_ONLY | LAW_OF_THE_BOX.keys():
            with pytest.raises(UserError, match="Linf"):
                small(name, threat)
        if name in BOXES_ONLY:
            return
        more = LAW_OF_THE_BOX.get(name, {})
    method = small(name, threat, **more)
    recording = Recording(method.loss)
    model = Small(channels, classes).to(dtype).train()
    bound = method.but(loss=recording).bind(facts(channels, classes, dtype))
    batch = fed(method, minibatch(6, channels=channels, classes=classes, dtype=dtype))
    records = step_through(model, bound, batch)
    assert all(torch.isfinite(torch.tensor(r.loss)) for r in records)
    assert all(torch.isfinite(p).all() and p.dtype == dtype for p in model.parameters())
    slack = 1e-6 if dtype == torch.float32 else 1e-12
    slack *= 10 if threat is SPARSE else 1  # a sum over pixels, each of them rounded
    moved = 0.0
    for x, x_adv in recording.seen:
        assert x_adv.dtype == dtype
        assert x_adv.min() >= 0
        assert x_adv.max() <= 1 + slack
        assert beyond(method, x_adv - x) <= slack
        moved = max(moved, float(threat.size(x_adv - x).max()))
    assert (moved > 0.2 * threat.eps) == (name != "plain")


@pytest.mark.parametrize("name", NAMES)
def test_permuting_the_minibatch_permutes_points_and_weights(name: str) -> None:
    """Every replay of one minibatch in a fresh run. Across minibatches Free-AT's perturbations stay with the
    position instead: that is the method."""
    method, batch = small(name), minibatch(6)
    batch = fed(method, batch)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    found = []
    for rows in (torch.arange(6), order):
        model, recording = Small().double().train(), Recording(method.loss)
        bound = method.but(loss=recording).bind(facts())
        bound.weighting = listening = Listening(bound.weighting)  # pyright: ignore
        step_through(model, bound, Batch(batch.x[rows], batch.y[rows], batch.index[rows], None, batch.meta))
        found.append((model, recording.seen, listening.weights))
    (a, points, weights), (b, moved, weighed) = found
    assert len(points) == len(moved)
    for (x, one), (z, two) in zip(points, moved, strict=True):
        training = len(x) == 6  # the others are the second stream's, which was left in order
        assert torch.equal(z, x[order] if training else x)
        assert (two - (one[order] if training else one)).abs().max() < 1e-9
    for one, two in zip(weights, weighed, strict=True):
        torch.testing.assert_close(two, one[order], rtol=1e-8, atol=1e-10)
    assert far(a, b) < 1e-9


# ---------------------------------------------------------------- cost


ALTERNATE = {"gat", "nuat"}  # guided in odd minibatches alone, which cost a forward more
LOOKS = {"liet": CLASSES}  # passes for images of no row, made once in several minibatches


def passes(name: str, step: int = 0, **more: Any) -> tuple[int, int]:
    """(forwards, backwards) an example of every replay, by hooks; the package's own count must agree."""
    method, rows = small(name, **more), 5
    model = Metered(Small().double()).train()
    bound, batch = method.bind(facts()), fed(method, minibatch(rows))
    if batch.meta is not None:  # as many rows, so that the two streams cost alike
        batch = Batch(batch.x, batch.y, batch.index, None, minibatch(rows, 12, meta=False))
    records = step_through(model, bound, batch, step)
    total = records[0].passes
    for record in records[1:]:
        assert record.passes == total, "every replay costs the same"
    meter = model.meter
    assert meter.forward == sum(r.passes.forward for r in records)
    assert meter.backwards == sum(r.passes.backward for r in records)
    looks = LOOKS.get(name, 0)
    assert (total.forward - looks) % rows == 0 or name in PATIENT
    return (total.forward - looks) / rows, (total.backward - looks) / rows  # pyright: ignore


@pytest.mark.parametrize("name", NAMES)
def test_costs_what_its_card_says(name: str) -> None:
    """Methods that stop early cost at most what the card says, and just that when no example stops."""
    cost = registry()[name].cost
    most, spent = promised(cost, K, threats=1 + len(OTHERS[LINF])), passes(name)
    assert ("at most" in cost or "<=" in cost) == (name in PATIENT.keys() | ALTERNATE)
    if name in ALTERNATE:
        assert spent == (most[0] - 1, most[1])
        assert passes(name, step=1) == most
    elif name in PATIENT:
        assert spent[0] <= most[0]
        assert spent[1] <= most[1]
        assert most[0] - spent[0] == pytest.approx(most[1] - spent[1]), "an ascent is one of each"
        assert passes(name, **PATIENT[name]) == most
    else:
        assert spent == most


@pytest.mark.parametrize(
    ("name", "parameters", "cost"),
    [
        ("wmmr", {"base": "trades"}, "(K+3)F + (K+2)B"),
        ("mail-at", {"margin": "natural"}, "(K+2)F + (K+1)B"),
        ("atta-trades", {"attack_loss": "kl"}, "(K+3)F + (K+2)B"),
        ("trades-awp", {"warm_up": 10}, "(K+3)F + (K+2)B"),
    ],
)
def test_options_cost_what_the_docstring_says(name: str, parameters: dict[str, Any], cost: str) -> None:
    assert passes(name, **parameters) == promised(cost, K)


def test_the_benchmark_of_passes_knows_every_method() -> None:
    from benchmarks.passes import catalogue

    assert sorted(catalogue(K)) == NAMES
