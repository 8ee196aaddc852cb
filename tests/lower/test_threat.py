"""Projections, supports and steepest directions of the threats have their defining properties."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bivallate import L1, L2, Linf, UserError
from bivallate.lower.l1 import largest, onto
from bivallate.lower.threat import FREE_MARGIN, threat
from bivallate.noise import Noise

D = torch.float64
EPS = st.sampled_from([0.0, 1e-3, 8 / 255, 0.3, 1.0])
KINDS = st.sampled_from([Linf, L2, L1])
SEEDS = st.integers(0, 10**6)
SCALES = st.sampled_from([0.0, 1e-4, 0.05, 1.0, 100.0])


def images(seed: int, rows: int = 3, pixels: int = 8) -> Tensor:
    """Some pixels exactly 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    return (1.6 * torch.rand(rows, 1, 1, pixels, generator=generator, dtype=D) - 0.3).clamp(0, 1)


def vectors(seed: int, scale: float, rows: int = 3, pixels: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 1)
    v = scale * torch.randn(rows, 1, 1, pixels, generator=generator, dtype=D)
    return v * (torch.rand(v.shape, generator=generator, dtype=D) > 0.2)


@settings(max_examples=150, deadline=None)
@given(KINDS, EPS, SEEDS, SCALES, SCALES)
def test_projection(kind, eps, seed, scale, other) -> None:
    c, x, u, v = kind(eps), images(seed), vectors(seed, scale), vectors(seed + 7, other)
    p = c.project(u, x)
    assert (x + p >= -1e-15).all()
    assert (x + p <= 1 + 1e-15).all()
    assert (c.size(p) <= eps * (1 + 1e-12)).all()
    assert torch.allclose(c.project(p, x), p, atol=1e-15, rtol=1e-12)
    distance = (c.project(u, x) - c.project(v, x)).flatten(1).norm(dim=1)
    assert (distance <= (u - v).flatten(1).norm(dim=1) * (1 + 1e-9) + 1e-15).all()
    inside = 0.999 * p
    assert torch.equal(c.project(inside, x), inside)
    assert torch.equal(c.retract(u, x).detach(), p)


@settings(max_examples=60, deadline=None)
@given(EPS, SEEDS, SCALES)
def test_projection_is_the_nearest_point(eps, seed, scale) -> None:
    """The variational inequality <u - p, q - p> <= 0 for every q in C characterises the projection."""
    for c in (Linf(eps), L2(eps), L1(eps)):
        x, u = images(seed), vectors(seed, scale)
        p = c.project(u, x)
        others = torch.cat([vectors(seed + 100 + k, [1e-3, 0.1, 10.0][k % 3]) for k in range(20)])
        q = c.project(others, x.repeat(20, 1, 1, 1)).view(20, *u.shape)
        product = ((u - p) * (q - p)).flatten(2).sum(2)
        assert (product <= 1e-10 * max(1.0, scale**2)).all()


def by_bisection(u: Tensor, x: Tensor, eps: float) -> Tensor:
    """The L2-and-box projection of one vector from its Lagrangian: clip(u / (1 + lambda)) with norm eps."""
    lo, up = -x, 1 - x
    clipped = torch.minimum(torch.maximum(u, lo), up)
    if clipped.norm() <= eps:
        return clipped
    low, high = 0.0, 1e9
    for _ in range(200):
        middle = (low * high) ** 0.5 if low > 1e-6 else (low + high) / 2
        at = torch.minimum(torch.maximum(u / (1 + middle), lo), up)
        low, high = (middle, high) if at.norm() > eps else (low, middle)
    return torch.minimum(torch.maximum(u / (1 + high), lo), up)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([1e-3, 0.1, 0.5, 2.0]), SEEDS, st.sampled_from([0.01, 1.0, 30.0]))
def test_l2_with_box_against_bisection(eps, seed, scale) -> None:
    x, u = images(seed), vectors(seed, scale)
    p = L2(eps).project(u, x)
    for i in range(len(x)):
        assert torch.allclose(p[i], by_bisection(u[i], x[i], eps), atol=1e-9)


