"""The convergence bound of Dynamic AT (Theorem 1) in numbers: what a bound on FOSC means for training."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from bivallate.errors import UserError

__all__ = ["ConvergenceBound", "convergence_bound"]

ASSUMES = (
    "the gradients of the loss by theta and by x are Lipschitz with the given constants, everywhere",
    "the loss is mu-strongly concave in x within the ball: no network with ReLU is",
    "every inner solution of every minibatch of training has an FOSC of at most delta, in the ball form",
    "minibatch gradients are unbiased, with variance at most sigma^2; plain gradient descent with step eta",
)


@dataclass(frozen=True)
class ConvergenceBound:
    """An upper bound of the mean squared norm of the robust loss's gradient over the steps of training.

    Attributes:
        sampling: the part that falls with the number of steps.
        residual: the part that stays, because inner problems are solved only to delta.
        delta: largest FOSC given, in nats.
        smoothness: L.
        step_size: eta, for which the bound holds.
        assumes: the assumptions; none of them is checked.
    """

    sampling: float
    residual: float
    delta: float
    smoothness: float
    step_size: float
    assumes: tuple[str, ...] = ASSUMES

    @property
    def total(self) -> float:
        """The bound: sampling + residual."""
        return self.sampling + self.residual


def convergence_bound(
    fosc: Tensor | Iterable[float] | float,
    *,
    mu: float,
    l_theta_theta: float,
    l_theta_x: float,
    l_x_theta: float,
    gap: float,
    steps: int,
    sigma: float = 0.0,
) -> ConvergenceBound:
    """Evaluate Theorem 1 of Dynamic AT for measured FOSC and the constants of its assumptions.

    mean_t E ||grad L_S(theta_t)||^2 <= 4 sigma sqrt(L gap / T) + 5 L_tx^2 delta / mu, with L = L_tx L_xt /
    mu + L_tt and eta = min(1 / L, sqrt(gap / (L sigma^2 T))). Where eta = 1 / L, for T < L gap / sigma^2,
    the printed first term is too small; it is replaced by 4 L gap / T, which follows from the paper's own
    recursion.

    The caller supplies the constants: they cannot be measured at a finite number of points. The largest slope
    observed is only a lower bound of a Lipschitz constant, and the least curvature only an upper bound of mu.
    With such numbers the result is an estimate, not a bound.

    Args:
        fosc: of inner solutions, ball form (`bivallate.lower.stop.fosc`), in nats; the largest one is used.
        mu: strong concavity in x.
        l_theta_theta, l_theta_x, l_x_theta: Lipschitz constants of the gradient by theta (first index) or by
            x, in theta or in x (second index).
        gap: L_S(theta_0) - min L_S.
        steps: T, updates of theta.
        sigma: standard deviation of minibatch gradients.

    Raises:
        UserError: no FOSC, one that is negative or not finite, or constants that are out of range.

    Reference: Wang et al. (Dynamic AT), ICML 2019, Theorem 1, eq. 18.

    Example:
        >>> constants = {"mu": 2.0, "l_theta_theta": 1.0, "l_theta_x": 1.0, "l_x_theta": 1.0}
        >>> bound = convergence_bound([0.01, 0.04], gap=1.0, steps=1000, sigma=0.1, **constants)
        >>> round(bound.residual, 3), round(bound.smoothness, 3)
        (0.1, 1.5)
    """
    given = fosc if isinstance(fosc, Tensor | float | int) else list(fosc)
    values = torch.as_tensor(given, dtype=torch.float64).flatten()
    if not len(values) or not bool(values.isfinite().all()) or bool((values < -1e-9).any()):
        raise UserError(
            "the bound needs at least one FOSC, finite and not negative: take it in the ball form"
        )
    positive = {"mu": mu, "steps": steps}
    others = {"l_theta_theta": l_theta_theta, "l_theta_x": l_theta_x, "l_x_theta": l_x_theta}
    for name, value in {**positive, **others, "gap": gap, "sigma": sigma}.items():
        least = value > 0 if name in positive else value >= 0
        if not (math.isfinite(value) and least):
            kind = "positive" if name in positive else "at least 0"
            raise UserError(f"{name} must be finite and {kind}, got {value!r}")
    delta = max(0.0, float(values.max()))
    smooth = l_theta_x * l_x_theta / mu + l_theta_theta
    if smooth == 0:
        raise UserError("the constants make the loss linear in theta: it has no minimum to come near to")
    short = steps * sigma**2 < smooth * gap
    eta = 1 / smooth if short or sigma == 0 else math.sqrt(gap / (smooth * sigma**2 * steps))
    sampling = 4 * smooth * gap / steps if eta == 1 / smooth else 4 * sigma * math.sqrt(smooth * gap / steps)
    return ConvergenceBound(sampling, 5 * l_theta_x**2 * delta / mu, delta, smooth, eta)
