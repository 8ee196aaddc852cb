"""BiLAW, BiLAW-TRADES, non-parametric reweighting: references, meta-gradient, learned state, saving."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from tests.methods.glue import CLASSES, EPS, SHAPE, Net, Trained, draws, gap, minibatches, train
from tests.methods.meter import Metered
from tests.reference import reweighted as reference
from tests.reference.plainsgd import MiniBatch
from torch import Tensor

import bivallate as bv
from bivallate import Linf, UserError, methods
from bivallate.lower.functional import Functional
from bivallate.lower.problem import LowerProblem
from bivallate.method import Method
from bivallate.noise import Noise
from bivallate.parts import decode, encode, part
from bivallate.types import Batch, Clock, Evidence, Facts
from bivallate.upper.awp import AWP
from bivallate.upper.loss import Trades, adversarial
from bivallate.weighting.base import After
from bivallate.weighting.descent import AdamDescent, Descent
from bivallate.weighting.lookahead import Lookahead, second_stream
from bivallate.weighting.margin_net import BoundMarginNet, Correlation, MarginNet

THREAT = Linf(EPS)
FACTS = Facts(15, SHAPE, CLASSES, dtype=torch.float64)
META = minibatches((5, 5, 4), seed=7)


def with_meta(batches: Sequence[MiniBatch], meta: Sequence[MiniBatch] = META) -> list[Batch]:
    """Minibatches of both streams; their rows carry the same numbers."""
    return [Batch(*b, meta=Batch(*m)) for b, m in zip(batches, meta, strict=True)]


def both_draws(purpose: str, step: int, like: Tensor, index: Tensor) -> Tensor:
    """The package's draws, for the second stream at its own turn."""
    if not purpose.startswith("meta-"):
        return draws()(purpose, step, like, index)
    noise, kind = second_stream(Clock(step=step, steps=3), index), purpose.rsplit(":", 1)[1]
    made = noise.uniform if kind == "uniform" else noise.normal
    return made("start", tuple(like.shape[1:]), torch.float64)


def initial(rule: MarginNet, seed: int = 0) -> list[Tensor]:
    """The weighting network's first parameters, in the reference's order."""
    network = rule.bind(FACTS)
    network.draw(seed)
    return [p.detach().clone() for p in network.parameters()]


def compare(method: Method, transcription: Any, norm: bool = True, **hyper: Any) -> Trained:
    """Package and reference, three momentum updates."""
    mine, theirs = Net(norm), Net(norm).train()
    trained = train(mine, method, with_meta(minibatches()))
    transcription(theirs, minibatches(), both_draws, meta=META, eps=EPS, lr=0.1, **hyper)
    assert gap(mine, Net(norm)) > 1e-3
    assert gap(mine, theirs) <= 1e-10
    return trained


# ---------------------------------------------------------------- references


@pytest.mark.parametrize("second_order", [False, True])
@pytest.mark.parametrize("host", ["at", "trades"])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize(
    "mover", [("descent", 100.0, 0.0), ("descent", 300.0, 1e-4), ("adam", 0.05, 0.0), ("adam", 0.05, 1e-4)]
)
def test_bilaw(second_order, host, norm, mover) -> None:
    make = methods.bilaw if host == "at" else methods.bilaw_trades
    kind, lr, decay = mover
    method = make(THREAT, second_order=second_order, net_optimizer=kind, net_lr=lr, net_weight_decay=decay)
    mu = initial(method.weighting)
    given = {"mu_optimizer": kind, "mu_lr": method.weighting.optimizer.lr, "mu_weight_decay": decay}
    trained = compare(method, reference.bilaw, norm, mu=mu, host=host, **given)
    learned = trained.bound.weighting
    assert isinstance(learned, BoundMarginNet)
    for mine, theirs in zip(learned.parameters(), mu, strict=True):
        torch.testing.assert_close(mine.detach(), theirs.detach(), rtol=0, atol=1e-9)
    moved = [(a.detach() - b).abs().max() for a, b in zip(mu, initial(method.weighting), strict=True)]
    assert max(moved) > 0.1, "the network has learned, so the comparison means something"


