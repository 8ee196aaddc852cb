"""The references' gradients and weights checked against finite differences, closed forms and constants."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from tests.reference import cid, done, fast_bat, plain_at, plainsgd, reweighted
from tests.reference.settings import EPS, Small, draws, flat, gradient, minibatches, trained
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import vector_to_parameters

D = torch.float64


def close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> bool:
    return bool((a - b).abs().max() <= tolerance)


# --- Fast-BAT (M8, M9)


def _composed(theta: Tensor, z: Tensor, a: float, x: Tensor, y: Tensor) -> float:
    """mean CE(theta, Pi(z + a grad CE(theta, z))), z held."""
    model = Small()
    vector_to_parameters(theta, model.parameters())
    point = z.clone().requires_grad_()
    (g,) = torch.autograd.grad(F.cross_entropy(model(x + point), y, reduction="sum"), point)
    lo, up = plainsgd.box(x, EPS)
    return F.cross_entropy(model(x + torch.minimum(torch.maximum(z + a * g, lo), up)), y).item()


def test_fast_bat_is_the_derivative_of_the_composed_loss() -> None:
    batch = minibatches()[0]
    x, y, index = batch
    a = 0.02
    # With rho = a the implicit part has its true size.
    total, log = gradient(fast_bat.fast_bat, batch, a=a, rho=a, scheme="uniform")
    assert 0.2 < log["free_fraction"] < 0.95
    explicit, _ = gradient(fast_bat.fast_bat, batch, a=a, rho=0.0, scheme="uniform")
    misplaced, _ = gradient(fast_bat.fast_bat, batch, a=a, rho=a, scheme="uniform", cross_at="delta")
    lo, up = plainsgd.box(x, EPS)
    z = plainsgd.clip(EPS * (2 * draws("start:uniform", 0, x, index) - 1), lo, up)
    theta = flat(Small())
    generator = torch.Generator().manual_seed(0)
    errors, without, at_delta = [], [], []
    for _ in range(8):
        v = torch.randn(len(theta), dtype=D, generator=generator)
        h = 1e-6
        slope = (_composed(theta + h * v, z, a, x, y) - _composed(theta - h * v, z, a, x, y)) / (2 * h)
        errors.append(abs(slope - float(total @ v)))
        without.append(abs(slope - float(explicit @ v)))
        at_delta.append(abs(slope - float(misplaced @ v)))
    assert max(errors) < 1e-7
    assert max(without) > 1e-2
    assert max(at_delta) > 1e-4


def test_fast_bat_without_free_coordinates_has_no_implicit_part() -> None:
    batch = minibatches()[0]
    with_rho, log = gradient(fast_bat.fast_bat, batch, a=1e5, rho=0.1)
    without, _ = gradient(fast_bat.fast_bat, batch, a=1e5, rho=0.0)
    assert log["free_fraction"] == 0
    assert torch.equal(with_rho, without)


def test_masked_conjugate_gradients_solve_on_the_free_coordinates() -> None:
    generator = torch.Generator().manual_seed(0)
    M = torch.randn(2, 6, 6, dtype=D, generator=generator)
    M = M @ M.transpose(1, 2) / 6
    M[1] -= 3 * torch.eye(6, dtype=D)  # the second sample's matrix is negative definite
    free = torch.tensor([[1.0, 0, 1, 1, 0, 1], [1, 1, 0, 1, 1, 0]], dtype=D)
    rhs = free * torch.randn(2, 6, dtype=D, generator=generator)
    point = torch.zeros(2, 6, dtype=D, requires_grad=True)
    h = (M @ point[:, :, None])[:, :, 0]
    v, failed = fast_bat._masked_cg(h, point, free, 0.1, rhs, 50, 1e-14)
    assert failed.tolist() == [False, True]
    F_ = free[0].bool()
    expected = torch.linalg.solve(M[0][F_][:, F_] + 0.1 * torch.eye(4, dtype=D), rhs[0][F_])
    assert close(v[0][F_], expected, 1e-10)
    assert not v[0][~F_].any()


def test_hessian_aware_tends_to_hessian_free_as_the_step_vanishes() -> None:
    batch = minibatches()[0]
    gaps = []
    for a in (1e-3, 1e-5):
        settings = {"a": a, "scheme": "uniform", "cg_steps": 50, "cg_tol": 1e-12}
        aware, log = gradient(fast_bat.fast_bat, batch, hessian=True, **settings)
        unaware, _ = gradient(fast_bat.fast_bat, batch, **settings)
        assert log["fallback_fraction"] == 0
        gaps.append(float((aware - unaware).norm()))
    assert 80 < gaps[0] / gaps[1] < 120  # the Hessian's part is of first order in a = 1 / lambda


# --- GAIRAT (M15)


def test_gairat_constants() -> None:
    kappa = torch.tensor([0.0, 5.0, 10.0], dtype=D)
    got = reweighted.gairat_omega(kappa, 10, -1.0)
    for value, expected in zip(got.tolist(), (0.999665, 0.119203, 6.144e-6), strict=True):
        assert value == pytest.approx(expected, rel=2e-4)
    got = reweighted.gairat_omega(kappa, 10, 0.0)
    for value, expected in zip(got.tolist(), (0.999955, 0.5, 4.540e-5), strict=True):
        assert value == pytest.approx(expected, rel=2e-4)


class _Scripted(nn.Module):
    """Answers its k-th call with the k-th row of correct (True) and wrong (False) predictions."""

    def __init__(self, script: list[list[bool]], y: Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=D))
        self.script, self.y, self.calls = script, y, 0

    def forward(self, x: Tensor) -> Tensor:
        right = torch.tensor(self.script[min(self.calls, len(self.script) - 1)])
        self.calls += 1
        logits = F.one_hot(torch.where(right, self.y, (self.y + 1) % 3), 3).to(D)
        return self.scale * logits + 0 * x.flatten(1).sum(1, keepdim=True)


def test_kappa_counts_every_correct_iterate_even_after_a_failure() -> None:
    x, y, index = (t[:2] for t in minibatches()[0])
    script = [[True, True], [False, True], [True, True], [False, True]]
    model = _Scripted(script, y)
    log = reweighted.gairat(model, [(x, y, index)], draws, eps=EPS, lr=0.0, steps=4)
    assert model.calls == 5  # four iterates before each step, and the outer pass
    assert log[0]["kappa"] == (2 + 4) / 2


# --- DONE (M21)


def _log_mean_exp(r: float, x: Tensor, y: Tensor) -> Tensor:
    model = Small()
    losses = F.cross_entropy(model(x), y, reduction="none")
    value = r * (torch.logsumexp(losses / r, 0) - math.log(len(x)))
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(model.parameters()))])


@pytest.mark.parametrize("r", [10.0, 1.0, 0.1])
def test_the_weights_of_done_are_the_gradient_of_the_soft_maximum(r: float) -> None:
    x, y, index = minibatches()[0]
    settings = {"steps": 0, "start": "zero", "implicit": "none", "eta": 1.0, "guard": None, "r": r}
    got, log = gradient(done.done, (x, y, index), **settings)
    assert close(got, _log_mean_exp(r, x, y), 1e-12)
    assert log["sum_w"] == pytest.approx(1.0, abs=1e-12)


def test_done_with_equal_weights_and_no_implicit_part_is_adversarial_training() -> None:
    settings = {"steps": 3, "alpha": 2 / 255}
    at = trained(plain_at.pgd_at, attack_mode="train", norm=True, **settings)
    assert close(trained(done.done, r=1e13, implicit="none", norm=True, **settings), at)
    assert close(trained(done.done, r=1e13, gain=0.0, norm=True, **settings), at)
    assert close(trained(done.done, r=1e13, c=1e15, norm=True, **settings), at)
    assert not close(trained(done.done, r=1e13, norm=True, **settings), at, 1e-6)


def test_the_running_estimate_is_the_plain_recursion_in_log_space() -> None:
    rate, r = 0.6, 0.5
    for guard in (None, 1.05):
        model, shadow = Small(), Small()
        settings = {"steps": 0, "start": "zero", "implicit": "none", "eta": rate, "guard": guard, "r": r}
        log = done.done(model, minibatches(), draws, eps=EPS, lr=0.5, **settings)
        u: float | None = None
        guarded = 0
        params, buffers = list(shadow.parameters()), []
        for entry, (x, y, _) in zip(log, minibatches(), strict=True):
            losses = F.cross_entropy(shadow(x), y, reduction="none")
            g = torch.exp(losses.detach() / r)
            u = g.mean().item() if u is None else (1 - rate) * u + rate * g.mean().item()
            if guard is not None and u > guard * g.mean().item():
                u, guarded = guard * g.mean().item(), guarded + 1
            assert entry["log_u"] == pytest.approx(math.log(u), abs=1e-12)
            grads = torch.autograd.grad((g / u * losses).mean(), params)
            plainsgd.sgd(params, grads, buffers, 0.5, 0.9, 5e-4)
        assert close(flat(model), flat(shadow))
        assert (guarded > 0) == (guard is not None)


def test_the_estimate_starts_afresh_when_the_temperature_changes() -> None:
    settings = {"steps": 1, "eta": 0.5, "guard": None}
    log = done.done(Small(), minibatches(), draws, eps=EPS, lr=0.3, r=[10.0, 1.0, 1.0], **settings)
    assert log[0]["sum_w"] == pytest.approx(1.0, abs=1e-12)
    assert log[1]["sum_w"] == pytest.approx(1.0, abs=1e-12)
    assert abs(log[2]["sum_w"] - 1) > 1e-3
    extreme = done.done(Small(), minibatches(), draws, eps=EPS, lr=30.0, r=0.1, steps=1, eta=0.5)
    assert (
        max(entry["log_u"] for entry in extreme) > 500
    )  # exp of it overflows even in double precision nearly
    assert all(math.isfinite(value) for entry in extreme for value in entry.values())
    assert all(1 / 2 - 1e-12 <= entry["sum_w"] <= 1 / 0.5 + 1e-12 for entry in extreme)


def test_the_masked_implicit_part_is_the_gradient_of_a_penalty() -> None:
    x, y, index = minibatches()[0]
    settings = {"steps": 0, "start": "zero", "r": 1e13, "rho": 0.3}
    got, _ = gradient(done.done, (x, y, index), implicit="mask", **settings)
    model = Small()
    point = torch.zeros_like(x, requires_grad=True)
    losses = F.cross_entropy(model(x + point), y, reduction="none")
    (a,) = torch.autograd.grad(losses.sum(), point, create_graph=True)
    inside = ((x > 1e-7) & (x < 1 - 1e-7)).to(D)
    assert 0 < inside.mean() < 1
    value = (losses + 0.15 * (inside * a).square().flatten(1).sum(1)).mean()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(value, list(model.parameters()))])
    assert close(got, expected, 1e-11)


def test_the_mask_of_done_is_the_cross_term_of_fast_bat_at_the_solution() -> None:
    batch = minibatches()[0]
    settings = {"solver": "gd", "steps": 1, "alpha": 0.02, "implicit": "mask", "rho": 0.1, "r": 1e13}
    weighted, _ = gradient(done.done, batch, **settings)
    bat, log = gradient(fast_bat.fast_bat, batch, a=0.02, rho=0.1, scheme="uniform", cross_at="delta")
    at_z, _ = gradient(fast_bat.fast_bat, batch, a=0.02, rho=0.1, scheme="uniform")
    assert 0.2 < log["free_fraction"] < 0.95
    assert close(weighted, bat, 1e-11)
    assert not close(weighted, at_z, 1e-6)


def test_one_step_of_adam_is_one_step_of_signs() -> None:
    adam = trained(done.done, solver="adam", steps=1, alpha=2 / 255, adam_eps=1e-30)
    assert close(adam, trained(done.done, solver="pgd", steps=1, alpha=2 / 255), 1e-10)


def test_the_fast_setting_is_two_raw_steps() -> None:
    fast = trained(done.done_fast, a_warm=0.01, a_gd=0.01, norm=True)
    assert close(fast, trained(done.done, solver="gd", steps=2, alpha=0.01, norm=True))


# --- Proposition 1 of DONE (D3)

_FEATURES, _HIDDEN, _SAMPLES = 4, 5, 3


def _tiny_loss(theta: list[Tensor], delta: Tensor, i: int) -> Tensor:
    """A smooth network's cross-entropy on sample i."""
    generator = torch.Generator().manual_seed(100 + i)
    x = torch.rand(_FEATURES, dtype=D, generator=generator)
    z = theta[1] @ torch.tanh(theta[0] @ (x + delta))
    return torch.logsumexp(z, 0) - z[i % 3]


