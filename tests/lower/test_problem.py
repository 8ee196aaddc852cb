"""An attack leaves the model as it was, and every example has its own problem."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from tests.methods.glue import EPS, Net, minibatches
from torch import Tensor, nn

from bivallate import L2, PGD, Linf
from bivallate.lower.direction import adam, raw, steepest
from bivallate.lower.modes import attacking, evaluating, frozen, in_train_mode
from bivallate.lower.objective import KLToClean, Margin, cross_entropy, kl, logit_margin
from bivallate.lower.problem import LowerProblem
from bivallate.lower.start import Corner, Gaussian, Uniform, Zero, uniform
from bivallate.types import Batch, Clock

BATCH = Batch(*minibatches((7,))[0])
THREAT = Linf(EPS)


def solve(
    model: nn.Module, batch: Batch, solver: PGD, threat: Linf | L2 = THREAT, *, seed=0, epoch=0, replay=0
) -> Tensor:
    return solver.solve(
        LowerProblem(model, batch, cross_entropy, threat, Clock(epoch, epoch + 1, 0, 1, replay, seed))
    ).delta


def pose(model: nn.Module) -> list[tuple[bool, object]]:
    return [(m.training, getattr(m, "track_running_stats", None)) for m in model.modules()]


def odd() -> Net:
    """A model in a state that no context would produce by itself."""
    model = Net(dropout=0.5).train()
    model.norm2.eval()
    model.drop.eval()
    assert isinstance(model.norm1, nn.BatchNorm2d)
    model.norm1.track_running_stats = False
    model.stem.weight.requires_grad_(False)
    return model


class Broken(RuntimeError):
    pass


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("mode", ["eval", "train", "train-tracking"])
def test_everything_is_left_as_found(mode, raises) -> None:
    model = odd()
    before, asks = pose(model), [p.requires_grad for p in model.parameters()]
    buffers = {k: v.clone() for k, v in model.named_buffers()}

    def objective(problem: LowerProblem, logits: Tensor) -> Tensor:
        assert not any(p.requires_grad for p in model.parameters())
        if raises:
            raise Broken
        return cross_entropy(problem, logits)

    try:
        with attacking(model, mode):
            PGD(2, 0.01).solve(LowerProblem(model, BATCH, objective, THREAT))
    except Broken:
        assert raises
    assert pose(model) == before
    assert [p.requires_grad for p in model.parameters()] == asks
    assert all(p.grad is None for p in model.parameters())
    moved = any(not torch.equal(v, buffers[k]) for k, v in model.named_buffers())
    assert moved == (mode == "train-tracking")


@pytest.mark.parametrize(("mode", "moves"), [("eval", 0), ("train", 0), ("train-tracking", 3)])
def test_running_statistics(mode, moves) -> None:
    model = Net().train()
    before = copy.deepcopy(model)
    with attacking(model, mode):
        solve(model, BATCH, PGD(3, 0.01))
    count = model.get_buffer("norm1.num_batches_tracked")
    assert int(count) == moves
    same = torch.equal(model.get_buffer("norm1.running_mean"), before.get_buffer("norm1.running_mean"))
    assert same == (moves == 0)
    with attacking(model, mode), torch.no_grad():
        logits = model(BATCH.x)
        assert all(not m.training for m in model.modules() if isinstance(m, nn.Dropout))
    reference = copy.deepcopy(model).train(mode != "eval")
    assert torch.allclose(logits, reference(BATCH.x), atol=1e-12)


def test_dropout_is_off_in_every_attack_mode() -> None:
    model = Net(dropout=0.5).train()
    for mode in ("eval", "train", "train-tracking"):
        with attacking(model, mode):
            assert torch.equal(model(BATCH.x), model(BATCH.x)) or mode == "train-tracking"
            assert not model.drop.training
    with in_train_mode(model):
        assert model.drop.training
        assert not torch.equal(model(BATCH.x), model(BATCH.x))
    with evaluating(model):
        assert not any(m.training for m in model.modules())


def test_the_upper_pose_within_an_attack_moves_statistics() -> None:
    model = Net().eval()
    with attacking(model, "train"), in_train_mode(model):
        model(BATCH.x)
    assert int(model.get_buffer("norm1.num_batches_tracked")) == 1
    assert not model.training
    plain = nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), nn.InstanceNorm2d(1)).double()
    with attacking(plain, "train-tracking"), in_train_mode(plain):
        plain(BATCH.x)
    assert [m.track_running_stats for m in plain] == [False, False]


def test_frozen_leaves_parameters_as_found() -> None:
    model = odd()
    with frozen(model):
        assert not any(p.requires_grad for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()].count(False) == 1


STARTS = [Zero(), Uniform(), Gaussian(), Corner()]
SOLVERS = [
    PGD(3, s, start, d) for start in STARTS for s, d in ((EPS / 3, steepest), (0.1, raw), (EPS / 3, adam))
]


@pytest.mark.parametrize("threat", [THREAT, L2(0.3)])
@pytest.mark.parametrize(
    "solver", SOLVERS, ids=lambda s: f"{type(s.start).__name__}-{type(s.direction).__name__}"
)
def test_delta_belongs_to_the_row(solver, threat) -> None:
    """Permuting, splitting and shrinking the minibatch gives every row the same delta; it is feasible."""
    model = Net().eval()
    whole = solve(model, BATCH, solver, threat)
    assert (threat.size(whole) <= threat.eps * (1 + 1e-12)).all()
    assert ((BATCH.x + whole).clamp(0, 1) - BATCH.x - whole).abs().max() < 1e-15
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    for rows in (order, torch.arange(3), torch.tensor([6])):
        part = Batch(BATCH.x[rows], BATCH.y[rows], BATCH.index[rows])
        assert torch.allclose(solve(model, part, solver, threat), whole[rows], atol=1e-12)
        problem = LowerProblem(model, BATCH, cross_entropy, threat).select(rows)
        assert torch.allclose(solver.solve(problem).delta, whole[rows], atol=1e-12)


def test_steps_are_of_the_sum_and_not_of_the_mean() -> None:
    model = Net().eval()
    problem = LowerProblem(model, BATCH, cross_entropy, THREAT)
    point = torch.zeros_like(BATCH.x).requires_grad_()
    (summed,) = torch.autograd.grad(F.cross_entropy(model(BATCH.x + point), BATCH.y, reduction="sum"), point)
    assert torch.allclose(problem.logits_and_gradient(0 * BATCH.x)[1], summed, atol=1e-15)
    wide = PGD(1, 0.01, Zero(), raw)
    assert torch.allclose(solve(model, BATCH, wide), THREAT.project(0.01 * summed, BATCH.x), atol=1e-15)
    smaller = solve(model, BATCH, PGD(1, 0.01 / 7, Zero(), raw))
    assert not torch.allclose(solve(model, BATCH, wide), smaller, atol=1e-6)


def test_moments_and_seeds_are_fresh() -> None:
    model = Net().eval()
    adaptive = PGD(3, EPS / 3, uniform, adam)
    one = solve(model, BATCH, adaptive, seed=1)
    assert torch.equal(one, solve(model, BATCH, adaptive, seed=1))
    for seed, epoch, replay in ((2, 0, 0), (1, 1, 0), (1, 0, 1)):
        other = solve(model, BATCH, adaptive, seed=seed, epoch=epoch, replay=replay)
        assert not torch.equal(one, other)


def test_pgd_on_the_linear_oracle() -> None:
    """On a binary linear model sign PGD reaches the exact maximiser, a bound in every coordinate."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2)).double().eval()
    batch = Batch(BATCH.x, BATCH.y.clamp(max=1), BATCH.index)
    w = model[1].weight[1] - model[1].weight[0]  # pyright: ignore
    lo, up = THREAT.bounds(batch.x)
    towards = torch.where(batch.y == 1, -1.0, 1.0).view(-1, 1, 1, 1) * w.detach().view(1, 1, 6, 6)
    best = torch.where(towards > 0, up, lo)
    for solver in (PGD(4, EPS / 2), PGD(10, EPS / 4, Zero())):
        assert torch.equal(solve(model, batch, solver), best)
    solution = PGD(4, EPS / 2).solve(LowerProblem(model, batch, cross_entropy, THREAT))
    assert (solution.evaluations == 4).all()
    assert torch.equal(solution.kappa > 0, solution.kappa.bool())