@pytest.mark.parametrize("hidden", [(64,), (64, 64)])
def test_bilaw_on_adversarial_margins(hidden) -> None:
    method = methods.bilaw(THREAT, hidden=hidden, margins_from="adversarial")
    compare(method, reference.bilaw, mu=initial(method.weighting), margins_from="adv")


@pytest.mark.parametrize("second_order", [False, True])
@pytest.mark.parametrize("norm", [True, False])
def test_non_parametric(second_order, norm) -> None:
    trained = compare(
        methods.non_parametric(THREAT, second_order=second_order), reference.nonparametric, norm
    )
    assert 0 < trained.records[0].logged["helpful"] < 1, "some gradients help and some do not"


# ---------------------------------------------------------------- reductions


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (methods.bilaw(THREAT), methods.at(THREAT)),
        (methods.bilaw_trades(THREAT), methods.trades(THREAT)),
    ],
    ids=lambda m: m.name,
)
def test_a_constant_network_is_the_host(one, two) -> None:
    a, b = Net(), Net()
    bound = one.bind(FACTS)
    bound.weighting.drawn.fill_(True)  # all weights zero: omega is 1/2 everywhere, and its gradient vanishes
    optimizer = torch.optim.SGD(a.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    a.train()
    for t, batch in enumerate(with_meta(minibatches())):
        bv.train_step(a, optimizer, bound, batch, Clock(0, 1, t, 3))
    assert gap(a, train(b, two, minibatches()).model) <= 1e-12
    for p in bound.weighting.parameters():
        assert p.abs().max() < 1e-9, "no gradient but rounding along a common factor"


# ---------------------------------------------------------------- the meta-gradient


def looking(method: Method, norm: bool = True) -> tuple[Lookahead, Net]:
    """A lookahead at one minibatch, and its network."""
    net = Net(norm).train()
    batch = with_meta(minibatches())[0]
    x_adv = (batch.x + 0.01).clamp(0, 1)
    bound = method.bind(FACTS)
    problem = LowerProblem(net, batch, bound.objective, bound.threat)
    return Lookahead(problem, bound, x_adv, lr=0.1), net


@pytest.mark.parametrize("loss", [adversarial, Trades(6.0)], ids=["at", "trades"])
@pytest.mark.parametrize("norm", [True, False])
def test_derivative_in_the_weights(loss, norm) -> None:
    """Jacobian-vector product = second-order graph = finite differences.

    Without attack steps, so that the attacked point does not jump with the weights.
    """
    method = methods.bilaw(THREAT, steps=0).but(loss=loss)
    lookahead, _ = looking(method, norm)
    w = torch.linspace(0.5, 1.5, 6, dtype=torch.float64).requires_grad_()
    assert lookahead(w).detach() == lookahead(w, second_order=True).detach()
    product = torch.autograd.grad(lookahead(w), w)[0]
    graph = torch.autograd.grad(lookahead(w, second_order=True), w)[0]
    torch.testing.assert_close(product, graph, rtol=1e-10, atol=1e-14)
    assert product.abs().min() > 1e-6
    h = 1e-5
    for j in range(len(w)):
        step = h * torch.nn.functional.one_hot(torch.tensor(j), len(w))
        up, down = lookahead(w.detach() + step), lookahead(w.detach() - step)
        assert float(up - down) / (2 * h) == pytest.approx(float(product[j]), rel=1e-6, abs=1e-10)


@pytest.mark.parametrize(
    "inputs", ["multiclass-margin", "scalar-margin", "adversarial-loss", "loss-difference"]
)
def test_derivative_in_the_network(inputs) -> None:
    """d loss / d mu through the normalised weights, against finite differences in every layer."""
    rule = MarginNet((8,), inputs)
    lookahead, net = looking(methods.bilaw(THREAT, steps=0))
    network = rule.bind(FACTS)
    network.draw(3)
    logits, y = net(lookahead.x_adv), lookahead.problem.batch.y
    evidence = Evidence(
        torch.zeros(6, dtype=torch.float64),
        logits.detach(),
        y,
        y,
        y,
        Clock(),
        lambda: net(lookahead.problem.x),
    )
    features = rule.features(evidence).detach()
    assert features.shape == (6, CLASSES if inputs == "multiclass-margin" else 1)

    def value(second_order: bool = False) -> Tensor:
        omega = network.omega(features)
        return lookahead(omega / omega.mean(), second_order=second_order)

    def plain() -> float:
        return float(value().detach())

    parameters = list(network.parameters())
    product = torch.autograd.grad(value(), parameters, materialize_grads=True)
    graph = torch.autograd.grad(value(True), parameters, materialize_grads=True)
    checked = 0
    for p, g, g2 in zip(parameters, product, graph, strict=True):
        torch.testing.assert_close(g, g2, rtol=1e-9, atol=1e-14)
        k = int(g.abs().argmax())
        flat, h = p.data.view(-1), 1e-5
        flat[k] += h
        up = plain()
        flat[k] -= 2 * h
        down = plain()
        flat[k] += h
        assert (up - down) / (2 * h) == pytest.approx(float(g.view(-1)[k]), rel=1e-4, abs=1e-9)
        checked += float(g.abs().max()) > 1e-6
    assert checked >= 3


def test_aligned_examples_gain_weight() -> None:
    """For a small step on mu, sum_j c_j (change of w_j) > 0: descent gives the plus sign of the text."""
    lookahead, net = looking(methods.bilaw(THREAT, steps=0))
    rule = MarginNet((16,), optimizer=AdamDescent(1e-5))
    network = rule.bind(FACTS)
    with torch.no_grad():
        clean, logits = net(lookahead.problem.batch.x), net(lookahead.x_adv)
    y = lookahead.problem.batch.y
    evidence = Evidence(torch.zeros(6, dtype=torch.float64), logits, y, y, y, Clock(), lambda: clean)
    network.draw(0)
    before = network(evidence)
    w = before.clone().requires_grad_()
    helpful = -torch.autograd.grad(lookahead(w), w)[0]
    start = float(lookahead(before))
    network.fit(evidence, lookahead)
    after = network(evidence)
    assert (helpful * (after - before)).sum() > 0
    assert float(lookahead(after)) < start
    assert abs(after.mean().item() - 1) < 1e-12


def test_equal_margins_teach_nothing() -> None:
    lookahead, _ = looking(methods.bilaw(THREAT, steps=0))
    network = MarginNet((8,)).bind(FACTS)
    logits = torch.randn(1, CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.zeros(6, dtype=torch.long)
    same = logits.expand(6, -1)
    evidence = Evidence(torch.zeros(6, dtype=torch.float64), same, y, y, y, Clock(), lambda: same)
    torch.testing.assert_close(network(evidence), torch.ones(6, dtype=torch.float64))
    omega = network.omega(network.rule.features(evidence))
    loss = lookahead(omega / omega.mean())
    for g in torch.autograd.grad(loss, list(network.parameters()), materialize_grads=True):
        assert g.abs().max() < 1e-15


def test_only_the_direction_of_the_second_gradient_matters() -> None:
    rule = Correlation().bind(FACTS)
    slope = torch.tensor([0.3, -0.2, -0.6], dtype=torch.float64)
    y = torch.zeros(3, dtype=torch.long)
    evidence = Evidence(torch.zeros(3, dtype=torch.float64), torch.zeros(3, 2), y, y, y, Clock(), lambda: y)
    weights = []
    for scale in (1.0, 50.0):
        rule.fit(evidence, lambda w, second_order=False, scale=scale: scale * (slope * w).sum())
        weights.append(rule(evidence))
    torch.testing.assert_close(weights[0], torch.tensor([0.0, 0.75, 2.25], dtype=torch.float64))
    torch.testing.assert_close(weights[0], weights[1])
    rule.fit(evidence, lambda w, second_order=False: w.sum())
    assert torch.equal(rule(evidence), torch.ones(3, dtype=torch.float64)), "uniform if nothing helps"


def test_a_single_example_validated_on_itself_weighs_one() -> None:
    x, y, index = (t[:1] for t in minibatches()[0])
    net = Net(norm=False)
    batch = Batch(x, y, index, meta=Batch(x, y, index))
    rule = methods.non_parametric(THREAT, steps=0)
    trained = train(net, rule, [batch], lr=1e-3)
    assert trained.records[0].weight_mean == pytest.approx(1)
    assert trained.records[0].logged["helpful"] == 1


# ---------------------------------------------------------------- what is left alone


def test_lookahead_leaves_the_network_alone() -> None:
    lookahead, net = looking(methods.bilaw(THREAT, steps=2))
    before, modes = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()]
    for second_order in (False, True):
        w = torch.ones(6, dtype=torch.float64, requires_grad=True)
        lookahead(w, second_order=second_order).backward(inputs=[w])
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert [m.training for m in net.modules()] == modes
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


class Tied(Net):
    """A module under two names, and a weight that two layers share."""

    def __init__(self) -> None:
        super().__init__()
        self.alias = self.stem
        self.twin = torch.nn.Linear(36, CLASSES, bias=False).double()
        self.twin.weight = self.head.weight

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.1 * self.twin(x.flatten(1))


def test_tied_weights_move_together_and_stay_tied() -> None:
    models = []
    for method in (methods.bilaw(THREAT), methods.bilaw(THREAT, second_order=True)):
        net = train(Tied(), method, with_meta(minibatches())).model
        assert isinstance(net, Tied)
        assert net.twin.weight is net.head.weight
        assert all(p.is_leaf and p.requires_grad for p in net.parameters())
        models.append(net)
    assert gap(*models) < 1e-10, "both see the shared weight in both places"
    perturbed = train(Tied(), methods.at_awp(THREAT), minibatches()).model
    assert all(p.is_leaf for p in perturbed.parameters())
    x = minibatches()[0][0]
    one = Tied()
    double = {n: 2 * p.detach() for n, p in one.named_parameters()}
    with torch.no_grad():
        expected = Functional(one, double)(x)
        for p in one.parameters():
            p.mul_(2)
        assert torch.equal(one(x), expected)


def test_lookahead_has_no_dropout() -> None:
    net = Net(dropout=0.5).train()
    batch = with_meta(minibatches())[0]
    method = methods.bilaw(THREAT, steps=1).bind(FACTS)
    problem = LowerProblem(net, batch, method.objective, method.threat)
    values = {float(Lookahead(problem, method, batch.x, 0.1)(torch.ones(6))) for _ in "12"}
    assert len(values) == 1


def test_the_second_stream_has_draws_of_its_own() -> None:
    rows = torch.arange(4)
    seen = [
        second_stream(Clock(epoch, 2, step, 3, replay, seed), rows).uniform("start", (2,))
        for seed in (0, 1)
        for epoch in (0, 1)
        for step in (0, 1)
        for replay in (0, 1)
    ]
    seen += [Noise(0, rows, epoch, turn).uniform("start", (2,)) for epoch in (0, 1) for turn in range(4)]
    assert len({tuple(s.flatten().tolist()) for s in seen}) == len(seen)
    flipped = second_stream(Clock(), rows.flip(0)).uniform("start", (2,))
    assert torch.equal(flipped.flip(0), seen[0])


# ---------------------------------------------------------------- memory


def step_all(bound: Any, net: Net, batches: list[Batch], first: int = 0) -> None:
    """Steps over the minibatches from one on."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net.train()
    for t, batch in enumerate(batches):
        if t >= first:
            bv.train_step(net, optimizer, bound, batch, Clock(0, 1, t, len(batches), seed=5))


@pytest.mark.parametrize("rule", [MarginNet((8,)), Correlation()], ids=["net", "correlation"])
def test_without_a_burn_in_it_is_the_rule(rule) -> None:
    host = methods.at(THREAT, steps=2)
    one, other = Net(), Net()
    step_all(host.but(weighting=rule).bind(FACTS), one, with_meta(minibatches()))
    step_all(host.but(weighting=After(rule, 0.0)).bind(FACTS), other, with_meta(minibatches()))
    assert gap(one, other) == 0


@pytest.mark.parametrize("rule", [MarginNet(), Correlation(), After(MarginNet())])
def test_a_second_stream_needs_an_attack_without_the_couplings_step(rule) -> None:
    with pytest.raises(UserError, match="whose last step is made by the coupling LastStep"):
        methods.fast_bat(THREAT).but(weighting=rule)


def test_resumes_exactly_from_tensors_alone() -> None:
    batches, method = with_meta(minibatches()), methods.bilaw(THREAT, steps=2)
    whole, bound = Net(), method.bind(FACTS)
    step_all(bound, whole, batches)

    net, half = Net(), method.bind(FACTS)
    step_all(half, net, batches[:2])
    state = half.state_dict()
    tensors = {k: v for k, v in state.items() if isinstance(v, Tensor)}
    json.dumps({k: v for k, v in state.items() if k not in tensors})
    resumed = method.bind(FACTS)
    resumed.load_state_dict(load(save(tensors)))
    step_all(resumed, net, batches, first=2)
    assert gap(net, whole) == 0
    for k, v in bound.state_dict().items():
        assert torch.equal(v, resumed.state_dict()[k]), k
    assert int(bound.weighting.updates) == 3


def test_the_network_is_drawn_from_the_seed() -> None:
    one, two, other = (MarginNet().bind(FACTS) for _ in "123")
    one.draw(1)
    two.draw(1)
    other.draw(2)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.get_parameter("weight0"), other.get_parameter("weight0"))


def test_copies_share_nothing() -> None:
    method = methods.bilaw(THREAT)
    a, b = method.bind(FACTS), method.bind(FACTS)
    a.weighting.draw(0)
    assert not bool(b.weighting.drawn)


# ---------------------------------------------------------------- refusals and cost


def test_needs_a_second_stream() -> None:
    for method in (methods.bilaw(THREAT), methods.non_parametric(THREAT)):
        assert method.weighting.needs_meta
        with pytest.raises(UserError, match="second data stream, but the batch has none"):
            train(Net(), method, minibatches())


class Doubled(torch.autograd.Function):
    """2 x, whose author wrote no forward-mode derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # pyright: ignore
        return 2 * grads[0]


def test_names_the_way_out_for_layers_without_forward_mode() -> None:
    class Odd(Net):
        def forward(self, x: Tensor) -> Tensor:
            return Doubled.apply(super().forward(x))

    batches = with_meta(minibatches())
    with pytest.raises(UserError, match=r"set weighting\.second_order=true"):
        train(Odd(), methods.bilaw(THREAT, steps=1), batches)
    net = train(Odd(), methods.bilaw(THREAT, steps=1, second_order=True), batches).model
    assert gap(net, Odd()) > 1e-3


class Remembering(torch.nn.Module):
    """A solver with memory."""


def test_refuses_a_solver_with_memory() -> None:
    @part
    class Hoarder(bv.Solver):
        def bind(self, facts: Facts) -> Remembering:
            return Remembering()

        def solve(self, problem: object) -> None:
            raise AssertionError("never asked")

    for weighting in (MarginNet(), Correlation()):
        with pytest.raises(UserError, match="choose a solver without memory"):
            methods.at(THREAT).but(solver=Hoarder()).but(weighting=weighting)


def test_refuses_weights_perturbed_under_a_lookahead() -> None:
    with pytest.raises(UserError, match="AWP perturbs the network's own parameters"):
        methods.bilaw(THREAT).but(loss=AWP(adversarial))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"inputs": "logits"}, "unknown input"),
        ({"margins_from": "dirty"}, "unknown margins from"),
        ({"hidden": (0,)}, "at least 1"),
        ({"optimizer": "adam"}, "MarginNet.optimizer must be a part"),
    ],
)
def test_bad_values_are_refused(fields, message) -> None:
    with pytest.raises(UserError, match=message):
        MarginNet(**fields)


