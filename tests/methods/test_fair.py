"""FAAL, WAT, CFOL, DAFA, CFA: references, invariants, limits."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from tests.methods.glue import CLASSES, EPS, Net, agree, asked, gap, minibatches, train
from tests.reference import fair as reference
from torch import Tensor

import bivallate as bv
from bivallate import L1, L2, Linf, UserError, methods
from bivallate.lower.class_radius import ClassDistance, RobustRate
from bivallate.lower.radii import Radii
from bivallate.methods.reweighted import RECIPE
from bivallate.noise import Noise
from bivallate.parts import decode, encode
from bivallate.run.config import Config
from bivallate.types import Batch, Clock
from bivallate.upper.class_losses import Reweighed
from bivallate.upper.loss import Trades, adversarial
from bivallate.weighting.class_weights import ClassDRO, worst_distribution

THREAT = Linf(EPS)
STEP = RECIPE * EPS
SIZES = (6, 6, 6, 5, 4)
TURNS = {"epoch": [0, 0, 1, 1, 2], "epochs": 3}
D = torch.float64


def test_faal() -> None:
    agree(methods.faal(THREAT, steps=4), reference.faal, steps=4)
    agree(methods.faal(THREAT, steps=3, radius=0.05), reference.faal, steps=3, tau=0.05)
    agree(methods.faal(THREAT, base="trades", steps=3), reference.faal, steps=3, beta=6.0)


def test_wat() -> None:
    batches = minibatches(SIZES)
    method = methods.wat(THREAT, steps=3, rate=0.5)
    hyper = {"alpha": STEP, "steps": 3, "eta": 0.5}
    agree(method, wat_by_epoch, batches=batches, **TURNS, **hyper)


def by_epoch(transcribed):
    """The reference with the epochs of `TURNS`."""
    return lambda *args, **hyper: transcribed(*args, **{"epochs": TURNS["epoch"], **hyper})


wat_by_epoch, dafa_by_epoch, cfa_by_epoch = map(by_epoch, (reference.wat, reference.dafa, reference.cfa))


@pytest.mark.parametrize("rate", [5e-6, 0.3])
def test_cfol(rate: float) -> None:
    method = methods.cfol(THREAT, steps=3, rate=rate, step_size=0.4)
    agree(method, reference.cfol, steps=3, eta=rate, alpha=0.4 * EPS)


@pytest.mark.parametrize("eps", [EPS, 0.2])
def test_dafa(eps: float) -> None:
    method = methods.dafa(Linf(eps), steps=3, warm_up=1 / 3, scale=1.5)
    hyper = {"alpha": RECIPE * eps, "steps": 3, "scale": 1.5, "warm_up": 1}
    ended = agree(method, dafa_by_epoch, batches=minibatches(SIZES), **TURNS, **hyper)
    score = ended.bound.state_dict()["solver.score"]
    assert score.max() > 1.02 > 0.98 > score.min(), "classes differ, or nothing was compared"


@pytest.mark.parametrize("eps", [0.01, EPS])
def test_cfa(eps: float) -> None:
    batches = minibatches(SIZES)
    ended = agree(methods.cfa(Linf(eps), steps=3), cfa_by_epoch, batches=batches, **TURNS, steps=3)
    score = ended.bound.state_dict()["solver.score"]
    assert len(set(score.tolist())) > 1
    on_trades = methods.cfa(Linf(eps), base="trades", steps=3, margin=0.3, regularisation=0.7, begin=2 / 3)
    hyper = {"steps": 3, "lambda1": 0.3, "lambda2": 0.7, "begin": 2, "beta": 6.0}
    agree(on_trades, cfa_by_epoch, batches=batches, **TURNS, **hyper)


# ---------------------------------------------------------------- limits between methods


LIMITS = {
    "faal": (methods.faal(THREAT, steps=2, radius=0.0), methods.at(THREAT, steps=2)),
    "cfol": (methods.cfol(THREAT, steps=2, rate=0.0, step_size=0.25), methods.at(THREAT, steps=2)),
    "all of it is uniform": (methods.cfol(THREAT, steps=2, rate=9.0, explore=1.0, step_size=0.25),
                             methods.at(THREAT, steps=2)),
    "dafa": (methods.dafa(THREAT, steps=2, scale=0.0, step_size=0.25), methods.trades(THREAT, steps=2)),
    "before its warm-up dafa": (methods.dafa(THREAT, steps=2, warm_up=1.0, step_size=0.25),
                                methods.trades(THREAT, steps=2)),
    "cfa": (methods.cfa(THREAT, steps=2, begin=1.0), methods.at(THREAT, steps=2, attack_mode="train")),
}  # fmt: skip


@pytest.mark.parametrize("name", LIMITS)
def test_what_cannot_tell_classes_apart_is_its_host(name: str) -> None:
    ends = [train(Net(), m, minibatches(SIZES), **TURNS).model for m in LIMITS[name]]
    assert gap(*ends) < 1e-12


def test_wat_at_rate_zero_is_trades_at_a_larger_rate() -> None:
    """All weights are 2 K / (K + 1)."""
    scale, settings = 2 * CLASSES / (CLASSES + 1), {"momentum": 0.0, "weight_decay": 0.0}
    own = train(Net(), methods.wat(THREAT, steps=2, rate=0.0, step_size=0.25), minibatches(), **settings)
    host = train(Net(), methods.trades(THREAT, steps=2), minibatches(), lr=0.1 * scale, **settings)
    assert gap(own.model, host.model) < 1e-12


# ---------------------------------------------------------------- the worst distribution


@pytest.mark.parametrize("radius", [1e-3, 0.5, 3.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_worst_distribution_is_feasible_and_stationary(seed: int, radius: float) -> None:
    a = torch.randn(7, dtype=D, generator=torch.Generator().manual_seed(seed))
    p = worst_distribution(a, radius)
    assert float(p.sum()) == pytest.approx(1, abs=1e-14)
    assert float((1 / 7 * (1 / 7 / p).log()).sum()) == pytest.approx(radius, rel=1e-9)
    # the gradient a_c is, up to a constant, a multiple of the constraint's, -u / p_c
    slope = torch.stack([torch.ones(7, dtype=D), 1 / p], 1)
    left = a[:, None] - slope @ torch.linalg.lstsq(slope, a[:, None]).solution
    assert left.abs().max() < 1e-8
    assert torch.equal(p.argsort(), a.argsort())
    assert torch.allclose(worst_distribution(5 * a - 2, radius), p, rtol=1e-9), "scale and shift say nothing"
    for other in torch.distributions.Dirichlet(torch.ones(7, dtype=D)).sample((200,)):
        mixed = p + 0.3 * (other - p)
        if float((1 / 7 * (1 / 7 / mixed).log()).sum()) <= radius:
            assert float(mixed @ a) <= float(p @ a) + 1e-9


def test_classes_that_are_alike_weigh_alike() -> None:
    assert torch.equal(worst_distribution(torch.full((4,), -0.3), 0.5), torch.full((4,), 0.25))
    tied = worst_distribution(torch.tensor([1.0, 1.0, 0.0], dtype=D), 0.5)
    assert float(tied[0]) == float(tied[1]) > 0.4
    with pytest.raises(UserError, match="radius"):
        ClassDRO(-1.0)


# ---------------------------------------------------------------- radii of rows


@pytest.mark.parametrize("threat", [Linf(0.2), L2(0.8), L1(2.0)])
def test_every_row_is_projected_on_its_own_ball(threat) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(6, 1, 4, 4, generator=generator, dtype=D)
    x[0], x[1] = 0.0, 1.0
    delta = torch.randn(6, 1, 4, 4, generator=generator, dtype=D)
    factor = torch.tensor([0.5, 1.0, 1.4, 0.0, 1.0, 0.5], dtype=D)
    own = Radii(threat, factor)
    found = own.project(delta, x)
    for i, f in enumerate(factor.tolist()):
        alone = type(threat)(f * threat.eps).project(delta[i : i + 1], x[i : i + 1])
        assert torch.allclose(found[i : i + 1], alone, atol=1e-15)
    assert torch.allclose(own.project(found, x), found, atol=1e-12), "idempotent"
    moved = own.project(delta + 0.1, x)
    assert ((moved - found).flatten(1).norm(dim=1) <= 0.1 * 4 + 1e-9).all(), "non-expansive"
    rows = torch.tensor([4, 0, 2])
    assert torch.equal(own.select(rows).project(delta[rows], x[rows]), found[rows])
    for asked_of in (own.random(Noise(0, torch.arange(6)), x), found):
        assert (own.size(asked_of) <= own.radius + 1e-12).all()
    assert (own.support(delta, x, found) >= -1e-12).all()
    assert own.interior(found, x).shape == x.shape
    assert own.ball_support(delta, found).shape == (6,)
    assert torch.allclose(own.retract(found, x), found, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_boxes_of_rows_are_those_of_each_radius_to_the_bit(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(6, 1, 4, 4, generator=generator, dtype=dtype)
    delta, grad = (0.3 * torch.randn(x.shape, generator=generator, dtype=dtype) for _ in range(2))
    own = Radii(Linf(0.2), torch.tensor([0.7, 1.0, 1.4, 0.0, 1.0, 9.0], dtype=dtype))
    inside = own.project(delta, x)
    for i, eps in enumerate(own.radius.tolist()):
        alone, row = Linf(eps), slice(i, i + 1)
        assert torch.equal(inside[row], alone.project(delta[row], x[row]))
        assert torch.equal(own.retract(delta, x)[row], inside[row])
        assert torch.equal(own.interior(inside, x)[row], alone.interior(inside[row], x[row]))
        assert torch.equal(own.support(grad, x, inside)[row], alone.support(grad[row], x[row], inside[row]))
        assert torch.equal(own.ball_support(grad, inside)[row], alone.ball_support(grad[row], inside[row]))


def test_one_radius_for_all_is_the_threat() -> None:
    x, _, index = minibatches()[0]
    own, noise = Radii(THREAT, torch.ones(len(x), dtype=D)), Noise(0, index)
    delta = 2 * own.random(noise, x)
    assert torch.equal(own.project(delta, x), THREAT.project(delta, x))
    assert torch.equal(own.random(noise, x), THREAT.random(noise, x))


@pytest.mark.parametrize("name", ["cfa", "dafa"])
def test_training_alone_has_other_radii(name: str) -> None:
    """After its first epoch a class is attacked within its own radius, and held-out data within eps."""
    method = bv.methods.cfa(THREAT, steps=3) if name == "cfa" else bv.methods.dafa(THREAT, warm_up=1 / 3)
    ended = train(Net(), method, minibatches(SIZES), **TURNS)
    assert ended.bound.threat == method.threat == THREAT
    base, score = method.solver.base, ended.bound.state_dict()["solver.score"]
    x, y, index = minibatches((6,), seed=5)[0]
    problem = bv.LowerProblem(ended.model, Batch(x, y, index), method.objective, THREAT, Clock(2, 3))
    radius = (base + score[y]) * EPS
    size = ended.bound.solver.solve(problem).delta.flatten(1).abs().amax(1)
    assert (size <= radius + 1e-12).all()
    assert (size > EPS).any() or (radius <= EPS).all()


# ---------------------------------------------------------------- parts


def test_scores_of_classes() -> None:
    counts, right = torch.tensor([4.0, 2.0, 0.0]), torch.tensor([3.0, 2.0, 0.0])
    mean = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]])
    assert RobustRate()(counts, right, mean).tolist() == [0.75, 1.0, 0.0]
    own = ClassDistance(1.0)(counts, right, mean).tolist()
    assert own == pytest.approx(
        [1 + 0.3 * 0.8 - 0.2 * 0.4, 1 - 0.1 * 0.5 - 0.1 * 0.4, 1 + 0.3 * 0.5 + 0.3 * 0.8]
    )
    clock = Clock(epoch=7, epochs=11)
    assert ClassDistance().due(clock, False)
    assert not ClassDistance().due(clock, True)
    assert not ClassDistance().due(Clock(epoch=6, epochs=11), False)


def test_what_the_weights_multiply() -> None:
    x, y, index = minibatches()[0]
    problem, x_adv = asked(Net(), x, y, index), (x + 0.01).clamp(0, 1)
    host = Trades()(problem, x_adv)
    whole, other = Reweighed(Trades())(problem, x_adv), Reweighed(Trades(), "anchor")(problem, x_adv)
    assert torch.allclose(whole.robust, host.robust + host.anchor)
    assert whole.anchor.abs().max() == 0
    assert torch.allclose(other.robust, host.anchor)
    assert torch.allclose(other.anchor, host.robust)


def test_the_former_name_of_what_is_weighed_is_read() -> None:
    now = Reweighed(Trades(), weighs="anchor")
    former = {("part" if name == "weighs" else name): value for name, value in encode(now).items()}
    assert decode(former) == now
    with pytest.deprecated_call(match="now called weighs"):
        assert Reweighed(Trades(), part="anchor") == now  # pyright: ignore[reportCallIssue]
    method = methods.at(THREAT).but(loss=Reweighed(Trades()))
    with pytest.deprecated_call(match="part of Reweighed is now called weighs"):
        assert method.but(loss__part="anchor").loss == now
    for path in ("loss.part", "method.loss.part"):
        with pytest.deprecated_call(match="part of Reweighed is now called weighs"):
            assert Config(method).set(path, "anchor").method.loss == now


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: methods.faal(THREAT, base="mart"), "base"),
        (lambda: Reweighed(adversarial, "robust"), "unknown weighs of Reweighed"),
        (lambda: methods.at(THREAT).but(weighting=methods.dafa(THREAT).weighting), "ClassRadius"),
        (lambda: methods.at(THREAT).but(loss=methods.cfa(THREAT, base="trades").loss), "ClassRadius"),
        (lambda: methods.cfa(THREAT).but(coupling=bv.Leaf()), "Detached"),
    ],
)
def test_what_cannot_be_is_refused(make, said: str) -> None:
    with pytest.raises(UserError, match=said):
        make()


def test_an_epoch_without_a_class_changes_nothing_of_the_others() -> None:
    def only(batches, labels: Tensor):
        return [(x, y.where(y != 2, labels[0]), i) for x, y, i in batches]

    for name in ("wat", "cfa", "dafa"):
        method = bv.methods.cfa(THREAT, steps=2) if name == "cfa" else getattr(methods, name)(THREAT, steps=2)
        ended = train(Net(), method, only(minibatches(SIZES), torch.tensor([0])), **TURNS)
        assert all(math.isfinite(r.loss) for r in ended.records)
        assert all(torch.isfinite(p).all() for p in ended.model.parameters())


def test_copies_share_nothing() -> None:
    method = methods.cfa(THREAT, steps=2)
    one, two = (train(copy.deepcopy(Net()), method, minibatches(SIZES), **TURNS) for _ in range(2))
    assert gap(one.model, two.model) == 0
    assert one.bound.solver is not two.bound.solver


def test_scores_of_classes_travel_with_the_solution() -> None:
    """No part finds them on the problem that was posed: they are in the solution, and what is made of it."""
    ended = train(Net(), bv.methods.cfa(THREAT, base="trades", steps=2), minibatches(SIZES), **TURNS)
    x, y, index = minibatches((6,), seed=5)[0]
    posed = bv.LowerProblem(ended.model, Batch(x, y, index), ended.bound.objective, THREAT, Clock(2, 3))
    solution = ended.bound.solver.solve(posed)
    assert posed.class_score is None
    assert solution.class_score is not None
    solved = posed.with_solution(solution)
    assert torch.equal(solved.class_score, ended.bound.state_dict()["solver.score"])  # pyright: ignore
    loss, x_adv = ended.bound.loss, x + solution.delta
    assert not torch.allclose(loss(solved, x_adv).anchor, loss(posed, x_adv).anchor)
    for delta, coupled in ((x, False), (x.clone().requires_grad_(), False), (solved_at(x), True)):
        assert posed.with_solution(replace(solution, delta=delta)).coupled is coupled


def solved_at(x: torch.Tensor) -> torch.Tensor:
    """A delta with a gradient to somewhere."""
    return x.clone().requires_grad_() * 2
