"""Attacks in L1 compared with a transcription, with known optima and with linear programs."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import linprog
from tests.lower.test_apgd import Ahead, binary, interior, problem_of
from tests.reference import apgd_l1
from torch import Tensor, nn

import bivallate as bv
from bivallate.evaluation import attack_and_score, attack_named
from bivallate.lower.apgd import APGD
from bivallate.lower.fab import FAB, NearestPlane, nearest_in_l1
from bivallate.lower.objective import CrossEntropy, TowardsTarget, logit_margin
from bivallate.lower.problem import LowerProblem
from bivallate.lower.sparse_apgd import SparseAPGD
from bivallate.lower.square import Square
from bivallate.lower.windows import bump, pattern
from bivallate.noise import Noise
from bivallate.types import Batch

D = torch.float64


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.Tanh(), nn.Linear(20, 5)).double()


def images(n: int, seed: int = 2) -> Tensor:
    """Some pixels exactly 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    return (1.4 * torch.rand(n, 1, 8, 8, generator=generator, dtype=D) - 0.2).clamp(0, 1)


@pytest.mark.parametrize("eps", [0.05, 0.6, 4.0])
@pytest.mark.parametrize("steps", [5, 60])
def test_apgd_is_the_transcription(eps, steps):
    model, x = network(), images(6)
    y, index = model(x).argmax(1), torch.arange(6) + 40
    noise = Noise(3, index)
    problem = LowerProblem(model, Batch(x, y, index), CrossEntropy(), bv.L1(eps), noise=noise)
    ours = APGD(steps, leave=False).solve(problem).delta.flatten(1)
    drawn = noise.normal("start", (1, 8, 8), D).flatten(1)
    fooled = 0
    for i in range(6):

        def look(image: Tensor, i: int = i) -> tuple[float, float, Tensor]:
            point = image.clone().requires_grad_()
            logits = model(point.view(1, 1, 8, 8))
            loss = nn.functional.cross_entropy(logits, y[i : i + 1])
            (grad,) = torch.autograd.grad(loss, point)
            return loss.item(), logit_margin(logits, y[i : i + 1]).item(), grad

        theirs = apgd_l1.attack(look, x[i].flatten(), drawn[i], eps, steps)
        assert torch.allclose(ours[i], theirs, atol=1e-10)
        fooled += look(x[i].flatten() + theirs)[1] < 0
        assert int((theirs != 0).sum()) < 64, "sparse"
    assert fooled == {0.05: 0, 0.6: fooled, 4.0: 6}[eps]


@pytest.mark.parametrize("eps", [0.3, 3.0])
@pytest.mark.parametrize(("solver", "share"), [(APGD(100, leave=False), 0.9), (Square(600), 0.4)], ids=str)
def test_attacks_come_near_the_optimum_of_a_linear_model(solver, share, eps):
    model, w = binary()
    x = interior(6)
    with torch.no_grad():
        y = model(x).argmax(1)
    ahead, threat = Ahead(model, y, 10.0), bv.L1(eps)  # never fooled, so that nothing leaves early
    delta = solver.solve(problem_of(ahead, x, y, CrossEntropy(), threat)).delta
    uphill = torch.where(y == 0, 1.0, -1.0)[:, None] * w
    best = threat.support(uphill.view_as(x), x, 0 * x)
    gain = (uphill * delta.flatten(1)).sum(1)
    assert bool((gain >= share * best).all())
    assert bool((gain <= best * (1 + 1e-5)).all())
    assert float(threat.size(delta).max()) <= eps + 1e-6


def test_larger_balls_first_find_more_than_the_ball_alone():
    model, x = network(1), images(64)
    y = model(x).argmax(1)
    batch = Batch(x, y, torch.arange(64))

    def left(solver: SparseAPGD) -> int:
        delta = solver.solve(LowerProblem(model, batch, CrossEntropy(), bv.L1(0.5))).delta
        assert float(bv.L1(0.5).size(delta).max()) <= 0.5 + 1e-9
        return int((model(x + delta).argmax(1) == y).sum())

    large, alone = left(SparseAPGD(30)), left(SparseAPGD(30, radii=(1.0,)))
    assert large <= alone < 64
    assert left(SparseAPGD(1)) <= 64


def test_apgd_costs_what_it_says():
    model, x = network(), images(4)
    y = (model(x).argmax(1) + 1) % 5  # wrong from the start
    problem = LowerProblem(model, Batch(x, y, torch.arange(4)), CrossEntropy(), bv.L1(0.1))
    spent = APGD(10, leave=False).solve(problem).evaluations
    assert spent.tolist() == [13] * 4
    assert problem.forward.passes.backward == 4 * 13


