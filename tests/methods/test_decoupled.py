"""IKL: reference, limits, invariants."""

from __future__ import annotations

import pytest
import torch
from tests.methods.glue import EPS, agree, minibatches
from tests.methods.test_fair import SIZES, TURNS
from tests.reference.decoupled import distance, ikl

import bivallate as bv
from bivallate import Linf, UserError, methods
from bivallate.lower.class_means import ClassMeans
from bivallate.lower.objective import kl
from bivallate.types import Batch
from bivallate.upper.improved_kl import ImprovedKL

THREAT = Linf(EPS)
D = torch.float64


@pytest.mark.parametrize(("power", "temperature"), [(1.0, 4.0), (0.2, 1.0)])
def test_ikl(power: float, temperature: float) -> None:
    method = methods.ikl(THREAT, steps=3, power=power, temperature=temperature, alpha=2.0, beta=5.0)
    hyper = {"step": EPS / 4, "steps": 3, "gamma": power, "temperature": temperature}
    hyper |= {"alpha": 2.0, "beta": 5.0}

    def by_epoch(*args, **more):
        return ikl(*args, epochs=TURNS["epoch"], **more)

    ended = agree(method, by_epoch, batches=minibatches(SIZES), **TURNS, **hyper)
    means = ended.bound.state_dict()["solver.means"]
    assert (means.sum(1) - 1).abs().max() < 1e-12
    assert (means - 1 / 3).abs().max() > 0.01, "the classes differ, or nothing was compared"


def _terms(loss: ImprovedKL, clean: torch.Tensor, adv: torch.Tensor, means: torch.Tensor | None):
    """The loss of logits that are given: of x and, behind them, of x_adv."""
    said = iter((clean, adv))
    x, y = torch.zeros(len(clean), 1, 1, 1, dtype=D), torch.arange(len(clean)) % clean.shape[1]
    problem = bv.LowerProblem(lambda _: next(said), Batch(x, y, y), bv.LowerProblem, THREAT)
    problem.class_score = means
    return loss(problem, x), y


def logits(seed: int, rows: int = 6, classes: int = 4) -> torch.Tensor:
    return torch.randn(rows, classes, dtype=D, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("power", [1.0, 0.2])
def test_the_sum_over_pairs_is_a_variance(power: float) -> None:
    clean, adv, means = logits(0), logits(1), logits(2, 4).softmax(1)
    terms, y = _terms(ImprovedKL(1.5, 3.0, power), clean, adv, means)
    expected = distance(clean, adv, means[y], 1.5, 3.0, power)
    assert float(terms.robust.mean() - expected) == pytest.approx(0, abs=1e-12)
    shifted, _ = _terms(ImprovedKL(1.5, 3.0, power), clean + 7, adv - 2, means)
    assert torch.allclose(shifted.robust, terms.robust), "logits count up to a constant"


def test_its_gradient_with_own_predictions_is_that_of_the_divergence() -> None:
    """The paper's theorem: KL moves both arguments as the two terms do, alpha = beta = 1, w = p(x) fixed."""
    clean, adv = logits(3).requires_grad_(), logits(4).requires_grad_()
    kl(clean, adv).sum().backward()
    expected = [clean.grad, adv.grad]
    a, b = clean.detach().clone().requires_grad_(), adv.detach().clone().requires_grad_()
    p = a.detach().softmax(1)
    moved = (a - b).detach()
    pairs = moved[:, :, None] - moved[:, None, :]  # n - a of the pairs
    own = a[:, :, None] - a[:, None, :]
    apart = 0.25 * (p[:, :, None] * p[:, None, :] * 2 * pairs * own).sum()
    same = -(p * b.log_softmax(1)).sum()
    got = torch.autograd.grad(apart + same, [a, b])
    for mine, theirs in zip(got, expected, strict=True):
        assert theirs is not None
        assert torch.allclose(mine, theirs, atol=1e-12)


def test_what_does_not_move_costs_the_entropy_alone() -> None:
    clean = logits(5)
    terms, _ = _terms(ImprovedKL(2.0, 9.0), clean, clean.clone(), None)
    entropy = -(clean.softmax(1) * clean.log_softmax(1)).sum(1)
    assert torch.allclose(terms.robust, 2 * entropy)


def test_it_needs_a_solver_that_gathers() -> None:
    with pytest.raises(UserError, match="ClassMeans"):
        methods.at(THREAT).but(loss=ImprovedKL())
    with pytest.raises(UserError, match="temperature"):
        ClassMeans(bv.PGD(1, 0.1), 0.0)
    fine = methods.ikl(THREAT).but(loss=bv.AWP(ImprovedKL(), gamma=0.005))
    assert fine.loss.loss == ImprovedKL()
