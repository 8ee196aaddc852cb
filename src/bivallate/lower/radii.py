"""A threat with a radius for each row of a minibatch (class-wise training)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from bivallate.lower.threat import L1, L2, Linf, Threat
from bivallate.noise import Noise
from bivallate.types import per_example


class _Boxes(Linf):
    """Linf balls of which each row has its own: eps is (B, 1, 1, 1), which all of Linf's arithmetic takes."""


class _Spheres(L2):
    """The same in L2: eps is (B,), which projections and supports take."""


class _Diamonds(L1):
    """The same in L1: eps is (B,)."""

    def _radius(self, x: Tensor) -> Tensor:
        return self.eps  # pyright: ignore[reportReturnType]


_OF_ROWS: dict[type[Threat], type[Threat]] = {Linf: _Boxes, L2: _Spheres, L1: _Diamonds}


def _of_rows(threat: Threat, radius: Tensor) -> Threat:
    """A threat of this norm with radii (B,), which are not checked: the host would wait for the numbers."""
    balls = object.__new__(_OF_ROWS[type(threat)])
    shaped = radius[:, None, None, None] if isinstance(threat, Linf) else radius
    object.__setattr__(balls, "eps", shaped)
    return balls


@dataclass(frozen=True)
class Radii:
    """A threat whose radius differs from row to row, with exact projection; used in training only.

    The norm's own arithmetic, with a tensor of radii in place of one, so that a device launches no more and
    its host waits no more than for one radius.

    Attributes:
        threat: the threat of the method; its eps is the radius for the factor 1.
        factor: (B,) radius of each row in units of eps, at least 0; for Linf radii are clamped to 1.
    """

    threat: Threat
    factor: Tensor

    @property
    def eps(self) -> float:
        """The threat's eps, the unit of steps and starts."""
        return self.threat.eps

    @cached_property
    def radius(self) -> Tensor:
        """(B,) radius of each row, in pixel units."""
        radius = self.factor * self.threat.eps
        return radius.clamp(max=1.0) if isinstance(self.threat, Linf) else radius

    @cached_property
    def _own(self) -> Threat:
        return _of_rows(self.threat, self.radius)

    def select(self, rows: Tensor) -> Radii:
        """The radii of some rows."""
        return Radii(self.threat, self.factor[rows])

    def project(self, delta: Tensor, x: Tensor) -> Tensor:
        """The nearest point of each row's own set."""
        return self._own.project(delta, x)

    def retract(self, delta: Tensor, x: Tensor) -> Tensor:
        """The projection as a differentiable map, see `Linf.retract`."""
        return self._own.retract(delta, x)

    def interior(self, delta: Tensor, x: Tensor) -> Tensor:
        """(B, C, H, W) bool, coordinates strictly inside their bounds."""
        return self._own.interior(delta, x)

    def random(self, noise: Noise, x: Tensor, purpose: str = "start") -> Tensor:
        """Uniform in each row's ball: the threat's own draws, scaled."""
        return per_example(self.radius / max(self.eps, 1e-300), x) * self.threat.random(noise, x, purpose)

    def steepest(self, grad: Tensor) -> Tensor:
        """As the threat: directions do not depend on the radius."""
        return self.threat.steepest(grad)

    def support(self, grad: Tensor, x: Tensor, delta: Tensor) -> Tensor:
        """(B,) max over d in each row's set of <grad, d - delta>."""
        return self._own.support(grad, x, delta)

    def ball_support(self, grad: Tensor, delta: Tensor) -> Tensor:
        """(B,) the same over the balls alone."""
        return self._own.ball_support(grad, delta)

    def size(self, delta: Tensor) -> Tensor:
        """(B,) the norm of each perturbation."""
        return self.threat.size(delta)
