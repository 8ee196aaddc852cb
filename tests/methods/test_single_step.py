"""FGSM-AT, N-FGSM, GradAlign, Backward Smoothing: references, reductions, traps and costs."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from tests.methods.glue import EPS, Net, agree, asked, gap, minibatches, train
from tests.reference import single_step
from torch import nn

import bivallate as bv
from bivallate import L2, Linf, UserError, methods
from bivallate.gradcheck import check_gradient
from bivallate.lower.modes import attacking
from bivallate.lower.problem import LowerProblem
from bivallate.lower.start import BackwardSmoothing, Towards
from bivallate.methods.entries import create
from bivallate.types import Batch, Clock
from bivallate.upper.loss import adversarial
from bivallate.upper.regulariser import GradAlign, grad_align, grad_align_coefficient

THREAT = Linf(EPS)


def problem_of(model: nn.Module, method: bv.Method, seed: int = 0) -> LowerProblem:
    x, y, index = minibatches()[0]
    return LowerProblem(model, Batch(x, y, index), method.objective, method.threat, Clock(seed=seed))


@pytest.mark.parametrize("eps", [EPS, 16 / 255])
def test_references(eps: float) -> None:
    threat = Linf(eps)
    agree(methods.fgsm_at(threat), single_step.fgsm_at)
    agree(methods.n_fgsm(threat), single_step.n_fgsm)
    agree(methods.n_fgsm(threat, k=1.0), single_step.n_fgsm, k=1.0)
    agree(methods.fast_at_ga(threat), single_step.grad_align)
    agree(methods.fast_at_ga(threat, coefficient=0.7), single_step.grad_align, coefficient=0.7)


@pytest.mark.parametrize(("gamma", "steps", "beta"), [(1.0, 1, 10.0), (0.5, 3, 6.0)])
def test_backward_smoothing_reference(gamma: float, steps: int, beta: float) -> None:
    method = methods.backward_smoothing(THREAT, gamma=gamma, steps=steps, beta=beta)
    agree(method, single_step.backward_smoothing, gamma=gamma, steps=steps, beta=beta)


def test_n_fgsm_leaves_the_ball_but_not_the_wider_one() -> None:
    method = methods.n_fgsm(THREAT)
    problem = problem_of(Net(), method)
    delta = method.solver.solve(problem).delta
    assert delta.abs().max() > 1.5 * EPS
    assert delta.abs().max() <= 3 * EPS + 1e-12
    assert (problem.x + delta).min() >= 0
    assert (problem.x + delta).max() <= 1 + 1e-15


def test_n_fgsm_at_a_radius_beyond_all_pixels() -> None:
    x, y, index = minibatches()[0]
    method = methods.n_fgsm(Linf(0.6))
    problem = LowerProblem(Net(), Batch(x, y, index), method.objective, method.threat)
    delta = method.solver.solve(problem).delta
    assert delta.abs().max() > 0.6
    assert (x + delta).min() >= 0


def test_n_fgsm_in_l2() -> None:
    method = methods.n_fgsm(L2(0.5))
    problem = problem_of(Net(), method)
    delta = method.solver.solve(problem).delta
    sizes = delta.flatten(1).norm(dim=1)
    assert sizes.max() <= 1.5 + 1e-9
    assert torch.isfinite(delta).all()


def test_grad_align_zero_is_the_loss_itself() -> None:
    assert grad_align(adversarial, 0) is adversarial


def test_the_published_law() -> None:
    law = {2: 0.036, 4: 0.063, 6: 0.112, 8: 0.2, 10: 0.356, 12: 0.632, 14: 1.124, 16: 2.0}
    for eps, coefficient in law.items():
        assert grad_align_coefficient(eps / 255) == pytest.approx(coefficient, rel=0.02)
    assert grad_align_coefficient(0.3) == grad_align_coefficient(16 / 255), "not extrapolated"


class Binary(nn.Module):
    """Two-class logits of a linear score: every input gradient is parallel to w."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.linspace(-1, 1, 36, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        score = x.flatten(1) @ self.w
        return torch.stack([score, -score], 1)


def test_the_penalty_is_zero_for_a_binary_linear_model_and_bounded_otherwise() -> None:
    x, y, index = minibatches()[0]
    terms = GradAlign(adversarial, 0.5)(asked(Binary(), x, y % 2, index), x)
    assert terms.anchor.abs().max() < 1e-12
    terms = GradAlign(adversarial, 0.5)(asked(Net(), x, y, index, 0.3), x)
    assert terms.anchor.max() > 1e-3
    assert terms.anchor.min() >= -1e-12
    assert terms.anchor.max() <= 1.0 + 1e-12


