"""MAX, MSD, E-AT: references, limits, memory, errors."""

from __future__ import annotations

import pytest
import torch
from tests.methods.glue import CLASSES, SHAPE, Net, agree, gap, minibatches, train
from tests.reference import several_threats as reference
from torch import Tensor

import bivallate as bv
from bivallate import L1, L2, Linf, UserError, methods
from bivallate.lower.objective import cross_entropy
from bivallate.lower.problem import LowerProblem
from bivallate.lower.several_threats import DrawnThreat, SteepestThreat, WorstThreat
from bivallate.lower.threat import Threat
from bivallate.noise import Noise
from bivallate.run.validation import held_out
from bivallate.types import Batch, Clock, Facts, Solution

# radii at which each ball gives the highest loss of some examples
THREAT, OTHERS = Linf(0.1), (L2(0.45), L1(1.6))
WRITTEN = [("l2", 0.45), ("l1", 1.6)]
ROWS = minibatches((8, 8, 8, 5))
FACTS = Facts(29, SHAPE, CLASSES, torch.device("cpu"), torch.float64)


@pytest.mark.parametrize(
    ("make", "attack"), [(methods.max_at, reference.worst), (methods.msd, reference.steepest)]
)
def test_max_and_msd(make, attack) -> None:
    told: list[int] = []

    def writing(*args, **hyper) -> None:
        told.extend(reference.several(*args, attack=attack, others=WRITTEN, **hyper))

    agree(make(THREAT, others=OTHERS, steps=5, step_size=0.5), writing, batches=ROWS, steps=5, size=0.5)
    assert set(told) == {0, 1, 2}, "every ball is the worst somewhere"


@pytest.mark.parametrize(
    ("make", "attack"), [(methods.max_at, reference.worst), (methods.msd, reference.steepest)]
)
def test_max_and_msd_with_one_other_and_their_defaults(make, attack) -> None:
    def writing(*args, **hyper) -> None:
        reference.several(*args, attack=attack, others=WRITTEN[:1], **hyper)

    agree(make(THREAT, others=OTHERS[:1]), writing, batches=minibatches((4, 3, 2)))


@pytest.mark.parametrize("balanced", [True, False])
def test_e_at(balanced: bool) -> None:
    told: list[int] = []
    rows = ROWS * 3
    epochs = [e for e in range(3) for _ in ROWS]
    chances = [
        float(Noise(0, torch.tensor([t]), epoch).uniform("threat", (), torch.float64))
        for t, epoch in enumerate(epochs)
    ]

    def writing(*args, **hyper) -> None:
        told.extend(reference.drawn(*args, chances=chances, others=WRITTEN, balanced=balanced, **hyper))

    method = methods.e_at(THREAT, others=OTHERS, balanced=balanced, steps=4)
    made = agree(method, writing, batches=rows, epoch=epochs, epochs=3, steps=4)
    assert set(told) == {0, 1, 2}
    seen = [sum(len(rows[t][1]) for t, k in enumerate(told) if k == ball) for ball in range(3)]
    counts: Tensor = made.bound.solver.counts  # pyright: ignore
    assert counts[:, 1].tolist() == seen
    logged = [[r.logged[f"drawn_{n}"] for n in ("linf", "l2", "l1")] for r in made.records]
    assert logged == [[float(k == ball) for ball in range(3)] for k in told]


def test_chances_follow_the_errors() -> None:
    bound = DrawnThreat(bv.PGD(0, 0.1), OTHERS, 0.1).bind(FACTS)
    bound.counts.copy_(torch.tensor([[9, 10], [5, 10], [6, 10]]))  # pyright: ignore
    model, (x, y, index) = Net(), minibatches((6,))[0]

    def drawn(step: int) -> str:
        problem = LowerProblem(model, Batch(x, y, index), cross_entropy, THREAT, Clock(step=step))
        bound.solve(problem)
        return next(name for name, value in problem.log.items() if value == 1.0)

    names = [drawn(step) for step in range(2000)]
    shares = [names.count(f"drawn_{n}") / 2000 for n in ("linf", "l2", "l1")]
    assert shares == pytest.approx([0.1, 0.5, 0.4], abs=0.035)  # three standard deviations


# ---------------------------------------------------------------- limits


