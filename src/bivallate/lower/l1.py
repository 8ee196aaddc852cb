"""The L1 ball within the box: projection, linear maximisation, sparse steps."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bivallate.lower.ball_checks import FREE_MARGIN, check_eps
from bivallate.noise import Noise
from bivallate.parts import part
from bivallate.types import per_example

__all__ = ["L1", "filled", "largest", "onto"]

RANGES = 2  # coordinates that a step moves, for each unit of eps
HALVINGS = {torch.float64: 64, torch.float32: 34, torch.float16: 20, torch.bfloat16: 20}


def onto(delta: Tensor, x: Tensor, radius: Tensor) -> Tensor:
    """The nearest point to delta with L1 norm at most radius (B,), for which x + delta stays in [0, 1].

    Coordinate j is sign(delta_j) clip(|delta_j| - lambda, 0, room_j) with room_j the distance to its bound.
    The sum of these is a piecewise linear, falling function of lambda, with kinks where a coordinate leaves
    its bound (|delta_j| - room_j) and where it reaches zero (|delta_j|). Between two kinks it is linear, so
    that the coordinates that are neither zero nor at a bound give lambda up to rounding.

    Reference: Croce and Hein, Mind the box, ICML 2021, proposition 2.1.
    """
    v = delta.flatten(1)
    size, room = v.abs(), _room(v, x.flatten(1))
    short = _threshold(size, room, radius)
    moved = torch.minimum((size - short).clamp_(min=0), room)
    # |delta_j| - lambda may cancel most digits; spread the missing norm over the coordinates in between
    free = (moved > 0) & (moved < room) & (short > 0)
    lack = (radius[:, None] - moved.sum(1, keepdim=True)) / free.sum(1, keepdim=True).clamp(min=1)
    moved = torch.where(free, torch.minimum(moved + lack, room), moved)
    return (v.sign() * moved).view_as(delta)


def _room(v: Tensor, x: Tensor) -> Tensor:
    """How far each coordinate may move in the direction of v."""
    return torch.where(v > 0, 1 - x, x)


def _threshold(size: Tensor, room: Tensor, radius: Tensor) -> Tensor:
    """(B, 1) lambda: zero where the box alone brings the norm down to the radius.

    Bisection down to rounding, which costs less than sorting the kinks. The number of halvings is fixed, so
    that the host of a device need not wait for a result.
    """
    left = torch.empty_like(size)

    def beyond(short: Tensor) -> Tensor:
        torch.sub(size, short, out=left).clamp_(min=0)
        return torch.minimum(left, room, out=left).sum(1, keepdim=True) > radius[:, None]

    low, high = torch.zeros_like(size[:, :1]), size.amax(1, keepdim=True)
    out = beyond(low)
    for _ in range(HALVINGS[size.dtype]):
        middle = low + (high - low) / 2
        over = beyond(middle)
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    return torch.where(out, high, 0)


def filled(weight: Tensor, room: Tensor, amount: Tensor, order: Tensor | None = None) -> Tensor:
    """(B, n) the d that maximises <weight, d> over 0 <= d <= room with sum d <= amount, for weights >= 0.

    The amount (B,) is spent on the coordinates of largest weight first, each up to its room.

    Args:
        order: (B, n) coordinates by falling weight, if they are known.
    """
    order = weight.argsort(dim=1, descending=True, stable=True) if order is None else order
    most = room.gather(1, order)
    spent = most.cumsum(1) - most
    take = torch.minimum((amount[:, None] - spent).clamp_(min=0), most)
    return torch.zeros_like(room).scatter(1, order, take)


def largest(grad: Tensor, count: Tensor) -> Tensor:
    """The signs of the `count` (B,) largest coordinates (and of ties), divided by their number.

    The result has unit L1 norm, and is zero where the gradient is zero.
    """
    flat = grad.flatten(1)
    size = flat.abs()
    last = (size.shape[1] - count.clamp(1, size.shape[1]).long())[:, None]
    signs = torch.where(size >= size.sort(dim=1).values.gather(1, last), flat.sign(), 0)
    return (signs / signs.abs().sum(1, keepdim=True).clamp(min=1)).view_as(grad)


@part
class L1:
    """||delta||_1 <= eps and 0 <= x + delta <= 1, with the exact Euclidean projection on the intersection.

    Reference: Croce and Hein, Mind the box: l1-APGD for sparse adversarial attacks, ICML 2021.
    """

    eps: float

    def __post_init__(self) -> None:
        check_eps(self.eps)

    def project(self, delta: Tensor, x: Tensor) -> Tensor:
        """sign(delta) clip(|delta| - lambda, 0, room)."""
        return onto(delta, x, self._radius(x))

    def retract(self, delta: Tensor, x: Tensor) -> Tensor:
        """The same map; its autograd derivative is exact where the sets of coordinates are locally constant.

        On the sphere the norm is fixed: an outward move of one coordinate is taken back in equal parts from
        all coordinates that are neither zero nor at their bounds.
        """
        value = self.project(delta.detach(), x)
        if not delta.requires_grad:
            return value
        boxed = torch.minimum(torch.maximum(delta.detach(), -x), 1 - x)
        on = (boxed != value).flatten(1).any(1, keepdim=True)  # on the sphere: more than the box has cut
        inner = ((value > -x) & (value < 1 - x)).flatten(1)
        free = inner & ((value.flatten(1) != 0) | ~on)
        moved = (delta - delta.detach()).flatten(1) * free
        sign = value.flatten(1).sign()
        outwards = (moved * sign).sum(1, keepdim=True) / free.sum(1, keepdim=True).clamp(min=1)
        moved = moved - on * free * sign * outwards
        return value + moved.view_as(delta)

    def interior(self, delta: Tensor, x: Tensor) -> Tensor:
        """Coordinates strictly inside the box, of examples strictly inside the ball."""
        inside = (delta > FREE_MARGIN - x) & (delta < 1 - x - FREE_MARGIN)
        return inside & per_example(self.size(delta) < self.eps - FREE_MARGIN, delta)

    def random(self, noise: Noise, x: Tensor, purpose: str = "start") -> Tensor:
        """Uniform in the ball: exponential sizes divided by their sum, times a radius u^(1 / n)."""
        shape = tuple(x.shape[1:])
        sizes = -noise.uniform(purpose, shape, x.dtype).log()
        radius = noise.uniform(purpose + "/radius", (), x.dtype) ** (1 / math.prod(shape))
        sign = noise.sign(purpose + "/sign", shape, x.dtype)
        return self.eps * sign * sizes * per_example(radius / self.size(sizes), x)

    def steepest(self, grad: Tensor) -> Tensor:
        """The signs of the 2 eps largest coordinates, at least one, divided by their number.

        That many coordinates spend eps if each moves by half of a pixel's range. With the single steepest
        coordinate a step would reach its bound, and further steps would do nothing. On 32 x 32 colour images
        at eps = 12 the number is 0.8 % of the coordinates; SLIDE uses 1 %.

        Reference: Tramer and Boneh, Adversarial training and robustness for multiple perturbations, NeurIPS
        2019; Croce and Hein, Mind the box, section 4.1.
        """
        return largest(grad, torch.full((len(grad),), math.ceil(RANGES * self.eps), device=grad.device))

    def support(self, grad: Tensor, x: Tensor, delta: Tensor) -> Tensor:
        """max over d in C(x) of <grad, d - delta>.

        The maximiser d spends eps on the coordinates of largest gradient first, each up to its bound (Mind
        the box, proposition 2.2).
        """
        flat, moved = grad.flatten(1), delta.flatten(1)
        best = flat.sign() * filled(flat.abs(), _room(flat, x.flatten(1)), self._radius(x))
        return (flat * (best - moved)).sum(1)

    def ball_support(self, grad: Tensor, delta: Tensor) -> Tensor:
        """eps max_j |g_j| - <delta, g>."""
        return self.eps * grad.flatten(1).abs().amax(1) - (grad * delta).flatten(1).sum(1)

    def size(self, delta: Tensor) -> Tensor:
        """sum_j |delta_j|."""
        return delta.flatten(1).abs().sum(1)

    def _radius(self, x: Tensor) -> Tensor:
        return torch.full((len(x),), self.eps, dtype=x.dtype, device=x.device)
