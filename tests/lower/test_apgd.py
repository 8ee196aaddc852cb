"""Evaluation attacks compared with solutions in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import bivallate as bv
from bivallate.lower.apgd import APGD, checkpoints
from bivallate.lower.fab import FAB, NearestPlane, nearest_on_plane
from bivallate.lower.objective import (
    DLR,
    CrossEntropy,
    TargetedDLR,
    TowardsTarget,
    logit_margin,
    runner_up,
)
from bivallate.lower.pgd import PGD
from bivallate.lower.problem import LowerProblem
from bivallate.lower.square import Square
from bivallate.lower.windows import bump, pattern, share
from bivallate.noise import Noise
from bivallate.types import Batch

SHAPE = (1, 8, 8)


def binary(seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A smooth linear model of two classes and its weight difference."""
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(64, 2)
    with torch.no_grad():
        layer.weight.copy_(0.05 * torch.randn(2, 64, generator=generator))
        layer.bias.zero_()
    return nn.Sequential(nn.Flatten(), layer), (layer.weight[1] - layer.weight[0]).detach()


def interior(n: int, seed: int = 1) -> Tensor:
    """Images whose balls do not touch the box."""
    return 0.4 + 0.2 * torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(seed))


def problem_of(model, x, y, objective, threat) -> LowerProblem:
    return LowerProblem(model, Batch(x, y, torch.arange(len(x))), objective, threat)


def optimum(x: Tensor, y: Tensor, w: Tensor, threat) -> tuple[Tensor, Tensor]:
    """(clean, largest) z_other - z_y on a linear model, in the interior of the box."""
    side = torch.where(y == 0, 1.0, -1.0)
    clean = side * (x.flatten(1) @ w)
    gain = w.abs().sum() if isinstance(threat, bv.Linf) else w.norm()
    return clean, clean + threat.eps * gain


@pytest.mark.parametrize("threat", [bv.Linf(0.1), bv.L2(0.4)], ids=["linf", "l2"])
@pytest.mark.parametrize(
    ("solver", "objective", "share_of_gain"),
    [
        (APGD(100, leave=False), CrossEntropy(), 0.99),
        (APGD(100, leave=False), DLR(), 0.99),
        (APGD(100, leave=False), None, 0.99),
    ],
    ids=["ce", "dlr", "targeted-dlr"],
)
def test_attacks_reach_the_optimum_of_a_linear_model(threat, solver, objective, share_of_gain):
    model, w = binary()
    x = interior(6)
    with torch.no_grad():
        y = model(x).argmax(1)
    model = Ahead(model, y, 3.0)  # far from the boundary
    problem = problem_of(model, x, y, objective or TargetedDLR(1 - y), threat)
    delta = solver.solve(problem).delta
    clean, best = optimum(x, y, w, threat)
    reached = -logit_margin(model(x + delta), y).detach() + model.lead
    assert bool((reached - clean >= share_of_gain * (best - clean)).all())
    assert float(threat.size(delta).max()) <= threat.eps + 1e-6


@pytest.mark.parametrize(
    ("threat", "share_of_gain"), [(bv.Linf(0.1), 0.9), (bv.L2(0.4), 0.85)], ids=["linf", "l2"]
)
def test_square_comes_near_the_optimum_of_a_linear_model(threat, share_of_gain):
    """With 2,000 queries; for L2 after 5,000 see test_square."""
    model, w = binary()
    x = interior(3)
    with torch.no_grad():
        y = model(x).argmax(1)
    ahead = Ahead(model, y, 10.0)
    delta = Square(2000).solve(problem_of(ahead, x, y, CrossEntropy(), threat)).delta
    clean, best = optimum(x, y, w, threat)
    reached = -logit_margin(model(x + delta), y).detach()
    assert bool((reached - clean >= share_of_gain * (best - clean)).all())
    short = Square(2000, edges=False).solve(problem_of(ahead, x, y, CrossEntropy(), threat)).delta
    assert bool((-logit_margin(model(x + short), y) < reached).all()), "the last row and column matter"


class Ahead(nn.Module):
    """A model whose true class is ahead by a constant."""

    def __init__(self, model: nn.Module, y: Tensor, lead: float) -> None:
        super().__init__()
        self.model, self.lead = model, lead
        self.bonus = lead * torch.nn.functional.one_hot(y, 2).float()

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) + self.bonus[: len(x)]


def test_checkpoints_are_the_published_ones():
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]


