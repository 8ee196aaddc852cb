"""Projections on a device equal the processor's; in L2 a closed form avoids waits of the host."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import bivallate as bv
from bivallate.lower.radii import Radii

CASES = {  # eps, size of the perturbation
    "inside": (3.0, 0.05),
    "ball": (0.5, 0.3),
    "ball and box": (2.0, 1.0),
    "far": (2.0, 100.0),
    "none": (0.0, 1.0),
}


def projected(device: str, kind: type, own: bool, eps: float, size: float) -> list[np.ndarray]:
    """Projection, its derivative and the support; some perturbations and some bounds are zero.

    own: each row has its own radius.
    """
    generator = torch.Generator().manual_seed(0)
    x = (
        torch.rand(6, 1, 5, 5, generator=generator, dtype=torch.float64)
        .mul_(3)
        .sub_(1)
        .clamp_(0, 1)
        .to(device)
    )
    v = size * torch.randn(6, 1, 5, 5, generator=generator, dtype=torch.float64)
    v[0] = 0
    v[1, :, :2] = 0
    grad = torch.randn(6, 1, 5, 5, generator=generator, dtype=torch.float64).to(device)
    ball, v = kind(eps), v.to(device).requires_grad_()
    if own:
        ball = Radii(ball, torch.tensor([1, 0.5, 0, 1.5, 1, 2], dtype=torch.float64, device=device))
    found = ball.retract(v, x)
    (slope,) = torch.autograd.grad((found * grad).sum(), v)
    assert bool(((x + found >= 0) & (x + found <= 1)).all())
    values = ball.project(v.detach(), x), slope, ball.support(grad, x, found.detach())
    return [value.detach().cpu().numpy() for value in values]


@pytest.mark.parametrize("kind", [bv.L2, bv.L1])
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_the_projection_is_the_processors(card, case: str, own: bool, kind: type) -> None:
    asked = kind, own, *CASES[case]
    there, here = card(projected, "cuda", *asked), projected("cpu", *asked)
    for a, b in zip(there, here, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10)
    assert case != "ball and box" or (np.abs(here[0]) < 1e-12).any()