def solved(u: Tensor, x: Tensor, constraints: list[dict], slack: int = 0) -> Tensor:
    """The point nearest to u under constraints by a general solver; `slack` further variables in [0, 1]."""
    from scipy.optimize import minimize

    goal, pixels = u.flatten().numpy(), x.flatten().numpy()
    n = len(goal)
    found = minimize(
        lambda d: ((d[:n] - goal) ** 2).sum(),
        0 * u.flatten().new_zeros(n + slack).numpy(),
        bounds=[*zip(-pixels, 1 - pixels, strict=True), *[(0, 1)] * slack],
        constraints=constraints,
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    return torch.from_numpy(found.x[:n])


def test_l2_with_box_against_a_general_solver() -> None:
    x, u = images(5, rows=1, pixels=5), vectors(5, 1.0, rows=1, pixels=5)
    p = L2(0.4).project(u, x).flatten()
    assert ((p + x.flatten()) % 1 < 1e-12).any(), "a pixel must be saturated"
    assert p.norm() == pytest.approx(0.4)
    assert torch.allclose(p, solved(u, x, [{"type": "ineq", "fun": lambda d: 0.16 - d @ d}]), atol=1e-6)


@pytest.mark.parametrize("seed", [10, 16, 23])
def test_l1_with_box_against_a_general_solver(seed) -> None:
    """The same point as a quadratic program's, where |d| <= t and sum t <= eps."""
    x, u = images(seed, rows=1, pixels=6), vectors(seed, 1.0, rows=1, pixels=6)
    p, v, pixels = L1(0.9).project(u, x).flatten(), u.flatten(), x.flatten()
    assert ((p != 0) & ((p == -pixels) | (p == 1 - pixels))).any(), "a pixel must be saturated"
    assert ((p == 0) & (v != 0) & (pixels > 0) & (pixels < 1)).any(), "one must be left alone"
    assert p.abs().sum() == pytest.approx(0.9)
    rules = [lambda d: d[6:] - d[:6], lambda d: d[6:] + d[:6], lambda d: 0.9 - d[6:].sum()]
    assert torch.allclose(p, solved(u, x, [{"type": "ineq", "fun": r} for r in rules], 6), atol=1e-6)


def l1_by_bisection(u: Tensor, x: Tensor, eps: float) -> Tensor:
    """The L1-and-box projection of one vector by bisection on the Lagrange multiplier."""
    lo, up = -x, 1 - x
    low, high = 0.0, float(u.abs().max()) + 1

    def at(k: float) -> Tensor:
        return torch.minimum(torch.maximum(u.sign() * (u.abs() - k).clamp(min=0), lo), up)

    if at(0.0).abs().sum() <= eps:
        return at(0.0)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle).abs().sum() > eps else (low, middle)
    return at(high)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([1e-3, 0.1, 0.5, 2.0, 12.0]), SEEDS, st.sampled_from([0.01, 1.0, 30.0]))
def test_l1_with_box_against_bisection(eps, seed, scale) -> None:
    x, u = images(seed), vectors(seed, scale)
    u[0, 0, 0, :4] = u[0, 0, 0, 0]  # ties
    radius = torch.tensor([eps, 2 * eps, eps / 2], dtype=D)
    p = onto(u, x, radius)
    for i in range(len(x)):
        assert torch.allclose(p[i], l1_by_bisection(u[i], x[i], float(radius[i])), atol=1e-12)


def test_l1_projection_of_large_images_in_float32_keeps_the_radius() -> None:
    generator = torch.Generator().manual_seed(3)
    x, u = (torch.rand(4, 3, 64, 64, generator=generator) for _ in range(2))
    for scale in (1e-3, 1.0, 50.0):  # of large numbers that nearly cancel, too
        size = L1(12.0).project(scale * (2 * u - 1), x).double().flatten(1).abs().sum(1)
        assert torch.allclose(size, size.clamp(max=12.0) if scale < 1 else 12.0 + 0 * size, atol=2e-5)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([0.0, 1e-3, 0.1, 0.5, 1.0, 3.0]), SEEDS)