def test_kappa_counts_correct_iterates() -> None:
    model = Net().eval()
    problem = LowerProblem(model, BATCH, cross_entropy, Linf(0.2))
    expected = torch.zeros(7, dtype=torch.long)
    delta = problem.project(uniform(problem))
    for _ in range(5):
        logits, grad = problem.logits_and_gradient(delta)
        expected += logits.argmax(1) == BATCH.y
        delta = problem.project(delta + 0.05 * grad.sign())
    solution = PGD(5, 0.05).solve(problem)
    assert torch.equal(solution.kappa, expected)
    assert 0 < expected.sum() < 35


def test_before_last_and_no_steps() -> None:
    model = Net().eval()
    problem = LowerProblem(model, BATCH, cross_entropy, THREAT)
    three, two = (PGD(n, 0.01).solve(problem) for n in (3, 2))
    assert torch.equal(three.before_last, two.delta)
    none = PGD(0, 0.01).solve(problem)
    assert torch.equal(none.delta, problem.project(uniform(problem)))
    assert torch.equal(none.delta, none.before_last)


def test_objectives_by_hand() -> None:
    logits = torch.tensor([[2.0, 1.0, -1.0], [0.0, 3.0, 0.5], [1.0, 1.0, 1.0]], dtype=torch.float64)
    y = torch.tensor([0, 2, 1])
    assert logit_margin(logits, y).tolist() == [1.0, -2.5, 0.0]
    problem = LowerProblem(nn.Identity(), Batch(logits, y, torch.arange(3)), Margin(1.0), THREAT)
    assert Margin(1.0)(problem, logits).tolist() == [-2.0, 0.0, -1.0]
    p, q = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64), torch.tensor([[0.25, 0.5, 0.25]])
    expected = float((p * (p / q).log()).sum())
    assert float(kl(p.log(), q.double().log())) == pytest.approx(expected, rel=1e-12)
    assert expected == pytest.approx(0.25 * 0.6931471805599453)
    asymmetric = kl(logits[:1], logits[1:2]), kl(logits[1:2], logits[:1])
    assert abs(float(asymmetric[0] - asymmetric[1])) > 1e-2


