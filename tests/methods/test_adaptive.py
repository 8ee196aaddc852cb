"""Dynamic AT, Curriculum AT and FAT: references, reductions, invariants and traps."""

from __future__ import annotations

import copy
import itertools
import math
from functools import partial
from typing import Any

import pytest
import torch
from tests.methods.glue import EPS, THREAT, Net, agree, facts, gap, minibatches, problem_of, train
from tests.reference import adaptive, plain_at
from torch import Tensor, nn

import bivallate as bv
from bivallate import L2, PGD, Linf, UserError, methods, schedule
from bivallate.lower.class_means import ClassMeans
from bivallate.lower.class_radius import ClassRadius, RobustRate
from bivallate.lower.curriculum import BoundBatchMixing
from bivallate.lower.estimated_threshold import EstimatedThreshold
from bivallate.lower.helper_labels import HelperLabels
from bivallate.lower.modes import attacking
from bivallate.lower.objective import cross_entropy
from bivallate.lower.pgd import Wider
from bivallate.lower.problem import LowerProblem
from bivallate.lower.stop import FOSCBelow, Iterate, Misclassified, fosc
from bivallate.methods.entries import create
from bivallate.schedule import value_at
from bivallate.types import Batch, Clock

EPOCHS = [0, 6, 11]  # of 12: threshold c_max, 0.4 c_max, 0


def solved(method: bv.Method, model: nn.Module, **where: Any):
    problem = problem_of(model, **where)
    with attacking(model, "eval"):
        return problem, method.solver.solve(problem)


# Dynamic AT


@pytest.mark.parametrize(
    "hyper",
    [{}, {"form": "box"}, {"form": "ball", "fosc_origin": "start"}, {"loss_reweight": True}],
)
def test_dynamic_reference(hyper: dict[str, Any]) -> None:
    method = methods.dynamic(THREAT, c_max=0.05, **hyper)
    reference = partial(adaptive.dynamic, epochs=EPOCHS, control_epoch=10, c_max=0.05)
    # the code variant weighs by the loss of a pass in the attack's mode: ours, where there are no statistics
    model = Net(norm=not hyper.get("loss_reweight"))
    left = agree(method, reference, model=model, epoch=EPOCHS, epochs=12, **hyper)
    attack = [r.passes.backward / r.examples - 1 for r in left.records]
    assert 1 < attack[0] < 10, "some examples stop early while the threshold is high"
    taken = [r.logged["steps"] for r in left.records]
    assert all(1 <= s <= p for s, p in zip(taken, attack, strict=True))
    assert min(taken) < max(taken)


def test_dynamic_stops_only_at_a_zero_gap_when_the_threshold_is_zero() -> None:
    model = Linear()
    problem, solution = solved(methods.dynamic(THREAT, c_max=0.0, step_size=1.0, form="box"), model)
    assert (solution.evaluations < 10).all(), "in a corner of the box a linear score cannot rise further"
    _, grad = problem.logits_and_gradient(solution.delta)
    assert problem.threat.support(grad, problem.x, solution.delta).abs().max() == 0
    _, full = solved(methods.at(THREAT, step_size=1.0), model)
    assert torch.equal(solution.delta, full.delta)


def test_a_high_threshold_leaves_exactly_one_step() -> None:
    model = Net()
    _, dynamic = solved(methods.dynamic(THREAT, c_max=1e6), model)
    _, one = solved(methods.at(THREAT, steps=1), model)
    assert torch.equal(dynamic.delta, one.delta)
    assert (dynamic.evaluations == 2).all()


def test_the_threshold_falls_to_zero_at_its_epoch() -> None:
    solver = methods.dynamic(THREAT).solver
    assert isinstance(solver, PGD)
    assert isinstance(solver.stop, FOSCBelow)
    seen = [value_at(solver.stop.threshold, Clock(epoch=e, epochs=120)) for e in (0, 50, 99, 100, 110)]
    assert seen == pytest.approx([0.5, 0.25, 0.005, 0, 0], abs=1e-15)
    assert seen[3] == 0


