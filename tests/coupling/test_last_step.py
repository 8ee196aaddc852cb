"""Fast-BAT's coupling: the derivative of the last projected step (M8, M9)."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from tests.coupling.differences import error, gradient, relative
from tests.lower.toys import FirstLogit, SquaredLogits
from tests.methods.glue import Net, minibatches
from torch import Tensor

from bivallate import L1, L2, PGD, Detached, LastStep, Linf, Mask, Method, methods
from bivallate.lower.direction import raw
from bivallate.lower.start import uniform
from bivallate.lower.threat import Threat
from bivallate.noise import Noise
from bivallate.types import Batch

SIZE, EPS = 0.1, 8 / 255


@pytest.fixture
def model() -> Net:
    return Net().eval()


@pytest.fixture
def batch() -> Batch:
    return Batch(*minibatches((8,))[0])


def method(threat: Threat, gain: float, **coupling) -> Method:
    return Method(threat, PGD(0, 0.0, uniform), coupling=LastStep(SIZE, gain, **coupling))


def last_step(model: Net, batch: Batch, threat: Threat) -> Tensor:
    """mean CE at project(z + a grad CE(z)), from the definition; only the projection is the package's."""
    z = threat.project(threat.random(Noise(0, batch.index), batch.x), batch.x).requires_grad_()
    (g,) = torch.autograd.grad(F.cross_entropy(model(batch.x + z), batch.y, reduction="sum"), z)
    delta = threat.project((z + SIZE * g).detach(), batch.x)
    return F.cross_entropy(model(batch.x + delta), batch.y)


@pytest.mark.parametrize("threat", [Linf(EPS), L2(0.2), L1(0.4)])
def test_exact_at_gain_equal_to_the_step_size(model, batch, threat) -> None:
    found, record = gradient(model, method(threat, gain=SIZE), batch)
    if isinstance(threat, Linf):
        assert 0.2 < record.logged["free"] < 0.8
    else:
        z = threat.project(threat.random(Noise(0, batch.index), batch.x), batch.x).requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(model(batch.x + z), batch.y, reduction="sum"), z)
        moved = z.detach() + SIZE * g
        assert (threat.project(moved, batch.x) - moved).abs().flatten(1).amax(1).gt(1e-6).any()
    assert error(model, lambda: last_step(model, batch, threat), found) <= 1e-6
    without, _ = gradient(model, method(threat, gain=0.0), batch)
    assert error(model, lambda: last_step(model, batch, threat), without) > 1e-3


def test_linear_in_the_gain(model, batch) -> None:
    none, one, five = (gradient(model, method(Linf(EPS), gain), batch)[0] for gain in (0.0, 0.1, 0.5))
    assert relative(five - none, 5 * (one - none)) < 1e-12
    assert (one - none).norm() > 1e-4 * none.norm()


def test_the_cross_derivative_belongs_at_z(model, batch) -> None:
    at_delta, record = gradient(model, method(Linf(EPS), SIZE, cross_at="delta"), batch)
    assert 0.2 < record.logged["free"] < 0.8
    assert error(model, lambda: last_step(model, batch, Linf(EPS)), at_delta) > 1e-3


def test_no_free_coordinate_no_implicit_part(model, batch) -> None:  # M8a
    far = methods.fast_bat(Linf(1e-4), step_size=1e6).but(attack_mode="eval")
    coupled, record = gradient(model, far, batch)
    detached = far.but(coupling=Detached(), solver=PGD(2, 1e6, uniform, raw))
    plain, _ = gradient(model, detached, batch)
    assert record.logged["free"] == 0
    assert torch.equal(coupled, plain)


def test_at_the_solution_it_is_half_the_squared_masked_gradient(model, batch) -> None:  # M8b, D5
    rho, threat = 0.3, Linf(EPS)
    solver = PGD(3, SIZE, uniform, raw)
    masked, record = gradient(model, Method(threat, solver, coupling=Mask(rho)), batch)
    assert 0.2 < record.logged["free"] < 0.8

    z = threat.project(threat.random(Noise(0, batch.index), batch.x), batch.x)
    for _ in range(3):
        z = z.detach().requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(model(batch.x + z), batch.y, reduction="sum"), z)
        z = threat.project((z + SIZE * g).detach(), batch.x)
    lo, up = threat.bounds(batch.x)
    free = ((lo + 1e-7 < z) & (z < up - 1e-7)).double()
    point = z.requires_grad_()
    loss = F.cross_entropy(model(batch.x + point), batch.y, reduction="sum")
    (g,) = torch.autograd.grad(loss, point, create_graph=True)
    penalised = (loss + rho / 2 * (free * g).square().sum()) / len(batch.y)
    expected = torch.cat([v.flatten() for v in torch.autograd.grad(penalised, list(model.parameters()))])
    assert relative(masked, expected) < 1e-12

    short = Method(threat, solver, coupling=LastStep(1e-10, rho))  # z is delta* but for 1e-10
    close, _ = gradient(model, short, batch)
    assert relative(close, masked) < 1e-6


def test_without_gain_it_is_the_step_alone(model, batch) -> None:  # M8d
    zero, _ = gradient(model, method(Linf(EPS), 0.0), batch)
    step, _ = gradient(model, Method(Linf(EPS), PGD(1, SIZE, uniform, raw)), batch)
    assert relative(zero, step) < 1e-14
    signs = Method(Linf(EPS), PGD(1, 1.25 * EPS, uniform), attack_mode="train")
    fast, _ = gradient(model, methods.fast_at(Linf(EPS)), batch)
    assert torch.equal(gradient(model, signs, batch)[0], fast)


