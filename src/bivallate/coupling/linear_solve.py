"""Per-example linear systems H u = v given only the product u -> H u."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bivallate.types import per_example

Matvec = Callable[[Tensor], Tensor]


def dot(a: Tensor, b: Tensor) -> Tensor:
    """(B,) inner products of (B, ...) with (B, ...)."""
    return (a * b).flatten(1).sum(1)


@dataclass(frozen=True)
class LinearSolution:
    """u, and for which examples negative curvature ended the search before its first step ((B,) bool)."""

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
    """Conjugate gradients for H u = v, every example on its own, started at zero.

    An example stops when its residual has fallen to `tolerance` times the norm of v, or keeps its previous
    iterate when it meets a direction of curvature <= 0 (the lower level's Hessian may be indefinite). If that
    is the very first direction the example is marked as failed: u = 0 there, and the caller must choose what
    stands in for it.

    Args:
        matvec: u (B, ...) -> H u (B, ...), symmetric for each example; called at most `steps` times.
        v: (B, ...) right-hand side.
        steps: at most so many products.
        tolerance: relative residual norm.
        anywhere: as `LowerProblem.anywhere`, where products wait for those of other processes.
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