def test_kl_to_clean_is_flat_at_the_clean_image_and_its_target_constant() -> None:
    model = Net().eval()
    problem = LowerProblem(model, BATCH, KLToClean(), THREAT)
    _, flat = problem.logits_and_gradient(torch.zeros_like(BATCH.x))
    assert flat.abs().max() < 1e-14
    assert problem.forward.passes.forward == 14
    _, steep = problem.logits_and_gradient(torch.full_like(BATCH.x, 0.01))
    assert steep.abs().max() > 1e-6
    assert problem.forward.passes.forward == 21, "the clean pass is made once"
    assert not problem.clean_logits.requires_grad


def test_a_callable_is_a_model() -> None:
    weight = torch.randn(36, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    problem = LowerProblem(lambda x: x.flatten(1) @ weight, BATCH, cross_entropy, THREAT)
    assert PGD(2, 0.01).solve(problem).delta.shape == BATCH.x.shape
    with pytest.raises(TypeError, match=r"nn\.Module"):
        _ = problem.forward.module
    own = LowerProblem(Net(), BATCH, cross_entropy, THREAT)
    assert own.at({}).forward.passes is own.forward.passes


@pytest.mark.parametrize("first", ["attack", "loss"])
def test_clean_logits_are_of_the_mode_that_first_asks_for_them(first: str) -> None:
    model = Net().train()
    before = copy.deepcopy(model.state_dict())
    problem = LowerProblem(model, BATCH, cross_entropy, THREAT)
    if first == "attack":
        with attacking(model, "eval"):
            assert torch.equal(problem.clean_logits, model(BATCH.x))
    problem.clean_logits  # noqa: B018  a loss asks
    same = all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert same == (first == "attack")
