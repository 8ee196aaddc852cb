"""Optimisers and learning-rate schedules."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import nn

from bivallate.errors import UserError
from bivallate.from_text import parse_number
from bivallate.models.layers import parameters_matching
from bivallate.parts import part
from bivallate.run.optimizer_state import remember_groups
from bivallate.types import Clock


class Rate(Protocol):
    """A learning-rate schedule: clock -> factor of the peak rate, computed before every minibatch."""

    def __call__(self, clock: Clock) -> float: ...


@part
class Flat:
    """A constant learning rate: the peak."""

    def __call__(self, clock: Clock) -> float:
        return 1.0


@part
class Triangle:
    """A learning rate that rises linearly from 0 to the peak and falls linearly to 0.

    Fast-AT, Fast-BAT and DONE use this schedule.

    Attributes:
        peak: fraction of training at which the rate is highest, in (0, 1).
        cycle_momentum: also lower SGD's momentum by 0.1 at the peak, as PyTorch's CyclicLR does by default in
            the papers' public code; the papers state a constant 0.9. Other optimisers ignore it.
    """

    peak: float = 0.5
    cycle_momentum: bool = False

    def __call__(self, clock: Clock) -> float:
        t = clock.progress
        return t / self.peak if t < self.peak else (1 - t) / (1 - self.peak)

    def momentum(self, clock: Clock, base: float) -> float:
        """The momentum at this clock, for an optimiser whose momentum is `base`."""
        return base - 0.1 * self(clock) if self.cycle_momentum else base


@part
class MultiStep:
    """The peak rate, multiplied by `factor` at each milestone.

    Every run begins at the peak rate, and a run of two epochs or more reaches all milestones below 1 by its
    last epoch, however short it is. A run of one epoch keeps the peak rate.

    Attributes:
        at: milestones, as rising fractions of the epochs.
        factors: factors of the peak rate after each milestone; empty: powers of `factor`.
    """

    at: tuple[float, ...] = (0.5, 0.75)
    factor: float = 0.1
    factors: tuple[float, ...] = ()

    def __call__(self, clock: Clock) -> float:
        reached = bisect_right([epoch_of(fraction, clock.epochs) for fraction in self.at], clock.epoch)
        return [1.0, *self.factors][reached] if self.factors else self.factor**reached


def epoch_of(fraction: float, epochs: int) -> int:
    """The epoch of a milestone, from 0; a fraction in (0, 1) gives neither the first epoch nor the end."""
    place = round(fraction * epochs)
    return max(1, min(place, epochs - 1)) if 0 < fraction < 1 else place


@part
class Pieces:
    """A piecewise linear learning rate through the points (at[k], values[k]).

    Attributes:
        at: fractions of training, rising from 0 to 1. values: factors of the peak rate at these points.

    Example:
        >>> Pieces(at=(0.0, 0.5, 1.0), values=(0.0, 1.0, 0.1))(Clock(epoch=3, epochs=4))
        0.55
    """

    at: tuple[float, ...] = (0.0, 1.0)
    values: tuple[float, ...] = (1.0, 0.0)

    def __post_init__(self) -> None:
        rising = (
            list(self.at) == sorted(self.at) and len(self.at) > 1 and self.at[0] == 0 and self.at[-1] == 1
        )
        if not rising or len(self.at) != len(self.values):
            raise UserError(
                f"Pieces need as many values as places, and places from 0 to 1, got {self.at}, {self.values}"
            )

    def __call__(self, clock: Clock) -> float:
        k = min(bisect_right(self.at, clock.progress), len(self.at) - 1)
        share = (clock.progress - self.at[k - 1]) / (self.at[k] - self.at[k - 1])
        return self.values[k - 1] + share * (self.values[k] - self.values[k - 1])


@part
class Cosine:
    """A learning rate that falls along half a cosine from the peak, after a linear warm-up.

    Attributes:
        floor: factor of the peak rate at the end. warm_up: fraction of training for the rise from 0.
    """

    floor: float = 0.0
    warm_up: float = 0.0

    def __call__(self, clock: Clock) -> float:
        t = clock.progress
        if t < self.warm_up:
            return t / self.warm_up
        t = (t - self.warm_up) / (1 - self.warm_up)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * t))


class OptimizerSpec(Protocol):
    """A part that makes a torch optimiser. `lr` is its peak rate; groups may have other peak rates.

    `train_step` calls `optimizer.step()` without a closure, so an optimiser that evaluates the loss again,
    such as L-BFGS or SAM, cannot be used. Before every minibatch `set_rate` sets the rate of each group, in
    its ratio to `lr`. A checkpoint keeps its state (tensors, numbers) and numbers that it changes in groups.
    `make` takes `model.parameters()`, or `grouped(...)` if the part has `groups`. All parts share one list of
    names, in which `Adam` is a direction of attacks. `part` says how a part in a new file is found.

    Example:
        >>> from bivallate import part
        >>> @part
        ... class SlowStem:
        ...     lr: float = 0.1
        ...     def make(self, model):
        ...         stem = {"params": model.stem.parameters(), "lr": self.lr / 10}
        ...         return torch.optim.SGD([stem, {"params": model.head.parameters()}], self.lr)
    """

    @property
    def lr(self) -> float: ...

    def make(self, model: nn.Module) -> torch.optim.Optimizer: ...


class OptimPlan(Protocol):
    """The optimiser and the learning-rate schedule of a configuration."""

    @property
    def optimizer(self) -> OptimizerSpec: ...

    @property
    def rate(self) -> Rate: ...


@part
class SGD:
    """Stochastic gradient descent with momentum; weight decay is added to the gradient.

    Attributes:
        lr: peak learning rate.
        groups: parameters with another learning rate, each as PATTERN:FACTOR, such as "head:10" or
            "body.0.*:0.1". If several patterns match a parameter, the first one counts. Patterns are those of
            `Init.freeze`.

    Raises:
        UserError: the rate is not positive, the weight decay is negative, or a group is not PATTERN:FACTOR.
    """

    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = False
    groups: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_values(self)

    def make(self, model: nn.Module) -> torch.optim.Optimizer:
        """Make torch.optim.SGD over all parameters of the model."""
        return torch.optim.SGD(
            grouped(model, self.groups, self.lr),
            self.lr,
            self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
        )


@part
class AdamW:
    """Adam with decoupled weight decay; `lr`, `groups` and errors as in `SGD`."""

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 1e-2
    groups: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_values(self)

    def make(self, model: nn.Module) -> torch.optim.Optimizer:
        """Make torch.optim.AdamW over all parameters of the model."""
        betas = (self.beta1, self.beta2)
        parameters = grouped(model, self.groups, self.lr)
        return torch.optim.AdamW(parameters, self.lr, betas, weight_decay=self.weight_decay)


def factors(groups: tuple[str, ...]) -> dict[str, float]:
    """Read a list of PATTERN:FACTOR as pattern -> factor of the rate. Raises UserError if it is not one.

    Example:
        >>> factors(("head:10", "stem:1/10"))
        {'head': 10.0, 'stem': 0.1}
    """
    found: dict[str, float] = {}
    for item in groups if isinstance(groups, tuple) else (groups,):
        pattern, colon, text = item.rpartition(":") if isinstance(item, str) else ("", "", "")
        if not (pattern and colon):
            raise UserError(f"optimizer.groups are PATTERN:FACTOR, such as head:10, got {item!r}")
        factor = parse_number(text, f"the factor of {pattern}")
        if not (math.isfinite(factor) and factor > 0):
            raise UserError(
                f"the factor of {pattern} in optimizer.groups must be positive, got {text}; "
                f"to keep it as it is, use --freeze {pattern}"
            )
        found.setdefault(pattern.strip(), factor)
    return found


def grouped(model: nn.Module, groups: tuple[str, ...], lr: float) -> list[Any]:
    """The parameters in the form that torch's optimisers take: a list, or groups with their peak rates."""
    if not groups:
        return list(model.parameters())
    rates: dict[str, float] = {}
    for pattern, factor in factors(groups).items():
        rates |= {name: factor * lr for name in parameters_matching(model, pattern) if name not in rates}
    by_rate: dict[float, list[nn.Parameter]] = {lr: []}
    for name, parameter in model.named_parameters():
        by_rate.setdefault(rates.get(name, lr), []).append(parameter)
    return [{"params": parameters, "lr": rate} for rate, parameters in by_rate.items() if parameters]