def _tiny_theta() -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [
        torch.randn(_HIDDEN, _FEATURES, dtype=D, generator=generator),
        torch.randn(3, _HIDDEN, dtype=D, generator=generator),
    ]


_LO, _UP = torch.full((_FEATURES,), -0.3, dtype=D), torch.full((_FEATURES,), 0.2, dtype=D)


def _tiny_solutions(theta: list[Tensor], c: float, starts: list[Tensor] | None = None) -> list[Tensor]:
    return [
        done.barrier_argmin(
            lambda d, i=i: -_tiny_loss(theta, d, i), _LO, _UP, c, starts[i] if starts else None
        )
        for i in range(_SAMPLES)
    ]


def test_proposition_1_is_the_derivative_through_the_barrier_solution() -> None:
    r, c = 0.7, 0.05
    theta = _tiny_theta()
    deltas = _tiny_solutions(theta, c)
    assert all(bool(((d > _LO) & (d < _UP)).all()) for d in deltas)

    def value(parameters: list[Tensor]) -> float:
        solutions = _tiny_solutions(parameters, c, deltas)
        losses = torch.stack([_tiny_loss(parameters, solutions[i], i) for i in range(_SAMPLES)])
        return r * (torch.logsumexp(losses / r, 0).item() - math.log(_SAMPLES))

    def flattened(**options: bool) -> Tensor:
        los, ups = [_LO] * _SAMPLES, [_UP] * _SAMPLES
        got = done.proposition_1(_tiny_loss, theta, deltas, los, ups, r=r, c=c, **options)
        return torch.cat([g.flatten() for g in got])

    exact, no_hessian, no_implicit = flattened(), flattened(drop_hessian=True), flattened(drop_implicit=True)
    for direction in (
        *torch.randn(4, len(exact), dtype=D, generator=torch.Generator().manual_seed(1)),
        exact / exact.norm(),
    ):
        h = 1e-5
        pieces = direction.split([p.numel() for p in theta])
        ends = [
            value([p + s * h * v.view_as(p) for p, v in zip(theta, pieces, strict=True)]) for s in (1, -1)
        ]
        assert (ends[0] - ends[1]) / (2 * h) == pytest.approx(float(exact @ direction), abs=1e-7)
    short = float((no_hessian - exact).norm() / exact.norm())
    shorter = float((no_implicit - exact).norm() / exact.norm())
    assert 1e-3 < short < shorter / 2


