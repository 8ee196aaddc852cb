"""The general implicit coupling, and the pass that coupling and loss share."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.coupling.differences import error, gradient, relative
from tests.lower.toys import FirstLogit, Hill, SquaredLogits
from tests.methods.glue import EPS, Net, minibatches

from bivallate import (
    KLDRO,
    PGD,
    Adversarial,
    Barrier,
    Detached,
    Implicit,
    Leaf,
    Linf,
    Mask,
    Method,
    UserError,
    methods,
)
from bivallate.lower.direction import raw
from bivallate.lower.modes import attacking
from bivallate.lower.objective import KLToClean, Margin, cross_entropy
from bivallate.lower.problem import LowerProblem
from bivallate.lower.start import uniform, zero
from bivallate.step import accumulate_gradient
from bivallate.types import Batch, Clock, Facts, Solution, Terms


def hills() -> tuple[Hill, Batch]:
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(5, 1, 3, 4, generator=generator, dtype=torch.float64)
    return Hill(12).eval(), Batch(x, torch.zeros(5, dtype=torch.long), torch.arange(5))


@pytest.mark.parametrize("training", [False, True])
def test_implicit_is_exact_at_a_strict_maximiser(training) -> None:
    model, batch = hills()
    model.train(training)  # in train mode the pass is shared, and the loss is not the objective
    climb = Method(
        Linf(0.1),
        PGD(60, 0.5, zero, raw),
        objective=FirstLogit(),
        loss=SquaredLogits(),
        attack_mode="train" if training else "eval",
    )
    exact = climb.but(coupling=Implicit(steps=50, tolerance=1e-13))
    found, record = gradient(model, exact, batch)
    assert 0.2 < record.logged["free"] < 0.8
    assert record.logged["negative_curvature"] == 0

    def value() -> torch.Tensor:
        with attacking(model, "eval"):
            problem = LowerProblem(model, batch, FirstLogit(), Linf(0.1))
            delta = climb.solver.solve(problem).delta
        return model(batch.x + delta).square().sum(1).mean() / 2

    assert error(model, value, found, directions=4) <= 1e-6
    assert error(model, value, gradient(model, climb, batch)[0], directions=1) > 1e-2, (
        "without coupling it must be wrong"
    )
    damped = gradient(model, climb.but(coupling=Implicit(steps=50, tolerance=1e-13, damping=1.0)), batch)[0]
    assert error(model, value, damped, directions=1) > 1e-4


def test_danskin_where_the_objective_is_the_loss() -> None:
    """At an interior maximiser of the loss itself the implicit part vanishes (Fast-BAT, appendix B)."""
    model, batch = hills()

    class Same(SquaredLogits):
        def __call__(self, problem, x_adv):
            terms = super().__call__(problem, x_adv)
            return type(terms)(terms.logits[:, 0], terms.anchor, terms.logits)

    climb = Method(Linf(1.0), PGD(300, 0.5, zero, raw), objective=FirstLogit(), loss=Same())
    plain, _ = gradient(model, climb, batch)
    coupled, _ = gradient(model, climb.but(coupling=Implicit(steps=50, tolerance=1e-13)), batch)
    assert relative(coupled, plain) < 1e-9


LOSSES = {
    "parallel": Adversarial(),
    "smoothed": Adversarial(smoothing=0.2),
    "slightly smoothed": Adversarial(smoothing=1e-6),
    "other": SquaredLogits(),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("objective", [None, Margin(), KLToClean()])
@pytest.mark.parametrize(
    "coupling", [Barrier(), Mask(), Barrier(curvature_steps=4), Implicit(steps=5, damping=9.0)]
)
def test_the_shared_pass_gives_the_gradient_of_two_passes(loss, objective, coupling) -> None:
    model, batch = Net(norm=False), Batch(*minibatches((8,))[0])
    method = Method(Linf(EPS), PGD(2, 0.3 * EPS, uniform), coupling=coupling, loss=LOSSES[loss])
    method = method.but(weighting=KLDRO(), **({} if objective is None else {"objective": objective}))
    shared, one = gradient(model.train(), method.but(attack_mode="train"), batch)
    apart, two = gradient(model.eval(), method.but(attack_mode="eval"), batch)
    assert 0.2 < one.logged["free"] < 0.8
    assert relative(shared, apart) < 1e-11
    assert two.passes.forward == one.passes.forward + 8
    plain, _ = gradient(model, method.but(coupling=Detached()), batch)
    assert relative(apart, plain) > 1e-5


def test_dropout_keeps_the_two_passes_apart() -> None:
    model, batch = Net(norm=False, dropout=0.5).train(), Batch(*minibatches((8,))[0])
    _, record = gradient(model, methods.done_pgd(Linf(EPS), steps=2), batch)
    assert record.passes.forward == 8 * (2 + 1 + 1)


def test_the_pass_that_was_handed_on_is_given_once() -> None:
    x, y, index = minibatches((2,))[0]
    posed = LowerProblem(Net().eval(), Batch(x, y, index), cross_entropy, Linf(EPS))
    logits, none = torch.zeros(2, 3, dtype=torch.float64), torch.zeros_like(y)
    zero = torch.zeros_like(x)
    problem = posed.with_solution(Solution(zero, zero, none, none, logits=logits))
    assert not torch.equal(problem.logits(x), logits)
    with pytest.raises(UserError, match="logits_at_solution"):
        problem.check_pass_is_used()
    assert problem.logits_at_solution(x) is logits
    assert not torch.equal(problem.logits_at_solution(x), logits)
    assert problem.forward.passes.forward == 4
    problem.check_pass_is_used()


def test_a_coupling_that_returns_a_tensor_is_told_what_to_return() -> None:
    class Old(Detached):
        def __call__(self, problem, solution):
            return solution.delta

    model, batch = Net(norm=False).train(), Batch(*minibatches((8,))[0])
    with pytest.raises(UserError, match=r"solution\.but\(delta"):
        gradient(model, methods.at(Linf(EPS), steps=1).but(coupling=Old()), batch)


@pytest.mark.parametrize("method", [methods.done_pgd, methods.at])
def test_a_loss_that_leaves_the_shared_pass_behind_is_refused(method) -> None:
    """By its first step, with a coupling that shares a pass and with one that does not."""

    class Own(SquaredLogits):
        def __call__(self, problem, x_adv):
            logits = problem.logits(x_adv)
            return Terms(logits.square().sum(1), torch.zeros_like(logits[:, 0]), logits)

    model, batch = Net(norm=False).train(), Batch(*minibatches((8,))[0])
    with pytest.raises(UserError, match="gradient is lost"):
        gradient(model, method(Linf(EPS), steps=1).but(loss=Own()), batch)


def test_leaf_receives_the_gradient_of_the_loss() -> None:
    model, batch = Net().eval(), Batch(*minibatches((4,))[0])
    seen: list[torch.Tensor] = []

    class Listening(PGD):
        def feedback(self, problem, delta, evidence) -> None:
            seen.append(delta)

    method = Method(Linf(EPS), PGD(1, EPS, uniform), coupling=Leaf())
    bound = method.bind(Facts(99, (1, 6, 6), 3))
    bound.solver = Listening(1, EPS, uniform)
    accumulate_gradient(model, bound, batch, Clock(), 0.1)
    delta = seen[0].detach().requires_grad_()
    (expected,) = torch.autograd.grad(F.cross_entropy(model(batch.x + delta), batch.y), delta)
    assert seen[0].grad is not None
    assert relative(seen[0].grad, expected) < 1e-13


@pytest.mark.parametrize("scale", [1.0, 30.0, 300.0])
def test_confident_examples_in_single_precision_pay_no_pass_more(scale) -> None:
    """Gradients of 1e-20 are parallel too, though their squares are zero in float32."""
    model = Net(norm=False).float().train()
    with torch.no_grad():
        model.head.weight.mul_(scale)
    x, y, index = minibatches((8,))[0]
    y[:4] = model(x.float()).argmax(1)[:4]
    batch = Batch(x.float(), y, index)
    done = methods.done_pgd(Linf(EPS), steps=2)
    found, record = gradient(model, done, batch)
    assert found.isfinite().all()
    assert record.passes.backward == 8 * (2 + 3)
    double = Batch(x, y, index)
    exact, _ = gradient(model.double().eval(), done.but(attack_mode="eval"), double)
    if scale == 1.0:  # elsewhere single precision itself moves the attack
        assert relative(found.double(), exact) < 1e-3


class WronglyCollinear(SquaredLogits):
    """It declares a gradient along the objective's, and has another."""

    def follows(self, objective: object) -> bool:
        return True


def test_a_loss_that_wrongly_says_that_it_follows_the_objective_is_refused_at_the_first_step() -> None:
    model, batch = Net(norm=False).train(), Batch(*minibatches((8,))[0])
    method = methods.done_pgd(Linf(EPS), steps=2)
    for honest in (SquaredLogits(), Adversarial()):
        gradient(model, method.but(loss=honest), batch)
    with pytest.raises(UserError, match=r"declares with `follows`.*CrossEntropy"):
        gradient(model, method.but(loss=WronglyCollinear()), batch)