@pytest.mark.parametrize("kind", [Descent, AdamDescent])
def test_bad_rates_are_refused(kind) -> None:
    for lr, decay in ((0.0, 0.0), (math.inf, 0.0), (1.0, -0.1)):
        with pytest.raises(UserError, match="lr must be positive"):
            kind(lr, decay)
    with pytest.raises(UserError, match="unknown net_optimizer"):
        methods.bilaw(THREAT, net_optimizer="sgd")


def test_the_network_descends_the_meta_gradient_alone() -> None:
    """Algorithm 1, line 6: no decay pulls the weights together where the gradient is small."""
    for method in (methods.bilaw(THREAT), methods.bilaw_trades(THREAT)):
        assert isinstance(method.weighting, MarginNet)
        assert isinstance(method.weighting.optimizer, Descent)
        assert method.weighting.optimizer.weight_decay == 0
    assert methods.bilaw(THREAT, net_optimizer="adam").weighting.optimizer == AdamDescent(1e-3, 0.0)
    network = MarginNet((8,)).bind(FACTS)
    network.draw(0)
    before = [p.detach().clone() for p in network.parameters()]
    network._step([0.01 * torch.ones_like(p) for p in before])
    for p, old in zip(network.parameters(), before, strict=True):
        torch.testing.assert_close(p.detach(), old - 0.01 * Descent().lr, rtol=0, atol=1e-12)


