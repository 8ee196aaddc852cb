"""HAT: reference, limits, and the labels that are kept and reused."""

from __future__ import annotations

import pytest
import torch
from tests.methods.glue import EPS, Net, agree, gap, minibatches, train
from tests.methods.test_fair import SIZES, TURNS
from tests.reference import helped as reference

import bivallate as bv
from bivallate import Linf, UserError, methods
from bivallate.lower.helper_labels import HelperLabels
from bivallate.upper.helper_examples import HelperExamples
from bivallate.upper.loss import Trades

THREAT = Linf(EPS)


@pytest.mark.parametrize(("plain", "begin", "eps"), [(0.0, 0, EPS), (1 / 3, 1, EPS), (1 / 3, 1, 0.3)])
def test_hat(plain: float, begin: int, eps: float) -> None:
    method = methods.hat(Linf(eps), steps=3, plain=plain, beta=2.0, gamma=0.7)
    wrong: list[float] = []

    def by_epoch(*args, **more):
        wrong.extend(reference.hat(*args, epochs=TURNS["epoch"], begin=begin, **more))

    hyper = {"step": eps / 4, "steps": 3, "beta": 2.0, "gamma": 0.7}
    ended = agree(method, by_epoch, batches=minibatches(SIZES), **TURNS, **hyper)
    assert eps != 0.3 or max(wrong) > 0, "the plain network is fooled somewhere, or labels tell nothing"
    state = ended.bound.state_dict()
    assert state["solver._extra_state"]["names"] == [
        *dict(Net().named_parameters()),
        *dict(Net().named_buffers()),
    ]


def test_without_helper_examples_it_is_trades_and_before_that_plain() -> None:
    batches = minibatches(SIZES)
    own = train(Net(), methods.hat(THREAT, steps=2, gamma=0.0, plain=0.0, beta=6.0), batches, **TURNS)
    assert gap(own.model, train(Net(), methods.trades(THREAT, steps=2), batches, **TURNS).model) < 1e-12
    plain = train(Net(), methods.hat(THREAT, steps=2, plain=1.0), batches, **TURNS)
    host = train(Net(), methods.plain(THREAT), batches, **TURNS)
    for mine, theirs in zip(plain.model.parameters(), host.model.parameters(), strict=True):
        assert (mine - theirs).abs().max() < 1e-12  # running statistics are moved twice
    assert plain.bound.state_dict()["solver._extra_state"] == {"names": []}


def test_going_back_before_the_first_helper_forgets_it() -> None:
    batches = minibatches(SIZES)
    ended = train(Net(), methods.hat(THREAT, steps=1, plain=1 / 3), batches, **TURNS)
    before = methods.hat(THREAT, steps=1, plain=1 / 3).bind(bv.method.facts_for(Net(), batches[0][0], 3))
    ended.bound.load_state_dict(before.state_dict())
    assert ended.bound.state_dict() == before.state_dict() == {"solver._extra_state": {"names": []}}


def test_it_needs_a_solver_that_has_a_plain_network() -> None:
    with pytest.raises(UserError, match="HelperLabels"):
        methods.at(THREAT).but(loss=HelperExamples(Trades()))
    with pytest.raises(UserError, match="plain"):
        methods.hat(THREAT, plain=1.5)


def test_helper_points_lie_beyond_the_ball_along_the_attack() -> None:
    seen = []
    loss = HelperExamples(Trades(), reach=3.0)
    x, x_adv = torch.full((2, 1, 1, 1), 0.5), torch.full((2, 1, 1, 1), 0.8)

    def model(points: torch.Tensor) -> torch.Tensor:
        seen.append(points.flatten().tolist())
        return points.flatten(1).repeat(1, 2)

    y = torch.tensor([0, 1])
    problem = bv.LowerProblem(model, bv.Batch(x, y, y), bv.methods.trades(THREAT).objective, THREAT)
    assert loss(problem, x_adv).anchor.shape == (2,)
    assert len(seen) == 2
    problem.helper = y
    loss(problem, x_adv)
    assert seen[-1] == pytest.approx([1.4, 1.4])


def test_a_solver_of_ones_own_declares_what_it_gathers() -> None:
    """The loss asks for what the solver gathers, whatever its class is called."""

    class Mine(HelperLabels):
        pass

    solver = methods.hat(THREAT).solver
    own = Mine(solver.inner, solver.plain)  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(methods.hat(THREAT).but(solver=own).loss, HelperExamples)