class Dead(nn.Module):
    """A network whose input gradient vanishes for images that are dark on average."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Net()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x * (x.flatten(1).mean(1) > 0.5).to(x.dtype).view(-1, 1, 1, 1))


def test_pairs_with_a_zero_gradient_are_dropped_from_the_mean_and_harm_no_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(6, 1, 6, 6, generator=generator, dtype=torch.float64)
    x[:2] *= 0.1
    x[2:] = 0.5 + x[2:] / 2
    y, index = torch.tensor([0, 1, 2, 0, 1, 2]), torch.arange(6)
    model = Dead()
    anchor = GradAlign(adversarial, 0.5)(asked(model, x, y, index, 0.05), x).anchor
    assert (anchor[:2] == 0).all()
    assert (anchor[2:] > 0).all()
    anchor.mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    model.inner.norm1 = model.inner.norm2 = nn.Identity()  # no statistics: the others' mean can stand alone
    every = GradAlign(adversarial, 0.5)(asked(model, x, y, index, 0.05), x).anchor
    bright = x[2:]
    alone = GradAlign(adversarial, 0.5)(asked(model, bright, y[2:], index[2:], 0.05), bright).anchor
    assert every.mean().item() == pytest.approx(alone.mean().item(), rel=1e-12)


def test_the_gradient_at_the_clean_image_is_held_constant_unless_asked() -> None:
    x, y, index = minibatches()[0]
    grads = []
    for detach in (True, False):
        model = Net()
        anchor = GradAlign(adversarial, 0.5, detach=detach)(asked(model, x, y, index, 0.2), x).anchor
        anchor.mean().backward()
        grads.append(model.conv.weight.grad.clone())
    assert (grads[0] - grads[1]).abs().max() > 1e-6


def test_a_shared_clean_gradient_changes_nothing_but_the_cost() -> None:
    data = minibatches()
    from_zero = methods.fast_at_ga(THREAT)
    # the same attack, through a solver that does not tell where it began
    untold = from_zero.but(solver=methods.n_fgsm(THREAT, k=0.0, step_size=1.25).but(solver__reach=1.0).solver)
    a, b = train(Net(), from_zero, data), train(Net(), untold, data)
    assert gap(a.model, b.model) < 1e-14
    extra = b.records[0].passes.forward - a.records[0].passes.forward
    assert extra == len(data[0][1])


def test_grad_align_goes_with_any_method_and_moves_no_statistics() -> None:
    data = minibatches()
    host = methods.trades(THREAT, steps=2)
    model = Net()
    plain, aligned = (
        train(copy.deepcopy(model), m, data[:1]).model
        for m in (host, host.but(loss=grad_align(host.loss, 0.5)))
    )
    assert torch.equal(plain.norm1.running_mean, aligned.norm1.running_mean)
    assert gap(plain, aligned) > 1e-6


def test_grad_align_refuses_what_it_cannot_know() -> None:
    with pytest.raises(UserError, match="give a coefficient"):
        methods.fast_at_ga(L2(0.5))
    methods.fast_at_ga(L2(0.5), coefficient=0.2)
    with pytest.raises(UserError, match="at least 0"):
        methods.fast_at_ga(THREAT, coefficient=-1.0)


def test_smoothing_by_zero_has_no_gradient_and_a_step_approaches_its_target() -> None:
    model = Net()
    method = methods.backward_smoothing(THREAT)
    with attacking(model, "eval"):
        problem = problem_of(model, method)
        zeros = torch.zeros_like(problem.x)
        _, grad = problem.but(Towards(0.0)).logits_and_gradient(zeros)
        assert grad.abs().max() < 1e-14
        u = 2 * problem.noise.uniform("psi", (3,), torch.float64) - 1
        target = problem.clean_logits + u

        def distance(delta: torch.Tensor) -> torch.Tensor:
            logits = model(problem.x + delta)
            return (target.softmax(1) * (target.log_softmax(1) - logits.log_softmax(1))).sum(1)

        small = BackwardSmoothing(1.0, step_size=1e-3)(problem)
        assert (distance(small) < distance(zeros)).all()
        assert small.abs().max() <= EPS


def test_the_start_gives_the_clean_logits() -> None:
    model = Net()
    with attacking(model, "eval"):
        problem = problem_of(model, methods.backward_smoothing(THREAT))
        BackwardSmoothing()(problem)
        before = problem.forward.passes.forward
        assert torch.allclose(problem.clean_logits, model(problem.x), atol=1e-14)
        assert problem.forward.passes.forward == before


@pytest.mark.parametrize("name", ["fgsm-at", "n-fgsm", "fast-at-ga", "backward-smoothing"])
def test_they_can_be_written_down(name: str) -> None:
    method = create(name, THREAT)
    assert bv.Method.from_dict(method.to_dict()) == method
    assert math.isfinite(train(Net(), method, minibatches((4, 1))).records[1].loss)


@pytest.mark.parametrize("name", ["fast-at-ga", "n-fgsm", "backward-smoothing"])
def test_the_stated_gradient_agrees_with_differences(name: str) -> None:
    model = Net(norm=False)
    x, y, _ = minibatches()[0]
    report = check_gradient(model, create(name, Linf(0.1)), (x, y), directions=2)
    assert report.ok, str(report)
