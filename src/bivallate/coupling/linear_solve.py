"""Per-example linear systems H u = v given only the product u -> H u."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bivallate.lower.problem import LowerProblem
from bivallate.types import per_example

Matvec = Callable[[Tensor], Tensor]


def dot(a: Tensor, b: Tensor) -> Tensor:
    """(B,) inner products of (B, ...) with (B, ...)."""
    return (a * b).flatten(1).sum(1)


@dataclass(frozen=True)
class LinearSolution:
    """The solution u, and `failed` (B,) bool: negative curvature ended the search before the first step."""

    u: Tensor
    failed: Tensor


def conjugate_gradient(
    matvec: Matvec,
    v: Tensor,
    *,
    steps: int,
    tolerance: float = 1e-4,
    anywhere: Callable[[bool], bool] = bool,
) -> LinearSolution:
    """Solve H u = v by conjugate gradients, for each example on its own, starting at zero.

    An example stops when its residual has fallen to `tolerance` times the norm of v. It also stops, at its
    previous iterate, at a direction of curvature <= 0 (the lower level's Hessian may be indefinite). If that
    is its first direction, the example is marked as failed: u = 0 there, and the caller must choose a
    replacement.

    Args:
        matvec: u (B, ...) -> H u (B, ...), symmetric for each example; called at most `steps` times.
        v: (B, ...) right-hand side.
        steps: largest number of products.
        tolerance: relative residual norm.
        anywhere: as `LowerProblem.anywhere`: all processes stop together, because a product may contain a
            collective operation.
    """
    u, residual = torch.zeros_like(v), v
    direction, rr = v, dot(v, v)
    target = tolerance**2 * rr
    failed = torch.zeros_like(rr, dtype=torch.bool)
    active = rr > 0
    for k in range(steps):
        active = active & (rr > target)
        if not anywhere(bool(active.any())):
            break
        product = matvec(direction)
        curvature = dot(direction, product)
        bad = active & (curvature <= 0)
        if k == 0:
            failed = bad
        active = active & ~bad
        alpha = torch.where(active, rr / torch.where(active, curvature, 1), 0)
        u = u + per_example(alpha, v) * direction
        residual = residual - per_example(alpha, v) * product
        new = dot(residual, residual)
        beta = torch.where(active, new / torch.where(active, rr, 1), 0)
        direction = residual + per_example(beta, v) * direction
        rr = torch.where(active, new, rr)
    return LinearSolution(u, failed)


def curvature_solve(
    problem: LowerProblem, matvec: Matvec, v: Tensor, *, steps: int, tolerance: float
) -> LinearSolution:
    """`conjugate_gradient` for a coupling: logs the fraction of examples that failed.

    All processes stop together where their passes wait for each other.
    """
    solved = conjugate_gradient(matvec, v, steps=steps, tolerance=tolerance, anywhere=problem.anywhere)
    problem.log["negative_curvature"] = solved.failed.float().mean()
    return solved