def solved(solver, threat: Threat = THREAT, model: Net | None = None) -> tuple[LowerProblem, Solution]:
    x, y, index = minibatches((12,))[0]
    problem = LowerProblem(model or Net().eval(), Batch(x, y, index), cross_entropy, threat)
    return problem, solver.solve(problem)


def test_the_worst_is_at_least_as_high_as_each() -> None:
    solver = methods.max_at(THREAT, others=OTHERS).solver
    problem, solution = solved(solver)
    worst = problem.value(solution.delta)[1]
    of_each = []
    for one, inner in solver.within(problem):  # pyright: ignore
        found = inner.solve(one)
        of_each.append(problem.value(found.delta)[1])
        assert (worst >= of_each[-1] - 1e-12).all()
    assert torch.allclose(worst, torch.stack(of_each).amax(0), atol=1e-12)
    assert solution.evaluations.tolist() == [30] * 12
    shares = [float(problem.log[f"strongest_{n}"]) for n in ("linf", "l2", "l1")]
    assert sum(shares) == pytest.approx(1)


@pytest.mark.parametrize("make", [methods.max_at, methods.msd])
def test_the_point_lies_in_one_of_the_balls(make) -> None:
    threats = (THREAT, L2(0.5), L1(1.2))
    problem, solution = solved(make(THREAT, others=threats[1:]).solver)
    x, delta = problem.x, solution.delta
    assert (x + delta).min() >= 0
    assert (x + delta).max() <= 1 + 1e-12
    inside = torch.stack([t.size(delta) <= t.eps + 1e-9 for t in threats])
    assert inside.any(0).all()
    assert not inside.all(1).any(), "not all points lie in one ball"


def test_a_ball_within_the_others_changes_nothing() -> None:
    """An L1 ball of a tenth of the radius lies well within the Linf ball."""
    problem, solution = solved(methods.max_at(THREAT, others=(L1(0.01),)).solver)
    alone = methods.at(THREAT).solver.solve(problem)
    assert torch.equal(solution.delta, alone.delta)
    assert float(problem.log["strongest_l1"]) == 0


def test_the_other_balls_grow_with_the_first() -> None:
    solver = WorstThreat(bv.PGD(2, 0.05), OTHERS, unit=0.1)
    problem, _ = solved(solver, Linf(0.02))
    found = list(solver.within(problem))
    assert [one.threat.eps for one, _ in found] == pytest.approx([0.02, 0.09, 0.32])
    assert [inner.step_size for _, inner in found] == pytest.approx([0.05, 0.225, 0.8])


def test_another_threat_keeps_the_others() -> None:
    method = methods.max_at(THREAT, others=OTHERS, steps=3).but(threat=Linf(0.2))
    assert method == methods.max_at(Linf(0.2), others=OTHERS, steps=3)
    back = bv.Method.from_dict(method.to_dict())
    assert back == method


def test_two_processes_would_draw_the_same() -> None:
    """The draw depends on the moment alone, not on the rows that a process has."""
    bound = DrawnThreat(bv.PGD(1, 0.1), OTHERS, 0.1).bind(FACTS)
    x, y, index = minibatches((12,))[0]
    for step in range(10):
        logs = []
        for rows in (slice(0, 5), slice(5, 12)):
            batch = Batch(x[rows], y[rows], index[rows])
            problem = LowerProblem(Net(), batch, cross_entropy, THREAT, Clock(step=step))
            bound.solve(problem)
            logs.append(problem.log)
        assert logs[0] == logs[1]


def test_held_out_rows_are_attacked_within_each(digits: bv.data.Dataset) -> None:
    model = bv.models.create("small-cnn", num_classes=10, shape=(1, 8, 8), seed=0)
    settings = {"steps": 3, "rows": 100, "seed": 0, "device": torch.device("cpu")}
    trained = train_a_little(model, digits)
    threats = (Linf(0.05), L2(0.2))
    each = [held_out(trained, digits.test, (threat,), **settings) for threat in threats]
    both = held_out(trained, digits.test, threats, **settings)
    assert 0 < both[1] <= min(robust for _, robust, _ in each)
    assert both[0] == each[0][0] == each[1][0]
    assert both[2].backward == 100 * 3 * 2
    assert both[2].forward == 100 * (1 + 2 * 4)