def test_an_older_network_is_still_read() -> None:
    """Version 0.1.0 wrote its Adam's rate and decay into the network: such a run goes on as it was."""
    old = encode(MarginNet((64,)))
    del old["optimizer"]
    assert decode({**old, "lr": 2e-3, "weight_decay": 1e-4}) == MarginNet(
        (64,), optimizer=AdamDescent(2e-3, 1e-4)
    )
    names = set(MarginNet((8,), optimizer=AdamDescent()).bind(FACTS).state_dict())
    assert {"weight0_first", "bias1_second", "updates", "drawn"} <= names


def test_margins_are_those_of_before_the_outer_pass() -> None:
    """Algorithm 1 takes them at theta_t, before line 8 moves anything: running statistics too."""
    net = Net().train()
    seen: list[Tensor] = []

    class Watching(MarginNet):
        def features(self, evidence: Evidence) -> Tensor:
            seen.append(evidence.clean_logits)
            return super().features(evidence)

    batch = with_meta(minibatches())[0]
    net.eval()
    with torch.no_grad():
        before = net(batch.x)
    net.train()
    bound = methods.bilaw(THREAT).but(weighting=Watching()).bind(FACTS)
    bv.train_step(net, torch.optim.SGD(net.parameters(), lr=0.1), bound, batch, Clock())
    assert all(torch.equal(logits, before) for logits in seen)
    net.eval()
    with torch.no_grad():
        assert not torch.equal(net(batch.x), before)