@pytest.mark.parametrize("solver", [APGD(10), FAB(4), Square(20)], ids=["apgd", "fab", "square"])
def test_answers_do_not_depend_on_company(solver):
    model, x = network(), images(10)
    y = model(x).argmax(1)
    y[::3] = (y[::3] + 1) % 5  # some are wrong from the start, and leave
    index, aim = torch.arange(10) + 100, (y + 1) % 5

    def answer(rows: Tensor) -> Tensor:
        batch, noise = Batch(x[rows], y[rows], index[rows]), Noise(3, index[rows])
        problem = LowerProblem(model, batch, TowardsTarget(aim[rows]), bv.L1(1.0), noise=noise)
        return solver.solve(problem).delta

    everything, some = torch.arange(10), torch.tensor([7, 2, 5])
    assert torch.allclose(answer(everything)[some], answer(some), atol=1e-9)


def test_the_sparsest_move_to_the_plane_is_a_linear_programs():
    generator = torch.Generator().manual_seed(0)
    point = images(40).flatten(1)[:, :12]
    w = torch.randn(40, 12, generator=generator, dtype=D)
    w[:, :3] = 0
    excess = torch.randn(40, generator=generator, dtype=D) * 2
    move = nearest_in_l1(excess, w, point)
    assert float((point + move).min()) >= -1e-12
    assert float((point + move).max()) <= 1 + 1e-12
    room = torch.where(w * -excess.sign()[:, None] > 0, 1 - point, point)
    most = (w.abs() * room).sum(1)
    within = most > excess.abs()
    assert 0.2 < float(within.double().mean()) < 1, "both reachable and unreachable planes occur"
    assert torch.allclose((w * move).sum(1)[~within].abs(), most[~within])
    for i in within.nonzero()[:, 0].tolist():
        best = linprog(
            torch.ones(24, dtype=D).numpy(),
            A_eq=torch.cat([w[i], -w[i]])[None].numpy(),
            b_eq=[-float(excess[i])],
            bounds=[(0, float(b)) for b in (*(1 - point[i]), *point[i])],
        )
        assert float((w[i] * move[i]).sum()) == pytest.approx(-float(excess[i]))
        assert float(move[i].abs().sum()) == pytest.approx(best.fun, abs=1e-9)


@pytest.mark.parametrize("nearest", [True, False])
def test_fab_finds_the_distance_of_a_hyperplane(nearest):
    model, w = binary()
    x = interior(8)
    with torch.no_grad():
        y = model(x).argmax(1)
    solver = FAB(30, boundary=NearestPlane(), leave=False) if nearest else FAB(30, leave=False)
    size = bv.L1(9.0).size(solver.solve(problem_of(model, x, y, TowardsTarget(1 - y), bv.L1(9.0))).delta)
    exact = nearest_in_l1(x.flatten(1) @ w, w.expand(8, 64), x.flatten(1)).abs().sum(1)
    assert bool((size >= exact * (1 - 1e-3)).all())
    assert bool((size <= exact * 1.06).all())


def test_square_patterns_are_the_published_ones():
    raw = torch.tensor([[1, 1, 1], [1, 17, 1], [1, 1, 1]]) / 16
    assert torch.allclose(bump(3, 3, 1), raw / raw.sum())
    assert float(pattern(5, 1).abs().sum()) == pytest.approx(1)


def test_the_standard_ensemble_of_l1_is_another():
    turns = {s.name: s.turns.n for s in attack_named("autoattack", bv.L1(12.0)).stages}  # pyright: ignore
    assert turns == {"apgd-ce": 5, "apgd-t": 5, "fab-t": 9, "square": 1}
    for threat in (None, bv.Linf(0.1), bv.L2(0.5)):
        assert [s.turns.n for s in attack_named("autoattack", threat).stages] == [1, 9, 9, 1]  # pyright: ignore
    model, x = network(), images(6)
    score = attack_and_score(model, (x, model(x).argmax(1)), bv.L1(0.02), attack_named("apgd-ce-5-2"))
    assert score.robust_accuracy > 0
    named = attack_and_score(model, (x, model(x).argmax(1)), bv.L1(4.0), "autoattack")
    assert named.detail == attack_named("autoattack", bv.L1(4.0))
    assert named.robust_accuracy == 0
