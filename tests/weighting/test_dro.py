"""KL-DRO weights: closed form, running estimate in log space, guard, restart (M21)."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bivallate import KLDRO, UserError
from bivallate.schedule import Constant, Milestones
from bivallate.types import Clock, Evidence, Facts
from bivallate.weighting.dro import BoundKLDRO

D = torch.float64


def evidence(losses: Tensor, epoch: int = 0, epochs: int = 60) -> Evidence:
    rows = torch.arange(len(losses))
    zeros = torch.zeros(len(losses), 3, dtype=losses.dtype)
    return Evidence(losses, zeros, rows * 0, rows, rows * 0, Clock(epoch, epochs), lambda: zeros)


def running(**rule) -> BoundKLDRO:
    bound = KLDRO(**{"temperature": 0.7, "guard": math.inf, **rule}).bind(Facts(10, (1, 1, 1), 3))
    assert isinstance(bound, BoundKLDRO)
    return bound


def losses(seed: int = 0, n: int = 9, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.rand(n, generator=generator, dtype=D) * 3


@settings(max_examples=50, deadline=None)
@given(st.sampled_from([0.1, 0.7, 5.0]), st.integers(0, 1000))
def test_weights_are_the_gradient_of_the_risk(r, seed) -> None:
    """rate 1: w / B is the derivative of r log mean exp(l / r), which is maximal over the simplex at w."""
    l = losses(seed).requires_grad_()  # noqa: E741
    risk = r * ((l / r).logsumexp(0) - math.log(len(l)))
    (expected,) = torch.autograd.grad(risk, l)
    seen = evidence(l.detach())
    for rule in (KLDRO(temperature=r, rate=1.0), running(temperature=r, rate=1.0)):
        rule.update(seen)
        w = rule(seen)
        assert torch.allclose(w / len(l), expected, rtol=1e-12, atol=1e-15)
        assert not w.requires_grad
        assert float(w.mean()) == pytest.approx(1, rel=1e-12)
    p = expected.clamp(min=1e-300)
    value = (p * l.detach()).sum() - r * (p * (len(l) * p).log()).sum()
    assert float(value) == pytest.approx(float(risk.detach()), rel=1e-9)
    h = 1e-6
    for j in range(3):  # d w_i / d l_j = w_i (1[i = j] - w_j) / r, both as shares
        bump = torch.zeros_like(expected)
        bump[j] = h
        up, down = (KLDRO(temperature=r, rate=1.0)(evidence(l.detach() + s * bump)) for s in (1, -1))
        slope = (up - down) / (2 * h * len(l))
        unit = torch.zeros_like(expected)
        unit[j] = 1
        assert torch.allclose(slope, expected * (unit - expected[j]) / r, atol=1e-7)


def test_between_the_mean_and_the_hardest() -> None:
    l = losses()  # noqa: E741
    assert torch.allclose(KLDRO(temperature=1e6)(evidence(l)), torch.ones_like(l), atol=1e-5)
    hardest = KLDRO(temperature=1e-3)(evidence(l))
    assert int(hardest.argmax()) == int(l.argmax())
    assert float(hardest.max()) == pytest.approx(9, rel=1e-6)
    w = KLDRO(temperature=0.5)(evidence(l))
    assert torch.equal(w.argsort(), l.argsort())
    assert torch.allclose(KLDRO(temperature=0.5)(evidence(l + 17)), w, rtol=1e-11)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9, 1.0])
def test_the_running_mean_in_the_open(rate) -> None:
    """u <- (1 - rate) u + rate mean exp(l / r), without logarithms; the mean weight is at most 1 / rate."""
    rule, u = running(rate=rate), None
    for t in range(6):
        seen = evidence(losses(t))
        g = (seen.robust / 0.7).exp()
        u = g.mean() if u is None else (1 - rate) * u + rate * g.mean()
        rule.update(seen)
        w = rule(seen)
        assert torch.allclose(w, g / u, rtol=1e-11)
        assert float(w.mean()) <= 1 / rate + 1e-12
        again = rule(seen)
        assert torch.equal(w, again), "asking moves nothing"


@pytest.mark.parametrize("dtype", [torch.float32, D])
@pytest.mark.parametrize("rate", [0.1, 0.9, 1.0])
def test_huge_losses_at_small_temperature(rate, dtype) -> None:
    rule = running(temperature=0.1, rate=rate, guard=2.0)
    for scale in (1.0, 1e3, 1e-3, 1e3, 0.0):
        seen = evidence((losses(3) * scale / 3).to(dtype))
        rule.update(seen)
        w = rule(seen)
        assert w.isfinite().all()
        assert w.dtype == dtype
        assert 0.5 - 1e-6 <= float(w.mean()) <= 1 / rate + 1e-4


def test_the_guard_keeps_one_extreme_batch_from_stalling_training() -> None:
    calm, extreme = evidence(losses(1)), evidence(losses(2) + 60)
    free, guarded = running(temperature=0.1, rate=0.5), running(temperature=0.1, rate=0.5, guard=2.0)
    for rule in (free, guarded):
        rule.update(extreme)
        rule.update(calm)
    assert float(free(calm).mean()) < 1e-200
    assert float(guarded(calm).mean()) == pytest.approx(0.5, rel=1e-12)


def test_the_estimate_restarts_when_the_temperature_changes() -> None:
    rule = running(temperature=Milestones((10.0, 1.0, 0.1), (2 / 3, 5 / 6)), rate=0.3)
    for epoch, fresh in ((0, True), (1, False), (39, False), (40, True), (41, False), (50, True)):
        seen = evidence(losses(epoch), epoch)
        rule.update(seen)
        assert (float(rule(seen).mean()) == pytest.approx(1, rel=1e-9)) == fresh, epoch
        assert rule.log()["temperature"] == (10 if epoch < 40 else 1 if epoch < 50 else 0.1)


def test_the_estimate_goes_on_in_single_precision() -> None:
    """0.1 has no exact float32, in which a device without float64 keeps the estimate."""
    double, single = running(temperature=0.1, rate=0.3), running(temperature=0.1, rate=0.3).float()
    assert single.r.dtype == torch.float32
    for seed in range(3):
        seen = evidence(losses(seed))
        for rule in (double, single):
            rule.update(seen)
    assert float(double(seen).mean()) != pytest.approx(1, rel=1e-2), "the estimate is not the batch's own"
    assert torch.allclose(single(seen), double(seen), rtol=1e-4)


def test_memory_is_saved_and_never_shared() -> None:
    one, two = running(rate=0.5), running(rate=0.5)
    one.update(evidence(losses(1)))
    state = {k: v.clone() for k, v in one.state_dict().items()}
    assert set(state) == {"log_u", "r"}
    assert math.isnan(float(two.r))
    two.load_state_dict(state)
    for rule in (one, two):
        rule.update(evidence(losses(2)))
    assert torch.equal(one(evidence(losses(2))), two(evidence(losses(2))))


def test_the_running_estimate_removes_the_bias_of_small_batches() -> None:
    """D8: nine functions (t - 1)^2 / 2 and one (t + 1)^2 / 2, r = 0.5, one example at a time."""
    centres, r = torch.tensor([1.0] * 9 + [-1.0], dtype=D), 0.5
    found = {}
    for rate in (1.0, 0.01):
        rule, theta = running(temperature=r, rate=rate), torch.zeros((), dtype=D)
        generator, tail = torch.Generator().manual_seed(0), []
        for t in range(8000):
            centre = centres[int(torch.randint(10, (1,), generator=generator))]
            seen = evidence(((theta - centre) ** 2 / 2).view(1))
            rule.update(seen)
            theta = theta - 0.02 / (1 + t / 2000) * rule(seen)[0] * (theta - centre)
            tail.append(float(theta)) if t > 4000 else None
        found[rate] = sum(tail) / len(tail)
    assert found[1.0] == pytest.approx(0.80, abs=0.04)  # the plain average's optimum
    assert found[0.01] == pytest.approx(0.3605, abs=0.04)  # the robust one


@pytest.mark.parametrize("bad", [{"rate": 0.0}, {"rate": 1.1}, {"guard": 0.9}, {"temperature": 0.0}])
def test_bad_settings(bad) -> None:
    with pytest.raises(UserError, match="KL-DRO"):
        KLDRO(**bad)
    with pytest.raises(UserError, match="temperature"):
        KLDRO(temperature=Milestones((1.0, -1.0), (0.5,)))
    with pytest.raises(UserError, match="temperature"):
        KLDRO(temperature=Constant(-1.0))
