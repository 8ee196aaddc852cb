"""A threat with a radius for each row of a minibatch (class-wise training)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from bivallate.lower.threat import Linf, Threat
from bivallate.noise import Noise
from bivallate.types import per_example

Rows = Tensor | slice


class _Boxes(Linf):
    """Linf balls of which each row has its own: eps is (B, 1, 1, 1), which all of Linf's arithmetic takes."""

    def __init__(self, eps: Tensor) -> None:
        object.__setattr__(self, "eps", eps)  # not checked, since the host would wait for the numbers


@dataclass(frozen=True)
class Radii:
    """A threat whose radius differs from row to row, with exact projection; used in training only.

    Linf balls are boxes, whose bounds hold each row's own radius. In another norm rows with equal radii form
    a group, and each group uses the threat with its radius.

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
    def _box(self) -> _Boxes:
        return _Boxes(self.radius[:, None, None, None])

    @cached_property
    def _groups(self) -> list[tuple[Tensor, Threat]]:
        own, which = self.radius.unique(return_inverse=True)
        return [
            ((which == k).nonzero()[:, 0], replace(self.threat, eps=eps))
            for k, eps in enumerate(own.tolist())
        ]

    @cached_property
    def _back(self) -> Tensor:
        return torch.cat([rows for rows, _ in self._groups]).argsort()

    def _each(self, ask: Callable[[Threat, Rows], Tensor]) -> Tensor:
        if isinstance(self.threat, Linf):
            return ask(self._box, slice(None))
        return torch.cat([ask(threat, rows) for rows, threat in self._groups])[self._back]

    def select(self, rows: Tensor) -> Radii:
        """The radii of some rows."""
        return Radii(self.threat, self.factor[rows])

    def project(self, delta: Tensor, x: Tensor) -> Tensor:
        """The nearest point of each row's own set."""
        return self._each(lambda threat, rows: threat.project(delta[rows], x[rows]))

    def retract(self, delta: Tensor, x: Tensor) -> Tensor:
        """The projection as a differentiable map, see `Linf.retract`."""
        return self._each(lambda threat, rows: threat.retract(delta[rows], x[rows]))

    def interior(self, delta: Tensor, x: Tensor) -> Tensor:
        """(B, C, H, W) bool, coordinates strictly inside their bounds."""
        return self._each(lambda threat, rows: threat.interior(delta[rows], x[rows]))

    def random(self, noise: Noise, x: Tensor, purpose: str = "start") -> Tensor:
        """Uniform in each row's ball: the threat's own draws, scaled."""
        return per_example(self.radius / max(self.eps, 1e-300), x) * self.threat.random(noise, x, purpose)

    def steepest(self, grad: Tensor) -> Tensor:
        """As the threat: directions do not depend on the radius."""
        return self.threat.steepest(grad)

    def support(self, grad: Tensor, x: Tensor, delta: Tensor) -> Tensor:
        """(B,) max over d in each row's set of <grad, d - delta>."""
        return self._each(lambda threat, rows: threat.support(grad[rows], x[rows], delta[rows]))

    def ball_support(self, grad: Tensor, delta: Tensor) -> Tensor:
        """(B,) the same over the balls alone."""
        return self._each(lambda threat, rows: threat.ball_support(grad[rows], delta[rows]))

    def size(self, delta: Tensor) -> Tensor:
        """(B,) the norm of each perturbation."""
        return self.threat.size(delta)