def train_a_little(model: torch.nn.Module, data: bv.data.Dataset) -> torch.nn.Module:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for start in range(0, 1200, 100):
        x, y = data.train.tensors(torch.arange(start, start + 100))
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def digits() -> bv.data.Dataset:
    return bv.data.load("digits")


# ---------------------------------------------------------------- composition and errors


def test_other_losses_and_weights_compose() -> None:
    solver = methods.max_at(THREAT, others=OTHERS, steps=2).solver
    for method in (
        methods.trades(THREAT),
        methods.mail_at(THREAT),
        methods.mart(THREAT),
        methods.gairat(THREAT, steps=2),
    ):
        made = train(Net(), method.but(solver=solver), ROWS, facts=FACTS)
        assert all(torch.isfinite(torch.tensor(r.loss)) for r in made.records)


def test_without_others_it_says_how_to_name_them() -> None:
    for make in (methods.max_at, methods.msd, methods.e_at):
        with pytest.raises(UserError, match="name the others"):
            make(THREAT).bind(FACTS)


@pytest.mark.parametrize(
    ("others", "match"),
    [((Linf(0.2),), "a norm each"), ((L2(0.5), L2(1.0)), "a norm each"), ((L2(0.0),), "above 0")],
)
def test_threats_that_make_no_union(others, match: str) -> None:
    for make in (methods.max_at, methods.msd, methods.e_at):
        with pytest.raises(UserError, match=match):
            make(THREAT, others=others)
    with pytest.raises(UserError, match="above 0"):
        methods.max_at(Linf(0.0), others=OTHERS)


def test_a_unit_that_is_not_the_radius_is_refused() -> None:
    """The other balls would have other radii than they say."""
    solver = methods.e_at(THREAT, others=OTHERS).solver
    for make in (methods.at, methods.trades):
        with pytest.raises(UserError, match=r"must be the radius of the method's threat, 0.2, got 0.1"):
            make(Linf(0.2)).but(solver=solver)
    with pytest.raises(UserError, match="unit"):
        bv.Method(THREAT, solver).but(threat__eps=0.2)


def test_a_list_of_others_is_a_tuple() -> None:
    given = methods.e_at(THREAT, others=list(OTHERS))  # pyright: ignore
    assert given == bv.Method.from_dict(given.to_dict())
    assert hash(given.solver) == hash(methods.e_at(THREAT, others=OTHERS).solver)


def test_the_clean_pass_is_made_once() -> None:
    """TRADES's objective asks for it: one forward more than with cross-entropy."""
    solver, counts = methods.max_at(THREAT, others=OTHERS, steps=3).solver, []
    for method in (methods.at(THREAT), methods.trades(THREAT)):
        x, y, index = minibatches((5,))[0]
        problem = LowerProblem(Net().eval(), Batch(x, y, index), method.objective, THREAT)
        solver.solve(problem)
        counts.append(problem.forward.passes.forward)
    assert counts == [5 * 3 * 4, 5 * (3 * 4 + 1)]


def test_two_labels_are_taken_where_no_count_is_kept() -> None:
    told = [make(THREAT, others=OTHERS).solver.takes_two_labels() for make in (methods.max_at, methods.msd)]
    assert told == [True, True]
    assert not methods.e_at(THREAT, others=OTHERS).solver.takes_two_labels()


def test_what_would_not_know_the_other_balls_is_refused() -> None:
    with pytest.raises(UserError, match="Detached"):
        methods.max_at(THREAT, others=OTHERS).but(coupling=bv.LastStep(0.1, 0.1))
    stopping = methods.fat(THREAT).solver
    with pytest.raises(UserError, match="leave out the stop"):
        methods.msd(THREAT, others=OTHERS).but(solver=SteepestThreat(stopping, OTHERS, 0.1))  # pyright: ignore
    with pytest.raises(UserError, match="second stream"):
        methods.bilaw(THREAT).but(solver=methods.e_at(THREAT, others=OTHERS).solver)


def test_a_stop_may_end_each_attack() -> None:
    stopping = methods.fat(THREAT).solver
    made = train(Net(), methods.fat(THREAT).but(solver=WorstThreat(stopping, OTHERS, 0.1)), ROWS, facts=FACTS)  # pyright: ignore
    assert gap(made.model, Net()) > 1e-3