def test_hessian_aware_is_the_dense_system(model, batch) -> None:  # M9
    gain, threat = 0.3, Linf(EPS)
    small = Batch(batch.x[:3], batch.y[:3], batch.index[:3])
    exact = method(threat, gain, curvature_steps=200, tolerance=1e-13)
    found, record = gradient(model, exact, small)
    assert 0.2 < record.logged["free"] < 0.8
    assert record.logged["negative_curvature"] == 0
    z = threat.project(threat.random(Noise(0, small.index), small.x), small.x).requires_grad_()
    ce = F.cross_entropy(model(small.x + z), small.y, reduction="sum")
    (g,) = torch.autograd.grad(ce, z, create_graph=True)
    delta = threat.project((z + SIZE * g).detach(), small.x)
    free = threat.interior(delta, small.x)
    total = torch.zeros((), dtype=torch.float64)
    for i in range(3):
        point, keep = delta[i].flatten(), free[i].flatten()

        def attack(d: Tensor, i: int = i) -> Tensor:
            return -F.cross_entropy(
                model(small.x[i : i + 1] + d.view(1, *small.x.shape[1:])), small.y[i : i + 1]
            )

        H = torch.autograd.functional.hessian(attack, point)
        o = -torch.autograd.functional.jacobian(attack, point)
        assert isinstance(H, Tensor)
        assert isinstance(o, Tensor)
        H = H + torch.eye(len(point)) / SIZE
        v = torch.zeros_like(point)
        v[keep] = torch.linalg.solve(H[keep][:, keep], o[keep])
        total = total + (g[i].flatten() * (gain / SIZE * v)).sum()
    outer = F.cross_entropy(model(small.x + delta), small.y, reduction="sum")
    surrogate = (outer + total) / 3
    expected = torch.cat([v.flatten() for v in torch.autograd.grad(surrogate, list(model.parameters()))])
    assert relative(found, expected) < 1e-9
    hessian_free, _ = gradient(model, method(threat, gain), small)
    assert relative(hessian_free, expected) > 1e-4


def test_hessian_free_where_the_loss_is_linear_in_delta(batch) -> None:  # M9 invariants
    class Linear(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer = torch.nn.Linear(36, 1).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.flatten(1))

    linear = Linear()
    binary = Method(Linf(EPS), PGD(0, 0.0, uniform), objective=FirstLogit(), coupling=LastStep(0.25, 0.3))
    binary = binary.but(loss=SquaredLogits())
    aware = binary.but(coupling=LastStep(0.25, 0.3, curvature_steps=1))
    a, record = gradient(linear, binary, batch)
    b, _ = gradient(linear, aware, batch)
    assert 0.2 < record.logged["free"] < 0.8
    assert relative(a, b) < 1e-12


def test_huge_lambda_makes_the_hessian_vanish(model, batch) -> None:  # M9: a -> 0 with rho fixed
    for size, bound in ((1e-2, 1e-1), (1e-6, 1e-5)):
        free = Method(Linf(EPS), PGD(0, 0.0, uniform), coupling=LastStep(size, 0.1))
        aware = free.but(coupling=LastStep(size, 0.1, curvature_steps=5))
        assert relative(gradient(model, aware, batch)[0], gradient(model, free, batch)[0]) < bound


def test_negative_curvature_keeps_the_hessian_free_value(model, batch) -> None:
    hessian_free = Method(Linf(1.0), PGD(0, 0.0, uniform), coupling=LastStep(1.0, 0.1))
    aware = hessian_free.but(coupling=LastStep(1.0, 0.1, curvature_steps=5))
    fell_back = []
    for i in range(len(batch.y)):
        alone = Batch(batch.x[i : i + 1], batch.y[i : i + 1], batch.index[i : i + 1])
        found, record = gradient(model, aware, alone)
        fell_back.append(record.logged["negative_curvature"])
        same = relative(found, gradient(model, hessian_free, alone)[0]) < 1e-12
        assert same == (fell_back[-1] == 1)
    _, record = gradient(model, aware, batch)
    assert record.logged["negative_curvature"] == pytest.approx(sum(fell_back) / len(batch.y))
    assert 0 < sum(fell_back) < len(batch.y)


def test_the_mask_is_strict() -> None:
    x = torch.tensor([[[[0.5, 0.5, 0.5, 0.999]]]], dtype=torch.float64)
    threat = Linf(0.1)
    raw_step = torch.tensor([[[[0.1, -0.1, 0.05, 0.001]]]], dtype=torch.float64).requires_grad_()
    threat.retract(raw_step, x).sum().backward()
    assert raw_step.grad is not None
    assert raw_step.grad.flatten().tolist() == [0, 0, 1, 0]
    clamped = raw_step.detach().clone().requires_grad_()
    clamped.clamp(-0.1, 0.1).sum().backward()
    assert clamped.grad is not None
    assert clamped.grad.flatten().tolist() == [1, 1, 1, 1], "autograd of clamp is the trap"


@pytest.mark.parametrize("coupling", [LastStep(SIZE, 0.1), LastStep(SIZE, 0.1, 3), Mask()])
def test_coupling_in_eval_mode_survives_moving_statistics(coupling) -> None:
    """The upper pass moves the running statistics that the kept graph was built with."""
    model, batch = Net().train(), Batch(*minibatches((8,))[0])
    method = Method(Linf(EPS), PGD(1, SIZE, uniform, raw), coupling=coupling, attack_mode="eval")
    moving, _ = gradient(copy.deepcopy(model), method, batch)
    for norm in (model.norm1, model.norm2):
        assert isinstance(norm, torch.nn.BatchNorm2d)
        norm.momentum = 0.0
    still, _ = gradient(model, method, batch)
    assert torch.equal(moving, still)