def test_the_hessian_aware_option_is_proposition_1_at_the_point_reached() -> None:
    batch = minibatches()[0]
    x, y, index = batch
    c = 1e-3
    settings = {"solver": "gd", "steps": 2, "alpha": 2e-3, "c": c, "eta": 1.0, "r": 0.8}
    dense, log = gradient(done.done, batch, hessian="dense", **settings)
    iterated, _ = gradient(done.done, batch, hessian="cg", cg_steps=60, cg_tol=1e-15, **settings)
    dropped, _ = gradient(done.done, batch, **settings)
    assert log["boundary"] < 1
    assert close(dense, iterated, 1e-10)
    assert not close(dense, dropped, 1e-4)

    model = Small()
    names = [n for n, _ in model.named_parameters()]
    lo, up = plainsgd.box(x, EPS)
    delta = plainsgd.clip(EPS * (2 * draws("start:uniform", 0, x, index) - 1), lo, up)
    for _ in range(2):
        delta = delta.detach().requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(model(x + delta), y, reduction="sum"), delta)
        delta = plainsgd.clip(delta.detach() + 2e-3 * g, lo, up)
    interior = [i for i in range(len(x)) if bool(((delta > lo) & (delta < up))[i].all())]
    assert interior  # pixels at 0 or 1 sit on the boundary: Proposition 1 is about samples without any

    def loss(theta: list[Tensor], d: Tensor, i: int) -> Tensor:
        n = interior[i]
        logits = functional_call(
            model, dict(zip(names, theta, strict=True)), x[n : n + 1] + d.view(1, 1, 4, 4)
        )
        return F.cross_entropy(logits, y[n : n + 1])

    flatten = [(delta[n].flatten(), lo[n].flatten(), up[n].flatten()) for n in interior]
    ds, los, ups = ([entry[k] for entry in flatten] for k in range(3))
    expected = done.proposition_1(loss, [p.detach() for p in model.parameters()], ds, los, ups, r=0.8, c=c)
    subset = (x[interior], y[interior], index[interior])
    got, _ = gradient(done.done, subset, hessian="dense", **settings)
    assert close(got, torch.cat([g.flatten() for g in expected]), 1e-10)