def test_l1_support_is_a_linear_programs_maximum(eps, seed) -> None:
    from scipy.optimize import linprog

    c, x, g = L1(eps), images(seed), vectors(seed, 1.0)
    delta = c.project(vectors(seed + 3, 0.3), x)
    support = c.support(g, x, delta)
    for i in range(len(x)):
        price, lo, up = g[i].flatten(), x[i].flatten(), 1 - x[i].flatten()
        best = linprog(  # d = up - down, both of at least 0
            torch.cat([-price, price]).numpy(),
            A_ub=torch.ones(1, 16).numpy(),
            b_ub=[eps],
            bounds=[(0, float(b)) for b in (*up, *lo)],
        )
        assert float(support[i] + (g[i] * delta[i]).sum()) == pytest.approx(-best.fun, abs=1e-9)
    assert (support >= -1e-12).all()
    assert (c.ball_support(g, delta) >= support - 1e-12).all()


def test_l1_steps_move_the_largest_coordinates() -> None:
    g = torch.tensor([[3.0, -2.0, 1.0, 0.0], [1.0, 1.0, 1.0, -4.0], [0.0, 0.0, 0.0, 0.0]])
    step = largest(g, torch.tensor([2, 2, 3]))
    third = 1 / 4  # three are as large as the second
    assert step.tolist() == [[0.5, -0.5, 0, 0], [third, third, third, -third], [0, 0, 0, 0]]
    grad = 1 + torch.rand(1, 3, 4, 4)
    moved = [int(L1(eps).steepest(grad).gt(0).sum()) for eps in (0.0, 0.2, 6.3, 99.0)]
    assert moved == [1, 1, 13, 48], "two for each unit of eps"


@settings(max_examples=60, deadline=None)
@given(EPS, SEEDS, SCALES)
def test_linf_support_is_the_best_corner(eps, seed, scale) -> None:
    c, x, g = Linf(eps), images(seed, pixels=6), vectors(seed, 1.0, pixels=6)
    delta = c.project(vectors(seed + 3, scale, pixels=6), x)
    lo, up = c.bounds(x)
    corners = []
    for signs in itertools.product([0.0, 1.0], repeat=6):
        s = torch.tensor(signs, dtype=D)
        corners.append((g * (lo + s * (up - lo) - delta)).flatten(1).sum(1))
    best = torch.stack(corners).amax(0)
    assert torch.allclose(c.support(g, x, delta), best, atol=1e-12)
    assert (c.support(g, x, delta) >= -1e-15).all()
    assert (c.ball_support(g, delta) >= c.support(g, x, delta) - 1e-12).all()
    top = torch.where(g > 0, up, lo)
    assert c.support(g, x, top).abs().max() < 1e-12


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([1e-3, 0.1, 0.5, 3.0]), SEEDS)
def test_l2_support_is_a_maximum(eps, seed) -> None:
    c, x, g = L2(eps), images(seed), vectors(seed, 1.0)
    delta = c.project(vectors(seed + 3, 0.1), x)
    climbed = delta
    for step in (10.0, 1e3, 1e5):  # projected gradient ascent on a linear function reaches its maximum
        for _ in range(60):
            climbed = c.project(climbed + step * g, x)
    reached = (g * (climbed - delta)).flatten(1).sum(1)
    support = c.support(g, x, delta)
    assert torch.allclose(support, reached, rtol=1e-4, atol=1e-7)
    assert (support >= reached - 1e-9).all()


@settings(max_examples=40, deadline=None)
@given(KINDS, EPS, SEEDS)
def test_steepest_has_unit_norm_and_the_largest_product(kind, eps, seed) -> None:
    c, g = kind(eps), vectors(seed, 1.0)
    step = c.steepest(g)
    assert (c.size(step) <= 1 + 1e-12).all()
    product = (g * step).flatten(1).sum(1)
    if kind is L1:  # a step of more than half a unit moves several
        best = g.flatten(1).abs().topk(max(1, math.ceil(2 * eps)), dim=1).values.mean(1)
    else:
        best = g.flatten(1).norm(p={Linf: 1, L2: 2}[kind], dim=1)
    assert torch.allclose(product, best)
    assert c.steepest(0 * g).abs().max() == 0


