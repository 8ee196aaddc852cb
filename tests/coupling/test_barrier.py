"""DONE's coupling: Proposition 1 in full, and the Hessian-free formula that the paper uses (M21)."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from tests.coupling.differences import error, gradient, relative
from tests.methods.glue import EPS, Net, minibatches
from torch import Tensor

from bivallate import KLDRO, L2, PGD, Barrier, Detached, LastStep, Linf, Mask, Method, UserError, methods
from bivallate.coupling.barrier import barrier_inverse
from bivallate.lower.direction import adam, raw, steepest
from bivallate.lower.interior import BarrierAscent, InteriorAscent
from bivallate.lower.objective import cross_entropy
from bivallate.lower.problem import LowerProblem
from bivallate.lower.start import uniform
from bivallate.types import Batch

R, C = 0.7, 2e-3
THREAT = Linf(0.1)
DRO = KLDRO(temperature=R, rate=1.0, guard=math.inf)


@pytest.fixture
def model() -> Net:
    return Net().eval()


@pytest.fixture
def batch() -> Batch:
    """Away from the corners, so that every box has an interior."""
    x, y, index = minibatches((6,))[0]
    return Batch(0.2 + 0.6 * x, y, index)


def interior(**barrier) -> Method:
    return Method(THREAT, InteriorAscent(60, C), coupling=Barrier(c=C, **barrier), weighting=DRO)


def robust_risk(model: Net, batch: Batch) -> Tensor:
    """r log mean exp(l_i(delta_i*) / r) at the barrier problem's own solution."""
    delta = InteriorAscent(60, C).solve(LowerProblem(model, batch, cross_entropy, THREAT)).delta
    losses = F.cross_entropy(model(batch.x + delta), batch.y, reduction="none")
    return R * ((losses / R).logsumexp(0) - math.log(len(losses)))


def test_proposition_1_is_exact_with_the_hessian(model, batch) -> None:  # D3
    problem = LowerProblem(model, batch, cross_entropy, THREAT)
    delta = InteriorAscent(60, C).solve(problem).delta
    lo, up = THREAT.bounds(batch.x)
    stationary = problem.logits_and_gradient(delta)[1] + C * (1 / (delta - lo) - 1 / (up - delta))
    assert stationary.abs().max() < 1e-9, "the lower level must be solved"
    assert (delta - lo).min() > 1e-3 * 0.2 + 1e-6, "and its solution strictly inside"

    full, record = gradient(model, interior(curvature_steps=200, tolerance=1e-13), batch)
    assert record.logged["negative_curvature"] == 0
    exact = error(model, lambda: robust_risk(model, batch), full, directions=4)
    dropped = error(
        model, lambda: robust_risk(model, batch), gradient(model, interior(), batch)[0], directions=2
    )
    none = interior().but(coupling=Detached())
    omitted = error(model, lambda: robust_risk(model, batch), gradient(model, none, batch)[0], directions=2)
    assert exact <= 1e-6
    assert 1e-5 < dropped < omitted / 2, (dropped, omitted)


def test_the_sign_of_the_implicit_part(model, batch) -> None:
    """With l' = -l the implicit term is added."""
    plain, _ = gradient(model, interior().but(coupling=Detached()), batch)
    plus, _ = gradient(model, interior(), batch)
    minus, _ = gradient(model, interior(gain=-1.0), batch)
    values = [error(model, lambda: robust_risk(model, batch), g, directions=2) for g in (plus, plain, minus)]
    assert values == sorted(values)