@pytest.mark.parametrize("linf", [True, False])
def test_the_move_to_the_plane_is_the_smallest(linf):
    generator = torch.Generator().manual_seed(0)
    point = ((torch.rand(60, 30, generator=generator, dtype=torch.float64) - 0.5) * 3).clamp(-0.5, 0.5) + 0.5
    w = torch.randn(60, 30, generator=generator, dtype=torch.float64)
    w[:, :3] = 0
    excess = torch.randn(60, generator=generator, dtype=torch.float64) * 8
    move = nearest_on_plane(excess, w, point, linf=linf)
    assert float((point + move).min()) >= -1e-12
    assert float((point + move).max()) <= 1 + 1e-12
    assert bool((move[:, :3] == 0).all())
    room = torch.where(w * -excess.sign()[:, None] > 0, 1 - point, point)
    most = (w.abs() * room).sum(1)
    within = most > excess.abs()
    assert 0.2 < float(within.double().mean()) < 1, "both reachable and unreachable planes occur"
    change = (w * move).sum(1)
    assert torch.allclose(change[within], -excess[within], atol=1e-9)
    assert torch.allclose(change[~within].abs(), most[~within])
    saturated = (room - move.abs()).abs() < 1e-12
    assert 0.1 < float(saturated[within].double().mean()) < 0.9, "the box matters"
    # optimality: what is not saturated moves by lambda (Linf) or lambda |w| (L2), one lambda a row
    rate = move.abs() / (1 if linf else w.abs().clamp(min=1e-12))
    free = within[:, None] & ~saturated & (w != 0)
    for i in within.nonzero()[:, 0].tolist():
        rates = rate[i][free[i]]
        held = rate[i][saturated[i] & (w[i] != 0)]
        assert rates.numel() == 0 or float(rates.max() - rates.min()) < 1e-9
        assert rates.numel() == 0 or held.numel() == 0 or float(held.max()) <= float(rates.max()) + 1e-9


@pytest.mark.parametrize("threat", [bv.Linf(0.3), bv.L2(2.0)], ids=["linf", "l2"])
@pytest.mark.parametrize("nearest", [True, False])
def test_fab_finds_the_distance_of_a_hyperplane(threat, nearest):
    model, w = binary()
    x = interior(8)
    with torch.no_grad():
        y = model(x).argmax(1)
    solver = FAB(30, boundary=NearestPlane(), leave=False) if nearest else FAB(30, leave=False)
    problem = problem_of(model, x, y, TowardsTarget(1 - y), threat)
    size = threat.size(solver.solve(problem).delta)
    exact = (x.flatten(1) @ w).abs() / (w.abs().sum() if isinstance(threat, bv.Linf) else w.norm())
    assert bool((size >= exact * (1 - 1e-3)).all())
    assert bool((size <= exact * 1.06).all())


def test_fab_costs_what_it_says():
    model, _ = binary()
    x = interior(8)
    y = torch.zeros(8, dtype=torch.int64)
    problem = problem_of(model, x, y, TowardsTarget(1 - y), bv.Linf(1e-6))
    FAB(10, leave=False).solve(problem)
    assert problem.forward.passes.backward <= 11 * 8
    assert problem.forward.passes.forward <= 21 * 8


def test_dlr_is_its_equation_and_blind_to_scale():
    logits = torch.tensor([[3.0, 1.0, 0.5, -2.0, 0.0], [0.0, 4.0, 1.0, 3.0, 2.0]])
    y = torch.tensor([0, 0])
    problem = problem_of(lambda x: x, torch.zeros(2, 5), y, CrossEntropy(), bv.Linf(0.1))
    assert DLR()(problem, logits).tolist() == pytest.approx([-2 / 2.5, 4 / 2])
    assert torch.allclose(DLR()(problem, logits), DLR()(problem, 7 * logits))
    targeted = TargetedDLR(torch.tensor([2, 3]))
    assert targeted(problem, logits).tolist() == pytest.approx([-2.5 / (3 - 0.25), 3 / (4 - 1.5)])
    two, three = logits[:, :2], logits[:, :3]
    assert DLR()(problem, two).tolist() == [-2, 4]
    assert TargetedDLR(torch.tensor([1, 1]))(problem, three).tolist() == [-2, 4]


def test_targets_are_the_other_classes_by_their_clean_logits():
    logits = torch.tensor([[3.0, 1.0, 0.5, -2.0], [0.0, 4.0, 1.0, 3.0]])
    y = torch.tensor([0, 3])
    ranks = [runner_up(logits, y, torch.full((2,), r)).tolist() for r in range(3)]
    assert ranks == [[1, 1], [2, 2], [3, 0]]


def test_square_halves_at_the_published_queries():
    values = [share(0.8, q) for q in (0, 10, 11, 50, 51, 201, 501, 1001, 2001, 4001, 4999)]
    assert values == [0.8 / d for d in (1, 1, 2, 2, 4, 8, 16, 32, 64, 128, 128)]


