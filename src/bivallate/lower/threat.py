"""Threat models: the set C(x) of perturbations an attacker may choose from."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from bivallate.errors import UserError, unknown
from bivallate.from_text import parse_number
from bivallate.lower.ball_checks import FREE_MARGIN, TINY, check_eps, tiny
from bivallate.lower.l1 import L1
from bivallate.noise import Noise
from bivallate.parts import part
from bivallate.types import per_example

__all__ = [
    "CUSTOMARY",
    "FREE_MARGIN",
    "L1",
    "L2",
    "NORMS",
    "SUCH_AS",
    "TINY",
    "Linf",
    "Threat",
    "ThreatModel",
    "dual_norm",
    "threat",
]


class ThreatModel(Protocol):
    """A closed convex set C(x) around 0 such that x + delta stays in [0, 1].

    eps = 0 is allowed and means no attack.
    """

    @property
    def eps(self) -> float:
        """Radius of the ball, in pixel units."""
        ...

    def project(self, delta: Tensor, x: Tensor) -> Tensor:
        """(B, C, H, W) the Euclidean projection of delta on C(x)."""
        ...

    def retract(self, delta: Tensor, x: Tensor) -> Tensor:
        """The projection as a differentiable map, with strict masks: no gradient through an active bound."""
        ...

    def interior(self, delta: Tensor, x: Tensor) -> Tensor:
        """(B, C, H, W) bool, coordinates strictly inside their bounds."""
        ...

    def random(self, noise: Noise, x: Tensor, purpose: str = "start") -> Tensor:
        """Uniform in the ball; not yet projected on the box."""
        ...

    def steepest(self, grad: Tensor) -> Tensor:
        """An ascent direction of unit norm: sign(g), g / ||g||_2, in L1 the signs of some coordinates."""
        ...

    def support(self, grad: Tensor, x: Tensor, delta: Tensor) -> Tensor:
        """(B,) FOSC: max over d in C(x) of <grad, d - delta>.

        Zero exactly at a constrained stationary point.
        """
        ...

    def ball_support(self, grad: Tensor, delta: Tensor) -> Tensor:
        """(B,) the same over the ball alone, without the box: the form of Dynamic AT, eq. 4."""
        ...

    def size(self, delta: Tensor) -> Tensor:
        """(B,) the norm of each perturbation."""
        ...


@part
class Linf:
    """The Linf ball: max_j |delta_j| <= eps and 0 <= x + delta <= 1.

    This is a box [lo, up] with lo = max(-eps, -x), up = min(eps, 1 - x).

    Attributes:
        eps: radius in pixel units, at most 1.

    Raises:
        UserError: eps is negative, not finite or above 1.

    Example:
        >>> Linf(0.25).project(torch.tensor([[0.5, -0.5]]), torch.tensor([[0.9, 0.5]]))
        tensor([[ 0.1000, -0.2500]])
    """

    eps: float

    def __post_init__(self) -> None:
        check_eps(self.eps)
        if self.eps > 1:
            raise UserError(
                f"Linf eps must be at most 1, because pixels lie in [0, 1], got {self.eps:g}; "
                f"for {self.eps:g} grey levels of 255 write {self.eps:g}/255"
            )

    @staticmethod
    def from_text(text: str, where: str) -> Threat:
        """Read a threat of any norm, such as `l2:0.5`. Raises UserError."""
        norm, colon, radius = text.partition(":")
        if not colon:
            known = ", ".join(kind.__name__ for kind in NORMS.values())
            raise UserError(
                f"{where} must be a norm and a radius, such as l2:0.5, got {text!r}. Known: {known}"
            )
        return threat(norm.strip(), parse_number(radius, where))

    def bounds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(lo, up), both of x's shape, with lo <= 0 <= up."""
        return (-x).clamp(min=-self.eps), (1 - x).clamp(max=self.eps)

    def project(self, delta: Tensor, x: Tensor) -> Tensor:
        """Clamp to [lo, up]."""
        return torch.clamp(delta, *self.bounds(x))

    def retract(self, delta: Tensor, x: Tensor) -> Tensor:
        """Clamp whose derivative is the strict 0/1 mask H_C (Fast-BAT, Corollary 1).

        Autograd of `clamp` would let gradient through exactly on a bound.
        """
        value = self.project(delta.detach(), x)
        return value + self.interior(value, x) * (delta - delta.detach())

    def interior(self, delta: Tensor, x: Tensor) -> Tensor:
        """lo + 1e-7 < delta < up - 1e-7."""
        lo, up = self.bounds(x)
        return (delta > lo + FREE_MARGIN) & (delta < up - FREE_MARGIN)

    def random(self, noise: Noise, x: Tensor, purpose: str = "start") -> Tensor:
        """Uniform on [-eps, eps]."""
        return noise.symmetric(purpose, tuple(x.shape[1:]), x.dtype, self.eps)

    def steepest(self, grad: Tensor) -> Tensor:
        """sign(grad)."""
        return grad.sign()

    def support(self, grad: Tensor, x: Tensor, delta: Tensor) -> Tensor:
        """sum_j max(g_j (up_j - delta_j), g_j (lo_j - delta_j))."""
        lo, up = self.bounds(x)
        return torch.maximum(grad * (up - delta), grad * (lo - delta)).flatten(1).sum(1)

    def ball_support(self, grad: Tensor, delta: Tensor) -> Tensor:
        """eps ||g||_1 - <delta, g>."""
        return (self.eps * grad.abs() - grad * delta).flatten(1).sum(1)

    def mean_ball_support(self, grad: Tensor, delta: Tensor) -> Tensor:
        """The mean of `ball_support` in fewer launches, eps above 0: eps n mean of |g| - delta g / eps."""
        rest = torch.addcmul(grad.abs(), grad, delta, value=-1 / self.eps)
        return rest.mean().mul_(self.eps * math.prod(grad.shape[1:]))

    def size(self, delta: Tensor) -> Tensor:
        """max_j |delta_j|."""
        return delta.flatten(1).abs().amax(1)