def test_hessian_free_equals_its_formula(model) -> None:
    batch = Batch(*minibatches((6,))[0])
    solver, c = PGD(2, 0.3 * EPS, uniform), EPS**2 / 0.2
    found, record = gradient(model, Method(Linf(EPS), solver, coupling=Barrier(), weighting=DRO), batch)
    delta = solver.solve(LowerProblem(model, batch, cross_entropy, Linf(EPS))).delta
    assert 0.2 < record.logged["free"] < 0.8
    lo, up = Linf(EPS).bounds(batch.x)
    naive = 1 / (c * (1 / (up - delta) ** 2 + 1 / (delta - lo) ** 2))
    D = torch.where((delta > lo) & (delta < up), naive, 0)
    assert record.logged["sensitivity"] == pytest.approx(float(D.mean()), rel=1e-6)
    for sensitivity, coupling in (
        (D, Barrier()),
        (0.1 * Linf(EPS).interior(delta, batch.x).double(), Mask()),
    ):
        point = delta.clone().requires_grad_()
        losses = F.cross_entropy(model(batch.x + point), batch.y, reduction="none")
        (a,) = torch.autograd.grad(losses.sum(), point, create_graph=True)
        w = (losses.detach() / R).softmax(0)
        implicit = (a * sensitivity * a.detach()).flatten(1).sum(1)
        surrogate = (w * (losses + implicit)).sum()
        expected = torch.cat([v.flatten() for v in torch.autograd.grad(surrogate, list(model.parameters()))])
        found, _ = gradient(model, Method(Linf(EPS), solver, coupling=coupling, weighting=DRO), batch)
        assert relative(found, expected) < 1e-12


def test_inverse_is_the_matrix_inverse_inside_and_zero_on_the_bounds() -> None:
    x = torch.full((1, 1, 1, 5), 0.5, dtype=torch.float64)
    delta = torch.tensor([[[[-0.1, 0.1, 0.0, 0.05, -0.09]]]], dtype=torch.float64)
    c = 0.1**2 / 0.2
    found = barrier_inverse(delta, x, Linf(0.1), c).flatten()
    up, lo = 0.1 - delta.flatten(), delta.flatten() + 0.1
    assert found[:2].tolist() == [0, 0]
    assert torch.allclose(found[2:], 1 / (c * (1 / up**2 + 1 / lo**2))[2:], rtol=1e-13)
    assert float(found[2]) == pytest.approx(0.1**2 / (2 * c)) == pytest.approx(0.1)
    assert found.max() <= 0.1**2 / (2 * c) * (1 + 1e-12)
    assert barrier_inverse(delta * 0, x, Linf(0.0), 1e-3).abs().max() == 0, (
        "eps = 0 leaves no room and no NaN"
    )


def test_without_attack_nothing_is_coupled(model, batch) -> None:
    plain, _ = gradient(model, methods.plain(Linf(0.0)), batch)
    for make in (methods.done_pgd, methods.done_adam, methods.fast_bat, methods.at, methods.trades):
        method = make(Linf(0.0)).but(attack_mode="eval", weighting=methods.plain(Linf(0.0)).weighting)
        assert relative(gradient(model, method, batch)[0], plain) < 1e-12, method.name


def test_the_limits_of_done(model, batch) -> None:  # D1, D2
    few = {"steps": 2, "step_size": 0.3}
    pgd = methods.done_pgd(Linf(EPS), **few).but(attack_mode="eval")
    flat = pgd.but(weighting=KLDRO(temperature=1e6))
    at = methods.at(Linf(EPS), **few)
    expected, _ = gradient(model, at, batch)
    uncoupled, record = gradient(model, flat.but(coupling=Detached()), batch)
    assert record.weight_mean == pytest.approx(1, abs=1e-6)
    assert relative(uncoupled, expected) < 1e-5
    coupled, _ = gradient(model, flat, batch)
    assert relative(coupled, expected) > 1e-3, "with the implicit part it is not AT"
    for off in (Barrier(gain=0.0), Barrier(c=1e12)):
        assert relative(gradient(model, flat.but(coupling=off), batch)[0], uncoupled) < 1e-9
    linear = [gradient(model, flat.but(coupling=Barrier(gain=g)), batch)[0] - uncoupled for g in (1.0, 3.0)]
    assert relative(linear[1], 3 * linear[0]) < 1e-12