@pytest.mark.parametrize("scale", [1e-10, 1e-13, 1e-20, 1e-30])
@pytest.mark.parametrize("kind", [Linf, L2, L1])
def test_steepest_is_of_a_confident_image_too(kind, scale) -> None:
    c, g = kind(0.5), vectors(3, 1.0).float()
    assert torch.allclose(c.steepest(scale * g), c.steepest(g), rtol=1e-5)


@pytest.mark.parametrize("kind", [Linf, L2, L1])
def test_no_attack(kind) -> None:
    c, x = kind(0.0), images(1)
    noise = Noise(0, torch.arange(3))
    assert c.project(vectors(2, 1.0), x).abs().max() == 0
    assert c.project(c.random(noise, x), x).abs().max() == 0
    assert c.support(vectors(3, 1.0), x, 0 * x).abs().max() < 1e-12


@pytest.mark.parametrize("kind", [Linf, L2, L1])
def test_random_fills_the_ball(kind) -> None:
    c, x = kind(0.25), torch.full((4000, 1, 1, 3), 0.5, dtype=D)
    size = c.size(c.random(Noise(0, torch.arange(4000)), x))
    assert size.max() <= 0.25
    # the size of a uniform draw in a ball of dimension 3 has distribution function (s / eps)^3
    levels = torch.tensor([0.25, 0.5, 0.75], dtype=D)
    assert torch.allclose((size / 0.25).pow(3).quantile(levels), levels, atol=0.03)


def test_l2_retraction_is_differentiable() -> None:
    generator = torch.Generator().manual_seed(0)
    x, u = images(11), torch.randn(3, 1, 1, 8, generator=generator, dtype=D)  # no coordinate on a kink
    saturated = (x + L2(0.4).project(u, x)) % 1 < 1e-12
    assert 0 < saturated.double().mean() < 1
    assert torch.autograd.gradcheck(lambda v: L2(0.4).retract(v, x), (u.requires_grad_(),), atol=1e-6)


def test_l1_retraction_is_differentiable() -> None:
    generator = torch.Generator().manual_seed(0)
    x, u = images(11), torch.randn(3, 1, 1, 8, generator=generator, dtype=D)
    u[2] *= 0.01
    x[2] = 0.5
    p = L1(0.7).project(u, x)
    assert [bool(s) for s in L1(0.7).size(p) > 0.7 - 1e-9] == [True, True, False]
    assert 0 < ((x + p) % 1 < 1e-12).double().mean() < 1
    assert torch.autograd.gradcheck(lambda v: L1(0.7).retract(v, x), (u.requires_grad_(),), atol=1e-6)


def test_interior_is_strict() -> None:
    x = torch.tensor([[[[0.5, 0.5, 0.5, 0.0, 1.0, 0.5]]]], dtype=D)
    delta = torch.tensor([[[[0.1, 0.1 - FREE_MARGIN / 2, 0.1 - 2 * FREE_MARGIN, 0.0, 0.0, -0.1]]]], dtype=D)
    assert Linf(0.1).interior(delta, x).flatten().tolist() == [False, False, True, False, False, False]
    on_the_sphere = torch.tensor([[[[0.1, 0.0]]]], dtype=D)
    half = torch.full_like(on_the_sphere, 0.5)
    for c in (L2(0.1), L1(0.1)):
        assert not c.interior(on_the_sphere, half).any()
        assert c.interior(0.9 * on_the_sphere, half).all()


@pytest.mark.parametrize("eps", [-0.1, math.nan, math.inf, "8/255", None])
@pytest.mark.parametrize("kind", [Linf, L2, L1])
def test_bad_eps(kind, eps) -> None:
    with pytest.raises(UserError, match="eps"):
        kind(eps)


def test_threats_by_name() -> None:
    assert threat("Linf", "8/255") == Linf(8 / 255)
    assert threat("l_2", 0.5) == L2(0.5)
    assert threat("L1", "12") == L1(12.0)
    with pytest.raises(UserError, match="8/255"):
        threat("linf", 8)
    with pytest.raises(UserError, match="did you mean 'linf'"):
        threat("linff", 0.1)
    for bad in ("8/0", "eight", ""):
        with pytest.raises(UserError, match="8/255"):
            threat("linf", bad)