# --- BiLAW and non-parametric weights (M18, M20)


def _mu(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [0.7 * torch.randn(s, dtype=D, generator=generator) for s in ((6, 3), (6,), (1, 6), (1,))]


@pytest.mark.parametrize("host", ["at", "trades"])
def test_the_meta_gradient_is_its_finite_difference(host: str) -> None:
    batch, meta = minibatches()[:1], minibatches((4,), seed=9)
    settings = {"meta": meta, "host": host, "eps": EPS, "lr": 0.5, "steps": 3}
    record: list[dict[str, Tensor]] = []
    reweighted.bilaw(Small(), batch, draws, mu=_mu(), record=record, **settings)
    got = record[0]["meta_gradient"]
    assert got.norm() > 1e-5
    generator = torch.Generator().manual_seed(3)
    for _ in range(4):
        direction = [torch.randn(p.shape, dtype=D, generator=generator) for p in _mu()]
        ends = []
        for h in (1e-5, -1e-5):
            moved = [p + h * v for p, v in zip(_mu(), direction, strict=True)]
            ends.append(reweighted.bilaw(Small(), batch, draws, mu=moved, **settings)[0]["validation"])
        along = torch.cat([v.flatten() for v in direction])
        assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(float(got @ along), abs=1e-8)


def test_the_meta_gradient_is_minus_beta_times_the_correlations() -> None:
    beta = 0.5
    (x, y, index), (xv, yv, index_v) = minibatches()[0], minibatches((4,), seed=9)[0]
    record: list[dict[str, Tensor]] = []
    mu = _mu()
    reweighted.bilaw(
        Small(),
        [(x, y, index)],
        draws,
        meta=[(xv, yv, index_v)],
        mu=mu,
        eps=EPS,
        lr=beta,
        steps=3,
        record=record,
    )
    model = Small().eval()
    params = dict(model.named_parameters())
    leaves = [p.requires_grad_() for p in _mu()]
    p = model(x).detach().softmax(1)
    omega = reweighted.omega_mu(leaves, p.gather(1, y[:, None]) - p)
    w = omega / omega.sum()
    losses = F.cross_entropy(model(x + record[0]["delta"]), y, reduction="none")
    each = [torch.autograd.grad(one, list(params.values()), retain_graph=True) for one in losses]
    moved = {}
    for k, (name, parameter) in enumerate(params.items()):
        step = sum(float(w[j].detach()) * each[j][k] for j in range(len(x)))
        moved[name] = (parameter - beta * step).detach().requires_grad_()
    validation = F.cross_entropy(functional_call(model, moved, xv + record[0]["meta_delta"]), yv)
    v = torch.autograd.grad(validation, list(moved.values()))
    c = torch.tensor([sum(float((a * b).sum()) for a, b in zip(g, v, strict=True)) for g in each], dtype=D)
    closed = torch.autograd.grad((-beta * c * w).sum(), leaves)
    assert close(torch.cat([g.flatten() for g in closed]), record[0]["meta_gradient"], 1e-12)
    # Adam's first step goes against the sign of the gradient: aligned samples gain weight.
    gained = record[0]["weights"] - w.detach()
    assert float((c * gained).sum()) > 0


def test_the_correlations_are_the_derivative_in_the_weights() -> None:
    beta = 0.5
    (x, y, index), (xv, yv, index_v) = minibatches()[0], minibatches((4,), seed=9)[0]
    record: list[dict[str, Tensor]] = []
    reweighted.nonparametric(
        Small(),
        [(x, y, index)],
        draws,
        meta=[(xv, yv, index_v)],
        eps=EPS,
        lr=beta,
        steps=3,
        record=record,
    )
    model = Small().eval()
    params = dict(model.named_parameters())
    e = torch.full((len(x),), 1 / len(x), dtype=D, requires_grad=True)
    losses = F.cross_entropy(model(x + record[0]["delta"]), y, reduction="none")
    g = torch.autograd.grad((e * losses).sum(), list(params.values()), create_graph=True)
    moved = {name: p - beta * g_p for (name, p), g_p in zip(params.items(), g, strict=True)}
    validation = F.cross_entropy(functional_call(model, moved, xv + record[0]["meta_delta"]), yv)
    (slope,) = torch.autograd.grad(validation, e)
    assert close(record[0]["correlations"], -slope / beta, 1e-12)
    w = record[0]["weights"]
    assert bool((w >= 0).all())
    assert w.sum().item() == pytest.approx(1.0, abs=1e-12)
    assert bool(((record[0]["correlations"] > 0) == (w > 0)).all())


def test_a_constant_network_leaves_the_host() -> None:
    constant = [
        torch.zeros(6, 3, dtype=D),
        torch.zeros(6, dtype=D),
        torch.zeros(1, 6, dtype=D),
        torch.zeros(1, dtype=D),
    ]
    meta = minibatches((4, 4, 4), seed=9)
    at = trained(plain_at.pgd_at, steps=3)
    learned = trained(reweighted.bilaw, mu=constant, meta=meta, steps=3, mu_lr=0.0)
    assert close(learned, at)


# --- CID (D7, D8)


def test_cid_converges_to_the_optimum_at_the_rate_of_its_inner_loop() -> None:
    problem = cid.quadratic()
    errors = [cid.solve_quadratic(problem, K, 1000) for K in (1, 5, 20)]
    assert errors[0] > 0.5
    assert 1e-3 < errors[1] < 0.3 * errors[0]
    assert errors[2] < 1e-3


def test_the_generic_algorithm_is_the_one_written_out_for_the_quadratic() -> None:
    problem = cid.quadratic()
    theta, path = cid.cid(
        problem.functions(),
        torch.zeros_like(problem.theta_star),
        f_gradient=lambda u: problem.r / u,
        batches=[range(len(problem.A))] * 10,
        K=5,
        alpha=0.5,
        beta=lambda t: 0.3 / math.sqrt(t + 10),
        eta=lambda t: 0.9,
    )
    assert (theta - problem.theta_star).norm().item() == pytest.approx(
        cid.solve_quadratic(problem, 5, 10), abs=1e-12
    )
    assert len(path) == 10


def test_the_running_estimate_removes_the_bias_of_small_batches() -> None:
    """One function a step without memory solves the average problem; with memory, the robust one."""
    assert cid.bias_optimum() == pytest.approx(0.3605, abs=5e-5)
    for eta, expected in ((1.0, 0.80), (0.5, 0.612), (0.1, 0.39), (0.01, 0.357)):
        assert cid.bias_experiment(eta) == pytest.approx(expected, abs=0.02)
