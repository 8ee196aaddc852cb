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
    goes_on: Callable[[bool], bool] = bool,
) -> LinearSolution:
    """Solve H u = v by conjugate gradients, for each example on its own, starting at zero.

    An example stops when its residual has fallen to `tolerance` times the norm of v. A direction of curvature
    <= 0 also ends it (the lower level's Hessian may be indefinite): the iterate before that direction is its
    result. If it is the first direction, the example is marked as failed: u = 0 there, and the caller must
    choose a replacement.

    Args:
        matvec: u (B, ...) -> H u (B, ...), symmetric for each example; called at most `steps` times.
        v: (B, ...) right-hand side.
        steps: largest number of products.
        tolerance: relative residual norm.
        goes_on: as `LowerProblem.goes_on`: all processes stop together, because a product may contain a
            collective operation.
    """
    u, residual = torch.zeros_like(v), v
    direction, squares = v, dot(v, v)  # squared norms of the residuals
    target = tolerance**2 * squares
    failed = torch.zeros_like(squares, dtype=torch.bool)
    active = squares > 0
    for k in range(steps):
        active = active & (squares > target)
        if not goes_on(bool(active.any())):
            break
        product = matvec(direction)
        curvature = dot(direction, product)
        ends = active & (curvature <= 0)
        if k == 0:
            failed = ends
        active = active & ~ends
        alpha = torch.where(active, squares / torch.where(active, curvature, 1), 0)
        u = u + per_example(alpha, v) * direction
        residual = residual - per_example(alpha, v) * product
        new_squares = dot(residual, residual)
        beta = torch.where(active, new_squares / torch.where(active, squares, 1), 0)
        direction = residual + per_example(beta, v) * direction
        squares = torch.where(active, new_squares, squares)
    return LinearSolution(u, failed)


def curvature_solve(
    problem: LowerProblem, matvec: Matvec, v: Tensor, *, steps: int, tolerance: float
) -> LinearSolution:
    """`conjugate_gradient` for a coupling: logs as `negative_curvature` the fraction of examples that failed.

    Those are the ones whose first direction has curvature <= 0. All processes stop together where their
    passes wait for each other.
    """
    solved = conjugate_gradient(matvec, v, steps=steps, tolerance=tolerance, goes_on=problem.goes_on)
    problem.log["negative_curvature"] = solved.failed.float().mean()
    return solved
