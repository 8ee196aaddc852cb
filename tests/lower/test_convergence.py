"""Theorem 1 of Dynamic AT with known constants, compared with the gradients met in descent."""

from __future__ import annotations

import math

import pytest
import torch

import bivallate as bv
from bivallate.errors import UserError
from bivallate.lower.stop import fosc

TT, COUPLED, MU, EPS = 0.5, 0.8, 2.0, 1.0  # f = TT t^2 / 2 + COUPLED t x - MU x^2 / 2, |x| <= EPS
CONSTANTS = {"mu": MU, "l_theta_theta": TT, "l_theta_x": COUPLED, "l_x_theta": COUPLED}


def robust_gradient(t: float) -> float:
    """Of max_x f by t, at the exact maximiser (Danskin)."""
    return TT * t + COUPLED * max(-EPS, min(EPS, COUPLED * t / MU))


def robust(t: float) -> float:
    x = max(-EPS, min(EPS, COUPLED * t / MU))
    return TT * t * t / 2 + COUPLED * t * x - MU * x * x / 2


@pytest.mark.parametrize("sigma", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("error", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("steps", [3, 60])
def test_descent_on_inexact_inner_solutions_stays_below_the_bound(sigma, error, steps):
    generator = torch.Generator().manual_seed(0)
    begin = 1.5
    gap = robust(begin) - robust(0.0)
    met = list[float]()
    gaps: list[float] = []
    eta = bv.convergence_bound(0.0, gap=gap, steps=steps, sigma=sigma, **CONSTANTS).step_size
    for _ in range(50):
        t = begin
        for _ in range(steps):
            met.append(robust_gradient(t) ** 2)
            x = torch.tensor([[[[max(-EPS, min(EPS, COUPLED * t / MU - error))]]]], dtype=torch.float64)
            slope = COUPLED * t - MU * x
            gaps.append(float(fosc("ball", bv.Linf(EPS), slope, torch.full_like(x, 0.5), x)))
            noise = sigma * float(torch.randn((), generator=generator, dtype=torch.float64))
            t -= eta * (TT * t + COUPLED * float(x) + noise)
    bound = bv.convergence_bound(gaps, gap=gap, steps=steps, sigma=sigma, **CONSTANTS)
    assert sum(met) / len(met) <= bound.total
    assert bound.delta == max(gaps)
    if error == 0:
        assert bound.residual < 1e-12
    else:
        assert bound.residual > 0


def test_the_largest_fosc_counts_and_short_runs_get_the_larger_term():
    long = bv.convergence_bound(torch.tensor([0.0, 0.3, 0.1]), gap=1.0, steps=10**6, sigma=1.0, **CONSTANTS)
    assert long.residual == pytest.approx(5 * COUPLED**2 * 0.3 / MU)
    smooth = COUPLED**2 / MU + TT
    assert long.sampling == pytest.approx(4 * math.sqrt(smooth / 10**6))
    short = bv.convergence_bound(0.3, gap=100.0, steps=2, sigma=1.0, **CONSTANTS)
    assert short.step_size == pytest.approx(1 / smooth)
    assert short.sampling == pytest.approx(4 * smooth * 100 / 2)
    assert short.sampling > 4 * math.sqrt(smooth * 100 / 2), "the printed term"
    assert any("strongly concave" in line for line in long.assumes)


@pytest.mark.parametrize(
    ("fosc", "changed", "told"),
    [
        ([], {}, "at least one FOSC"),
        ([math.nan], {}, "finite"),
        ([-0.1], {}, "not negative"),
        ([0.1], {"mu": 0.0}, "mu must be finite and positive"),
        ([0.1], {"steps": 0}, "steps must be"),
        ([0.1], {"gap": -1.0}, "gap must be"),
        ([0.1], {"l_theta_theta": 0.0, "l_theta_x": 0.0}, "linear in theta"),
    ],
)
def test_what_cannot_be_is_refused(fosc, changed, told):
    with pytest.raises(UserError, match=told):
        bv.convergence_bound(fosc, **{"gap": 1.0, "steps": 10, **CONSTANTS, **changed})