def test_square_patterns_are_the_published_ones():
    assert float(pattern(5).norm()) == pytest.approx(1)
    assert bool((pattern(6)[:3] > 0).all())
    assert bool((pattern(6)[3:] < 0).all())
    raw = torch.tensor([[0.25, 0.25, 0.25], [0.25, 1.25, 0.25], [0.25, 0.25, 0.25]])
    assert torch.allclose(bump(3, 3), raw / raw.norm())


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 7, 9), (12,), (2, 6)])
@pytest.mark.parametrize("threat", [bv.Linf(0.2), bv.L2(0.5), bv.L1(1.0)], ids=["linf", "l2", "l1"])
def test_square_stays_inside_for_any_shape(shape, threat):
    size = math.prod(shape)
    torch.manual_seed(25)  # one of a hundred in which (3, 7, 9) leaves the L1 ball by 1.6e-6
    x = torch.rand(5, *shape, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Flatten(), nn.Linear(size, 4))
    y = model(x).argmax(1)
    delta = Square(30).solve(problem_of(model, x, y, CrossEntropy(), threat)).delta
    assert delta.shape == x.shape
    # Square keeps images, each pixel of which is rounded; the judge shrinks what that leaves outside
    assert float(threat.size(delta.double()).max()) <= threat.eps + 1e-6 + size * 2**-24
    assert float((x + delta).min()) >= 0
    assert float((x + delta).max()) <= 1


def test_square_never_asks_what_changes_nothing():
    model, _ = binary()
    x = interior(4)
    with torch.no_grad():
        y = model(x).argmax(1)
    problem = problem_of(model, x, y, CrossEntropy(), bv.Linf(0.001))
    spent = Square(200).solve(problem).evaluations
    assert problem.forward.passes.forward == int(spent.sum())
    assert int(spent.max()) <= 201
    assert int(spent.min()) < 201


@pytest.mark.parametrize("solver", [APGD(6), FAB(4), Square(20)], ids=["apgd", "fab", "square"])
def test_answers_do_not_depend_on_company(solver):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.Tanh(), nn.Linear(20, 5)).double()
    x = interior(10).double()
    y = model(x).argmax(1)
    y[::3] = (y[::3] + 1) % 5  # some are wrong from the start, and leave
    index = torch.arange(10) + 100
    aim = (y + 1) % 5

    def answer(rows: Tensor) -> Tensor:
        batch = Batch(x[rows], y[rows], index[rows])
        noise = Noise(3, index[rows])
        problem = LowerProblem(model, batch, TowardsTarget(aim[rows]), bv.Linf(0.05), noise=noise)
        return solver.solve(problem).delta

    everything, some = torch.arange(10), torch.tensor([7, 2, 5])
    assert torch.allclose(answer(everything)[some], answer(some), atol=1e-9)


class Noisy(nn.Module):
    """A small network whose logits are never the same twice."""

    def __init__(self, noise: float) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 3))
        self.noise, self.generator = noise, torch.Generator().manual_seed(1)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.body(x)
        return logits + self.noise * torch.randn(logits.shape, generator=self.generator)


@pytest.mark.parametrize("objective", [CrossEntropy(), DLR()], ids=["ce", "dlr"])
def test_on_a_random_model_averaging_draws_is_no_weaker_than_pgd(objective):
    torch.manual_seed(0)
    model, x, threat = Noisy(0.6), interior(100), bv.Linf(0.06)
    y = model.body(x).argmax(1)

    def accuracy(solver) -> float:
        delta = solver.solve(problem_of(model, x, y, objective, threat)).delta
        with torch.no_grad():
            draws = [(model(x + delta).argmax(1) == y).float().mean() for _ in range(200)]
        return float(torch.stack(draws).mean())

    plain = accuracy(PGD(20, 0.25 * threat.eps))
    assert 0.1 < plain < 0.9
    assert accuracy(APGD(20, samples=20)) <= plain + 0.015  # deciding by single draws: + 0.035 and more


@pytest.mark.parametrize("threat", [bv.Linf(0.1), bv.L2(0.5), bv.L1(1.2)], ids=["Linf", "L2", "L1"])
def test_kappa_counts_the_steps_that_began_at_a_correct_point(threat) -> None:
    """As of PGD, up to the first misclassification; the last of the points begins no step."""
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(24, 1, 4, 4, generator=generator)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(3, 16, generator=generator))
    right, seen = model(x).argmax(1), list[torch.Tensor]()
    handle = model.register_forward_hook(lambda module, given, logits: seen.append(logits.detach()))
    problem = LowerProblem(model, bv.Batch(x, right, torch.arange(24)), CrossEntropy(), threat)
    kappa = APGD(steps=20, leave=False).solve(problem).kappa
    handle.remove()
    if isinstance(threat, bv.L1):  # the last eight steps are those within the ball itself
        seen = seen[-9:]
    correct = torch.stack([logits.argmax(1) == right for logits in seen[:-1]])
    assert torch.equal(kappa, correct.long().cumprod(0).sum(0))
    assert ((kappa > 0) & (kappa < kappa.max())).any()