@pytest.mark.parametrize("form", ["box", "ball"])
def test_fosc_is_the_maximum_over_the_corners(form: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(4, 1, 2, 3, generator=generator, dtype=torch.float64)
    x[0, 0, 0, 0], x[1, 0, 1, 2] = 0.0, 1.0
    threat = Linf(0.3)
    delta = threat.project(torch.randn(x.shape, generator=generator, dtype=torch.float64), x)
    grad = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    lo, up = threat.bounds(x) if form == "box" else (torch.full_like(x, -0.3), torch.full_like(x, 0.3))
    best = torch.full((4,), -math.inf, dtype=torch.float64)
    for corner in itertools.product([False, True], repeat=6):
        chosen = torch.where(torch.tensor(corner).view(1, 1, 2, 3), up, lo)
        best = torch.maximum(best, (grad * (chosen - delta)).flatten(1).sum(1))
    found = threat.support(grad, x, delta) if form == "box" else threat.ball_support(grad, delta)
    assert (found - best).abs().max() < 1e-14


@pytest.mark.parametrize("eps", [0.001, 0.3])
def test_the_mean_of_fosc_in_few_launches_is_that_of_fosc(eps: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x, delta, grad = torch.rand(3, 5, 2, 3, 3, generator=generator, dtype=torch.float64)
    threat, delta = Linf(eps), (2 * delta - 1) * eps
    grad = grad - 0.5
    mean = fosc("ball", threat, grad, x, delta).mean()
    torch.testing.assert_close(threat.mean_ball_support(grad, delta), mean, rtol=1e-13, atol=0)


def test_from_the_random_start_fosc_can_be_negative() -> None:
    problem = problem_of(Net())
    start = problem.threat.project(torch.full_like(problem.x, EPS), problem.x)
    rule = FOSCBelow(0.0, form="ball", origin="start")(problem)
    logits = torch.zeros(12, 3, dtype=torch.float64)
    assert not rule(Iterate(0, start, start, logits)).any(), "the first step is always taken"
    far, grad = problem.project(-start), -torch.ones_like(start)
    assert rule(Iterate(1, far, grad, logits)).all()
    assert not FOSCBelow(-1e-9)(problem)(Iterate(1, far, grad, logits)).any()


def test_dynamic_refuses_a_start_origin_in_the_box_form() -> None:
    with pytest.raises(UserError, match='form="ball"'):
        methods.dynamic(THREAT, fosc_origin="start", form="box")
    with pytest.raises(UserError, match="did you mean 'box'"):
        methods.dynamic(THREAT, form="bax")  # pyright: ignore[reportArgumentType]


def test_dynamic_defaults_to_the_ball_form_of_eq_4() -> None:
    stop = methods.dynamic(THREAT).solver.stop
    assert (stop.form, stop.threshold.start) == ("ball", 0.5)
    with pytest.raises(UserError, match="either given or estimated"):
        methods.dynamic(THREAT, c_max=0.1, estimate=True)
    with pytest.raises(UserError, match="estimated from the clean image"):
        methods.dynamic(THREAT, estimate=True, fosc_origin="start")
    with pytest.raises(UserError, match="needs a PGD with stop=FOSCBelow"):
        EstimatedThreshold(PGD(3, 0.1))


@pytest.mark.parametrize("form", ["ball", "box"])
def test_the_first_threshold_is_estimated_from_fgsm_points(form) -> None:
    """Written out: the mean FOSC, in the same form, of the first minibatch's FGSM points, kept for the
    run."""
    model, batches = Net(), minibatches()
    method = methods.dynamic(THREAT, form=form, estimate=form == "ball")
    x, y, _ = batches[0]
    lo, up = adaptive.box(x, EPS)

    def gradient(delta: Tensor) -> Tensor:
        delta = delta.requires_grad_()
        with attacking(model, "eval"):
            return torch.autograd.grad(adaptive.cross_entropy(model(x + delta), y).sum(), delta)[0]

    delta = adaptive.clip(EPS * gradient(torch.zeros_like(x)).sign(), lo, up)
    g = gradient(delta.clone())
    in_box, in_ball = adaptive.fosc_box(g, delta, lo, up), adaptive.fosc_ball(g, delta, EPS)
    expected = (in_box if form == "box" else in_ball).mean()

    left = train(copy.deepcopy(model), method, batches)
    found = [record.logged["c_max"] for record in left.records]
    assert found == pytest.approx([float(expected)] * 3, rel=1e-6)
    assert left.bound.state_dict()["solver.c_max"] == pytest.approx(found[0])
    given = train(copy.deepcopy(model), methods.dynamic(THREAT, form=form, c_max=found[0]), batches)
    assert gap(left.model, given.model) <= 1e-12, "as if it had been given"
    extra = left.records[0].passes.backward - given.records[0].passes.backward
    assert extra == 2 * len(y)


@pytest.mark.parametrize("form", ["ball", "box"])
def test_fosc_is_logged_from_the_gradients_that_were_paid_for(form) -> None:
    model = Net().eval()
    problem, solution = solved(methods.dynamic(THREAT, c_max=1e6, form=form), model)
    _, grad = problem.logits_and_gradient(solution.delta)  # all stop there: the last gradient is here
    name, other = ("fosc", "fosc_in_box") if form == "ball" else ("fosc_in_box", "fosc")
    value = fosc(form, THREAT, grad, problem.x, solution.delta)
    assert problem.log[name] == pytest.approx(float(value.mean()))
    assert other not in problem.log
    assert problem.log["steps"] == 1

    problem, solution = solved(methods.at(THREAT, steps=3), model)
    before, passes = solution.before_last, problem.forward.passes
    assert (passes.forward, passes.backward) == (36, 36), "no pass more"
    _, grad = problem.logits_and_gradient(before)
    assert problem.log["fosc"] == pytest.approx(float(fosc("ball", THREAT, grad, problem.x, before).mean()))
    assert "steps" not in problem.log
    assert "fosc" not in solved(methods.n_fgsm(THREAT), model)[0].log, "its points leave the ball"


def test_dynamic_in_l2() -> None:
    method = methods.dynamic(L2(0.5), c_max=0.02)
    problem, solution = solved(method, Net(), threat=L2(0.5), size=20)
    assert solution.evaluations.min() < 10
    assert problem.threat.size(solution.delta).max() <= 0.5 + 1e-9


# FAT


@pytest.mark.parametrize(("tau", "size"), [(0, 6), (1, 6), (2, 9)])
def test_fat_reference(tau: int, size: int) -> None:
    rename = {f"omega-{k}": f"jitter/{k}" for k in range(10)}
    method = methods.fat(THREAT, tau=tau)
    hyper = {"alpha": 7 / 31 * EPS, "tau": tau, "rename": rename, "batches": minibatches((size, size, 3))}
    left = agree(method, adaptive.fat, **hyper)
    assert left.records[0].passes.backward < 11 * size, "some example stopped early"
    agree(methods.fat_trades(THREAT, tau=tau), adaptive.fat, host="trades", omega=0.0, **hyper)
    agree(methods.fat_trades(THREAT, tau=tau, omega=0.001), adaptive.fat, host="trades", **hyper)


def test_the_schedules_of_tau() -> None:
    def taus(method: bv.Method, epochs: int, when: tuple[int, ...]) -> list[float]:
        assert isinstance(method.solver, PGD)
        assert isinstance(method.solver.stop, Misclassified)
        return [value_at(method.solver.stop.tau, Clock(epoch=e - 1, epochs=epochs)) for e in when]

    assert taus(methods.fat(THREAT), 120, (1, 50, 51, 90, 91, 120)) == [0, 0, 1, 1, 2, 2]
    assert taus(methods.fat_trades(THREAT), 85, (30, 31, 50, 51, 70, 71)) == [0, 1, 1, 2, 2, 3]


def test_fat_moves_by_its_noise() -> None:
    data = minibatches()
    noisy = train(Net(), methods.fat(THREAT, tau=10, step_size=0.25), data)
    assert gap(noisy.model, train(Net(), methods.at(THREAT), data).model) > 0


@pytest.mark.parametrize("tau", [0, 1, 3])
def test_what_fat_returns_is_misclassified_or_has_taken_every_step(tau: int) -> None:
    threat = Linf(0.1)
    model = Net().eval()
    method = methods.fat(threat, tau=tau, omega=0.0)
    problem, solution = solved(method, model, threat=threat, size=24)
    wrong = model(problem.x + solution.delta).argmax(1) != problem.y
    stopped = solution.evaluations < 10
    assert stopped.any()
    assert (~stopped).any()
    assert wrong[stopped].all()
    assert (solution.evaluations <= 10).all()
    at_start = model(problem.x + problem.project(PGD(0, 0.0).start(problem))).argmax(1) != problem.y
    if tau == 0:  # misclassified at the random start: stays there
        assert at_start.any()
        assert (solution.evaluations[at_start] == 1).all()


def test_tau_counts_visits_in_all_also_after_a_flip_back() -> None:
    problem = problem_of(Net(), size=1)
    rule = Misclassified(2)(problem)
    right = torch.nn.functional.one_hot(problem.y, 3).double()
    none = torch.zeros_like(problem.x)
    script = [-right, right, -right, right, -right]  # wrong, right, wrong, right, wrong: the third ends it
    assert [bool(rule(Iterate(k, none, none, z))) for k, z in enumerate(script)] == [False] * 4 + [True]


def test_no_state_outlives_a_solve() -> None:
    method = methods.fat(Linf(0.1), tau=1)
    model = Net()
    first, second = (solved(method, model, threat=Linf(0.1))[1] for _ in range(2))
    assert torch.equal(first.delta, second.delta)
    assert first.evaluations.min() < 10


# all of them


class Linear(nn.Module):
    """Two classes of three get a linear score, the third none."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.linspace(-1, 1, 36, dtype=torch.float64) + 0.01)

    def forward(self, x: Tensor) -> Tensor:
        score = x.flatten(1) @ self.w
        return torch.stack([score, -score, torch.full_like(score, -1e9)], 1)


def test_permuting_the_minibatch_permutes_the_attacks() -> None:
    x, y, index = minibatches((16,))[0]
    order = torch.randperm(16, generator=torch.Generator().manual_seed(5))
    model = Net().eval()
    mixing = methods.curriculum(THREAT, mode="cai").bind(facts(16)).solver
    assert isinstance(mixing, BoundBatchMixing)
    mixing.level = 3
    for solver in (methods.fat(THREAT).solver, methods.dynamic(THREAT, c_max=0.05).solver, mixing):
        ends = []
        for rows in (torch.arange(16), order):
            batch = Batch(x[rows], y[rows], index[rows])
            ends.append(solver.solve(LowerProblem(model, batch, cross_entropy, THREAT)).delta)
        assert torch.equal(ends[0][order], ends[1])


@pytest.mark.parametrize("name", ["dynamic", "curriculum", "fat", "fat-trades"])
def test_they_can_be_written_down_and_take_one_row(name: str) -> None:
    method = create(name, THREAT)
    assert bv.Method.from_dict(method.to_dict()) == method
    assert math.isfinite(train(Net(), method, minibatches((4, 1)), epoch=5, epochs=12).records[1].loss)


def test_at_reference_is_what_reductions_rest_on() -> None:
    agree(methods.at(THREAT), plain_at.pgd_at)


@pytest.mark.parametrize("steps", [0, 1])
def test_solvers_around_a_pgd_begin_where_it_does(steps: int) -> None:
    """So that a loss about the attack's start can be with any of them."""
    stop = FOSCBelow(schedule.Linear(0.5, 0.0))
    pgd = PGD(steps, 0.1, stop=stop)
    around = [EstimatedThreshold(pgd), ClassRadius(pgd, RobustRate()), Wider(pgd, 2.0)]
    around += [ClassMeans(pgd), HelperLabels(pgd)]
    assert {type(s).__name__: s.keeps_start() for s in around} == {
        type(s).__name__: steps > 0 for s in around
    }
