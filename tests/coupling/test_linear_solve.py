"""Conjugate gradients, which solve for each example separately."""

from __future__ import annotations

import torch
from torch import Tensor

from bivallate.coupling.linear_solve import conjugate_gradient

GENERATOR = torch.Generator().manual_seed(0)
D = torch.float64


def positive(batch: int, n: int) -> Tensor:
    A = torch.randn(batch, n, n, generator=GENERATOR, dtype=D)
    return A @ A.transpose(1, 2) + torch.eye(n, dtype=D)


def product(H: Tensor):
    return lambda u: torch.einsum("bij,bj->bi", H, u)


def test_conjugate_gradient_solves_and_stops_each_example_alone() -> None:
    H, v = positive(4, 6), torch.randn(4, 6, generator=GENERATOR, dtype=D)
    v[2] = 0
    H[3] = torch.eye(6, dtype=D)  # done after one step
    found = conjugate_gradient(product(H), v, steps=40, tolerance=1e-13)
    assert torch.allclose(found.u, torch.linalg.solve(H, v), rtol=1e-9)
    assert not found.failed.any()
    alone = torch.cat([conjugate_gradient(product(H[i : i + 1]), v[i : i + 1], steps=40).u for i in range(4)])
    assert torch.allclose(alone, conjugate_gradient(product(H), v, steps=40).u, rtol=1e-12)


def test_tolerance_and_number_of_products_are_kept() -> None:
    H, v = positive(3, 8), torch.randn(3, 8, generator=GENERATOR, dtype=D)
    calls = []

    def counted(u: Tensor) -> Tensor:
        calls.append(1)
        return product(H)(u)

    conjugate_gradient(counted, v, steps=3, tolerance=0.0)
    assert len(calls) == 3
    found = conjugate_gradient(product(H), v, steps=100, tolerance=1e-3)
    residual = (product(H)(found.u) - v).norm(dim=1) / v.norm(dim=1)
    assert (residual <= 1e-3 * (1 + 1e-9)).all()


def test_negative_curvature_stops_with_the_iterate_before() -> None:
    H = torch.diag_embed(torch.tensor([[-1.0, -2.0], [1.0, -4.0], [1.0, 4.0]], dtype=D))
    v = torch.tensor([[1.0, 1.0], [4.0, 1.0], [1.0, 1.0]], dtype=D)
    found = conjugate_gradient(product(H), v, steps=10, tolerance=1e-12)
    assert found.failed.tolist() == [True, False, False]
    assert found.u[0].tolist() == [0, 0]
    first = float(v[1] @ v[1] / (v[1] @ H[1] @ v[1]))  # one step down the gradient, then it meets -4
    assert torch.allclose(found.u[1], first * v[1])
    assert torch.allclose(found.u[2], torch.tensor([1.0, 0.25], dtype=D))