def test_mask_is_the_cross_term_of_fast_bat_at_the_solution(model, batch) -> None:  # D5
    solver = PGD(3, 0.05, uniform, raw)
    mask, record = gradient(model, Method(Linf(EPS), solver, coupling=Mask(0.1)), batch)
    assert 0.2 < record.logged["free"] < 0.8
    step, _ = gradient(model, Method(Linf(EPS), solver, coupling=LastStep(1e-10, 0.1)), batch)
    assert relative(step, mask) < 1e-6


def test_adam_takes_signs_first(model, batch) -> None:  # D6
    signs = methods.done_pgd(Linf(EPS), steps=1).but(attack_mode="eval")
    moments = methods.done_adam(Linf(EPS), steps=1).but(
        attack_mode="eval", solver__direction=type(adam)(epsilon=0.0)
    )
    one, two = (
        m.solver.solve(LowerProblem(model, batch, cross_entropy, Linf(EPS))).delta for m in (signs, moments)
    )
    assert (one - two).abs().max() < 1e-15
    usual = methods.done_adam(Linf(EPS), steps=1)
    three = usual.solver.solve(LowerProblem(model, batch, cross_entropy, Linf(EPS))).delta
    assert 0 < (one - three).abs().max() < 1e-5


def test_the_barrier_refuses_balls(model, batch) -> None:
    with pytest.raises(UserError, match="Linf"):
        gradient(model, Method(L2(0.5), PGD(1, 0.1), coupling=Barrier()), batch)


@pytest.mark.parametrize("direction", [raw, steepest, adam])
@pytest.mark.parametrize("c", [1e-4, C, 1.0])
@pytest.mark.parametrize("step_size", [0.01, 1e4])
def test_steps_on_the_barrier_stay_strictly_inside(model, direction, c, step_size) -> None:
    """Also where the box has hardly any room or none, and however long the step is."""
    x, y, index = minibatches((6,))[0]
    x = x.clone()
    x[0, 0, 0, 0], x[0, 0, 0, 1], x[1, 0, 0, 0] = 0.0, 1.0, 1e-9
    problem = LowerProblem(model, Batch(x, y, index), cross_entropy, THREAT)
    delta = BarrierAscent(20, step_size, c, direction=direction).solve(problem).delta
    lo, up = THREAT.bounds(x)
    assert delta.isfinite().all()
    assert ((delta > lo) & (delta < up)).all()
    nothing = LowerProblem(model, Batch(x, y, index), cross_entropy, Linf(0.0))
    assert BarrierAscent(3, step_size, c, direction=direction).solve(nothing).delta.abs().max() == 0


def test_raw_steps_on_the_barrier_solve_it(model, batch) -> None:
    """They end where the theory's solver does, so that Proposition 1 speaks of what was trained on."""
    problem = LowerProblem(model, batch, cross_entropy, THREAT)
    exact = InteriorAscent(60, C).solve(problem).delta
    found = BarrierAscent(200, 1.0, C, direction=raw).solve(problem).delta
    assert (found - exact).abs().max() < 1e-6
    projected = PGD(10, THREAT.eps / 4).solve(problem).delta
    on_a_bound = 1 - THREAT.interior(projected, batch.x).double().mean()
    assert on_a_bound > 0.3, "where projected steps leave coordinates on a bound"


def test_the_barrier_is_written_for_boxes() -> None:
    x, y, index = minibatches((6,))[0]
    with pytest.raises(UserError, match="written for boxes"):
        BarrierAscent(1, 0.1).solve(LowerProblem(Net().eval(), Batch(x, y, index), cross_entropy, L2(0.5)))
    for given in ({"steps": -1}, {"step_size": math.inf}, {"c": 0.0}):
        with pytest.raises(UserError, match="must be"):
            BarrierAscent(**{"steps": 1, "step_size": 0.1, **given})