@pytest.mark.parametrize(
    ("method", "forward", "backward"),
    [
        (methods.bilaw(THREAT, steps=3, second_order=True), 10, 10),
        (methods.bilaw_trades(THREAT, steps=3, second_order=True), 15, 14),
        (methods.bilaw(THREAT, steps=3, inputs="adversarial-loss"), 10, 10),
    ],
    ids=lambda m: getattr(m, "name", m),
)
def test_passes_of_variants(method, forward, backward) -> None:
    x, y, index = minibatches()[0]
    net = Metered(Net())
    trained = train(net, method, [Batch(x, y, index, meta=Batch(x, y, index))])
    passes, rows = trained.records[0].passes, len(x)
    assert (passes.forward, passes.backward) == (forward * rows, backward * rows)
    assert (net.meter.forward, net.meter.backwards) == (passes.forward, passes.backward)


@pytest.mark.parametrize("make", [methods.bilaw, methods.non_parametric, methods.at_awp])
def test_virtual_passes_run_in_the_networks_precision(make) -> None:
    """A network that runs in bfloat16 does so at virtual and at perturbed parameters; the losses do not."""
    x, y, index = (t.float() if t.is_floating_point() else t for t in minibatches()[0])
    net, seen = Net().float(), set[torch.dtype]()
    net.autocast_dtype = torch.bfloat16  # pyright: ignore
    net.stem.register_forward_hook(lambda module, args, out: seen.add(out.dtype))
    batch = Batch(x, y, index, meta=Batch(x, y, index))
    facts = Facts(15, SHAPE, CLASSES, dtype=torch.float32)
    trained = train(net, make(THREAT, steps=1), [batch], facts=facts)
    assert seen == {torch.bfloat16}
    assert all(torch.isfinite(p).all() and p.dtype == torch.float32 for p in trained.model.parameters())