def _check_values(spec: SGD | AdamW) -> None:
    factors(spec.groups)
    if not (math.isfinite(spec.lr) and spec.lr > 0):
        raise UserError(f"the learning rate must be positive, got {spec.lr!r}")
    if not (math.isfinite(spec.weight_decay) and spec.weight_decay >= 0):
        raise UserError(f"weight decay must be at least 0, got {spec.weight_decay!r}")


def optimizer_of(spec: OptimizerSpec, model: nn.Module) -> torch.optim.Optimizer:
    """Make the optimiser of a run; each group remembers the ratio of its peak rate to `spec.lr`."""
    optimizer = spec.make(model)
    for group in optimizer.param_groups:
        group["lr_ratio"] = group["lr"] / spec.lr
    remember_groups(optimizer)
    return optimizer


def set_rate(
    optimizer: torch.optim.Optimizer, spec: OptimizerSpec, rate: Rate, clock: Clock, scale: float = 1.0
) -> float:
    """Set the optimiser's learning rates for this clock, and its momentum if the schedule moves it.

    Args:
        scale: factor by which the sentinel has lowered the rate.

    Returns:
        The learning rate of a group whose peak is `spec.lr`.
    """
    lr = spec.lr * rate(clock) * scale
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_ratio", 1.0)
        if isinstance(rate, Triangle) and rate.cycle_momentum and hasattr(spec, "momentum"):
            group["momentum"] = rate.momentum(clock, spec.momentum)  # pyright: ignore[reportAttributeAccessIssue]
    return lr


def rate_before(plan: OptimPlan, clock: Clock, scale: float) -> float | None:
    """The previous minibatch's rate in this epoch, or None; for old checkpoints that do not hold it."""
    if not clock.step:
        return None
    return plan.optimizer.lr * plan.rate(replace(clock, step=clock.step - 1)) * scale
