"""Minimal-norm attacks find known distances; a point's result does not depend on the other points."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import bivallate as bv
from bivallate.lower.minimal_norm import CWL2, DDN, FMN, DeepFool
from bivallate.lower.objective import CrossEntropy, LogitMargin
from bivallate.lower.problem import LowerProblem
from bivallate.noise import Noise
from bivallate.types import Batch

LINF, L2, L1 = bv.Linf(0.3), bv.L2(0.3), bv.L1(0.3)
CASES = [  # solver, threat, share by which its answer may exceed the distance of a hyperplane
    pytest.param(FMN(200), LINF, 0.02, id="fmn-linf"),
    pytest.param(FMN(200), L2, 0.02, id="fmn-l2"),
    pytest.param(FMN(200), L1, 0.05, id="fmn-l1"),
    pytest.param(DDN(200), L2, 0.06, id="ddn"),
    pytest.param(DeepFool(), LINF, 0.021, id="deepfool-linf"),
    pytest.param(DeepFool(), L2, 0.021, id="deepfool-l2"),
    pytest.param(CWL2(60, 6), L2, 0.05, id="cw-l2"),
]


def objective_of(solver):
    return CrossEntropy() if isinstance(solver, DDN) else LogitMargin()


def problem_of(model, x: Tensor, y: Tensor, solver, threat, index: Tensor | None = None) -> LowerProblem:
    index = torch.arange(len(x)) if index is None else index
    return LowerProblem(model, Batch(x, y, index), objective_of(solver), threat, noise=Noise(3, index))


def images(n: int) -> Tensor:
    """Images whose boundaries lie within the box."""
    return 0.4 + 0.2 * torch.rand(n, 1, 6, 6, generator=torch.Generator().manual_seed(1)).double()


def network(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = [nn.Linear(36, 12), nn.Tanh(), nn.Linear(12, 5)] if seed else [nn.Linear(36, 2)]
        return nn.Sequential(nn.Flatten(), *body).double()


@pytest.mark.parametrize(("solver", "threat", "excess"), CASES)
def test_the_distance_of_a_hyperplane_is_found(solver, threat, excess):
    model, x = network(0), images(8)
    with torch.no_grad():
        w = model[1].weight[1] - model[1].weight[0]
        model[1].bias.sub_(model(x).mean(0))
        model[1].bias[0] += 0.2 * w.norm()
        logits = model(x)
        assert float((logits[:, 0] - logits[:, 1]).max() / w.norm()) < 0.35, "the box is out of reach"
        assert float((logits[:, 0] - logits[:, 1]).max() / w.abs().max()) < 0.8
    y = logits.argmax(1)
    exact = (logits[:, 1] - logits[:, 0]).abs() / w.norm(p={LINF: 1, L2: 2, L1: torch.inf}[threat])
    delta = solver.solve(problem_of(model, x, y, solver, threat)).delta
    assert bool((model(x + delta).argmax(1) != y).all())
    size = threat.size(delta)
    assert bool((size >= exact * (1 - 1e-9)).all())
    assert float((size / exact).max()) <= 1 + excess


@pytest.mark.parametrize(("solver", "threat", "excess"), CASES)
def test_answers_are_images_that_fool_and_do_not_depend_on_company(solver, threat, excess):
    model, x = network(1), images(10)
    y = model(x).argmax(1)
    y[::4] = (y[::4] + 1) % 5  # wrong from the start: nothing need change
    index = torch.arange(10) + 100

    def answer(rows: Tensor) -> Tensor:
        return solver.solve(problem_of(model, x[rows], y[rows], solver, threat, index[rows])).delta

    delta, some = answer(torch.arange(10)), torch.tensor([7, 2, 5])
    assert float((x + delta).min()) >= 0
    assert float((x + delta).max()) <= 1
    assert bool((model(x + delta).argmax(1) != y).all())
    assert float(delta[::4].abs().max()) <= 1e-5
    assert torch.allclose(delta[some], answer(some), atol=1e-9)


def test_where_nothing_fools_the_answer_is_zero_and_flat_gradients_get_noise_of_their_own():
    x, y = images(3), torch.zeros(3, dtype=torch.int64)
    seen: list[Tensor] = []

    def flat(x: Tensor) -> Tensor:
        seen.append(x.detach())
        return torch.tensor([[1.0, 0.0]]).double() + 0 * x.flatten(1)[:, :2]

    for solver in (FMN(3), DDN(3), DeepFool(3), CWL2(3, 2)):
        assert float(solver.solve(problem_of(flat, x, y, solver, L2)).delta.abs().max()) == 0
    seen.clear()
    DDN(1).solve(problem_of(flat, x, y, DDN(1), L2))
    moved = seen[-1] - x
    assert float(L2.size(moved).min()) > 0.5
    assert not torch.allclose(moved[0], moved[1])


@pytest.mark.parametrize(
    ("name", "threat", "said"),
    [
        ("ddn-2", LINF, "smallest L2 norm, got Linf; use --norm l2, or fmn or deepfool"),
        ("cw-l2-2-1", L1, "smallest L2 norm, got L1; use --norm l2, or fmn$"),
        ("deepfool-2", L1, "of Linf and L2, got L1"),
    ],
)
def test_attacks_that_are_not_of_a_norm_say_so(name, threat, said):
    model, x = network(1), images(4)
    with pytest.raises(bv.UserError, match=said):
        bv.evaluate(model, (x, model(x).argmax(1)), threat, name)


@pytest.mark.parametrize("name", ["fmn-20", "deepfool-5", "ddn-40", "cw-l2-40-4"])
def test_verdicts_by_name_do_not_depend_on_the_batch_and_rise_with_eps(name, tmp_path):
    model, x = network(1), images(24)
    data = x, model(x).argmax(1)
    small, large = (bv.evaluate(model, data, bv.L2(eps), name) for eps in (0.5, 0.7))
    again = bv.evaluate(model, data, bv.L2(0.5), name, batch_size=5, resume=tmp_path / "kept")
    assert small.attack == name
    assert torch.equal(small.broken_at, again.broken_at)
    assert 1 > small.robust_accuracy > large.robust_accuracy


def test_one_search_for_c_is_not_enough():
    model, x = network(1), images(8)
    y = model(x).argmax(1)
    sizes = [
        L2.size(CWL2(60, n, 100.0).solve(problem_of(model, x, y, CWL2(), L2)).delta).mean() for n in (1, 4)
    ]
    assert sizes[1] < sizes[0]
