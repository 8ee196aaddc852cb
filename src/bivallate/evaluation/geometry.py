"""The loss around a point: stationarity (FOSC) and agreement of nearby gradients (alignment)."""

from __future__ import annotations

import torch
from torch import Tensor

from bivallate.errors import UserError
from bivallate.lower.distances import cosines
from bivallate.lower.problem import LowerProblem
from bivallate.lower.solver import Solver
from bivallate.lower.stop import Form, fosc

__all__ = ["agreement", "alignment", "fosc_after", "fosc_at"]

ROUNDING = 1e-4  # relative to eps, by which a perturbation may leave the ball


def fosc_at(problem: LowerProblem, delta: Tensor, form: Form) -> tuple[Tensor, Tensor, Tensor]:
    """(FOSC (B,) in nats, logits (B, K), gradient (B, C, H, W)) of the problem's objective at delta.

    Cost: one forward and one backward.

    Reference: Wang et al. (Dynamic AT), ICML 2019, eq. 4; see `bivallate.lower.stop.fosc`.
    """
    logits, grad = problem.logits_and_gradient(delta)
    return fosc(form, problem.threat, grad, problem.x, delta).detach(), logits, grad


def fosc_after(solver: Solver, problem: LowerProblem, form: Form) -> Tensor:
    """(B,) FOSC at a solver's result: lower means better convergence of the inner maximisation.

    Cost: the solver's, and one forward and one backward.

    Raises:
        UserError: the attack leaves the ball (N-FGSM), for which FOSC is not defined.
    """
    delta = solver.solve(problem).delta.detach()
    if bool((problem.threat.size(delta) > (1 + ROUNDING) * problem.threat.eps).any()):
        raise UserError("FOSC is defined in the ball of radius eps, which this method's attack leaves")
    return fosc_at(problem, delta, form)[0]


def alignment(problem: LowerProblem) -> tuple[Tensor, Tensor]:
    """(cosine (B,) of the gradients at x and at x + eta, the gradient at x); eta is uniform and not clipped.

    Cost: two forwards and two backwards.

    Reference: the GA score of Andriushchenko and Flammarion 2020, section 4.
    """
    _, at_x = problem.logits_and_gradient(torch.zeros_like(problem.x))
    _, at_eta = problem.logits_and_gradient(problem.threat.random(problem.noise, problem.x, "alignment"))
    return agreement(at_x, at_eta), at_x


def agreement(a: Tensor, b: Tensor) -> Tensor:
    """(B,) float64 cosine of gradients (B, ...); 1 where one is zero, as in the paper's public code."""
    cos, defined = cosines(a.double(), b.double())
    return torch.where(defined, cos, 1.0)
