"""Derivatives by finite differences in float64, with which the tests compare every gradient."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bivallate.method import Method
from bivallate.record import step_record
from bivallate.step import accumulate_gradient
from bivallate.types import Batch, Clock, Facts, StepRecord


def gradient(model: nn.Module, method: Method, batch: Batch, **clock: int) -> tuple[Tensor, StepRecord]:
    """The step's parameter gradient as one vector, and its record; the model's mode is the upper level's."""
    model.zero_grad()
    facts = Facts(1 + int(batch.index.max()), tuple(batch.x.shape[1:]), 3, dtype=batch.x.dtype)  # pyright: ignore
    bound = method.bind(facts)
    on_device = accumulate_gradient(model, bound, batch, Clock(**clock), lr=0.1)
    found = torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()]
    )
    model.zero_grad()
    return found, step_record(on_device, Clock(**clock), bound)


def error(
    model: nn.Module, value: Callable[[], Tensor], found: Tensor, *, h: float = 1e-5, directions: int = 12
) -> float:
    """Relative error of `found` against differences of `value()` along random directions.

    Fourth-order central differences: with h = 1e-5 rounding leaves about 1e-10.
    """
    generator = torch.Generator().manual_seed(0)
    parameters = list(model.parameters())
    home = [p.detach().clone() for p in parameters]
    expected, got = [], []
    for _ in range(directions):
        direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]

        def at(t: float, direction: list[Tensor] = direction) -> float:
            with torch.no_grad():
                for p, start, d in zip(parameters, home, direction, strict=True):
                    p.copy_(start + t * d)
            return float(value().detach())

        expected.append((8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h))
        got.append(float(found @ torch.cat([d.flatten() for d in direction])))
    with torch.no_grad():
        for p, start in zip(parameters, home, strict=True):
            p.copy_(start)
    a, b = torch.tensor(expected, dtype=torch.float64), torch.tensor(got, dtype=torch.float64)
    return float((a - b).norm() / a.norm())


def relative(a: Tensor, b: Tensor) -> float:
    """||a - b|| / ||b||."""
    return float((a - b).norm() / b.norm())