@part
class L2:
    """||delta||_2 <= eps and 0 <= x + delta <= 1, with the exact Euclidean projection on the intersection.

    The projection is clip(t * delta, -x, 1 - x) with the t in (0, 1] for which the norm is eps (the
    stationarity condition of the projection's Lagrangian). t is found by an active-set iteration that only
    adds saturated coordinates and so ends at the exact solution.

    Attributes:
        eps: radius in pixel units.

    Raises:
        UserError: eps is negative or not finite.
    """

    eps: float

    def __post_init__(self) -> None:
        check_eps(self.eps)

    def project(self, delta: Tensor, x: Tensor) -> Tensor:
        """clip(t * delta, -x, 1 - x)."""
        return self._clipped(delta, x, limit=1.0)

    def retract(self, delta: Tensor, x: Tensor) -> Tensor:
        """The same map; its autograd derivative is exact where the active set is locally constant."""
        return self._clipped(delta, x, limit=1.0)

    def _clipped(self, v: Tensor, x: Tensor, limit: float) -> Tensor:
        """clip(t v) with the largest t <= limit for which the norm is at most eps."""
        lo, up = -x, 1 - x
        t, saturated = self._scale(v.detach(), lo, up, limit)
        bound = torch.where(v > 0, up, lo)
        if v.requires_grad:  # t again, as a differentiable function of v on the active set that was found
            t = torch.where(t < limit, self._radius(v, bound, saturated), t)
        return torch.where(saturated, bound, per_example(t, v) * v)

    def _radius(self, v: Tensor, bound: Tensor, saturated: Tensor) -> Tensor:
        rest = (self.eps**2 - torch.where(saturated, bound, 0).square().flatten(1).sum(1)).clamp(min=0)
        free = torch.where(saturated, 0, v).square().flatten(1).sum(1)
        ratio = rest / free.clamp(min=TINY**2)
        return torch.where(ratio > 0, ratio, 1).sqrt() * (ratio > 0)  # the slope of sqrt at 0 is infinite

    def _scale(self, v: Tensor, lo: Tensor, up: Tensor, limit: float) -> tuple[Tensor, Tensor]:
        """t, and the coordinates that are at their bounds there."""
        bound = torch.where(v > 0, up, lo)
        if v.device.type == "cuda" and not torch.are_deterministic_algorithms_enabled():
            # no loop that the host has to wait for; not deterministic, because CUDA's cumulative sums are not
            saturated = self._sorted_out(v, bound, limit)
            t = self._radius(v, bound, saturated).clamp(max=limit)
            return t, saturated | ((per_example(t, v) * v).abs() > bound.abs())
        saturated = torch.zeros_like(v, dtype=torch.bool)
        while True:
            t = self._radius(v, bound, saturated).clamp(max=limit)
            more = (per_example(t, v) * v).abs() > bound.abs()
            if not bool((more & ~saturated).any()):
                return t, saturated
            saturated |= more

    def _sorted_out(self, v: Tensor, bound: Tensor, limit: float) -> Tensor:
        """The saturated coordinates in closed form: those that reach their bound while the norm is below eps.

        The coordinates are sorted by the t at which they reach their bounds. At each such t the norm is that
        of the bounds of the earlier coordinates and of t v of the others.
        """
        size, most = v.abs().flatten(1), bound.abs().flatten(1)
        reached, order = (most / size).nan_to_num(nan=math.inf, posinf=math.inf).sort(dim=1)
        before = most.square().gather(1, order)
        before = before.cumsum(1) - before
        rest = size.square().gather(1, order).flip(1).cumsum(1).flip(1)
        norm = before + reached.square() * rest
        full = (norm.t() < self.eps**2).t() & (reached < limit)  # eps may be (B,), see `Radii`
        return torch.zeros_like(full).scatter(1, order, full).view_as(v)

    def interior(self, delta: Tensor, x: Tensor) -> Tensor:
        """Coordinates strictly inside the box, of examples strictly inside the ball."""
        inside = (delta > FREE_MARGIN - x) & (delta < 1 - x - FREE_MARGIN)
        return inside & per_example(self.size(delta) < self.eps - FREE_MARGIN, delta)

    def random(self, noise: Noise, x: Tensor, purpose: str = "start") -> Tensor:
        """Uniform in the ball."""
        shape = tuple(x.shape[1:])
        direction = noise.normal(purpose, shape, x.dtype)
        radius = noise.uniform(purpose + "/radius", (), x.dtype) ** (1 / math.prod(shape))
        return self.eps * per_example(radius / self.size(direction).clamp(min=TINY), x) * direction

    def steepest(self, grad: Tensor) -> Tensor:
        """grad / ||grad||_2, zero where the gradient is zero; exact for tiny ones, whose squares vanish."""
        peak = grad.flatten(1).abs().amax(1).clamp(min=tiny(grad))
        grad = grad / per_example(torch.where(self.size(grad) > TINY, 1, peak), grad)
        return grad / per_example(self.size(grad).clamp(min=TINY), grad)

    def support(self, grad: Tensor, x: Tensor, delta: Tensor) -> Tensor:
        """max over d in C(x) of <grad, d - delta>.

        The maximiser is d = clip(t grad, -x, 1 - x) with norm eps, or the corner of the box if that is
        nearer.
        """
        unit = self.steepest(grad)
        best = self._clipped(unit, x, limit=1e12)
        return (grad * (best - delta)).flatten(1).sum(1)

    def ball_support(self, grad: Tensor, delta: Tensor) -> Tensor:
        """eps ||g||_2 - <delta, g>."""
        return self.eps * self.size(grad) - (grad * delta).flatten(1).sum(1)

    def size(self, delta: Tensor) -> Tensor:
        """||delta||_2."""
        return delta.flatten(1).norm(dim=1)


Threat = Linf | L2 | L1
NORMS: dict[str, type[Threat]] = {"linf": Linf, "l2": L2, "l1": L1}

# customary radii for small colour images, used if the data set has none of its own
CUSTOMARY = {"Linf": "8/255", "L2": "128/255", "L1": "12"}
SUCH_AS = CUSTOMARY | {"L2": "0.5 (128/255)"}  # examples in messages


def dual_norm(ball: ThreatModel, w: Tensor) -> Tensor:
    """(...) the largest <w, d> over d of norm 1 in the ball's norm, of w (..., n)."""
    if isinstance(ball, Linf):
        return w.abs().sum(-1)
    return w.abs().amax(-1) if isinstance(ball, L1) else w.norm(dim=-1)


def threat(norm: str, eps: str | float) -> Threat:
    """The threat model with this norm and radius: `threat("linf", "8/255")`. Raises UserError."""
    key = norm.lower().replace("_", "").replace("-", "")
    if key not in NORMS:
        raise unknown("norm", norm, NORMS)
    return NORMS[key](parse_number(eps))
