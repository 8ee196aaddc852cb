"""Optimisers and learning-rate schedules, as parts."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import nn

from bivallate.errors import UserError
from bivallate.from_text import parse_number
from bivallate.models.layers import matching
from bivallate.parts import part
from bivallate.types import Clock


class Rate(Protocol):
    """Clock -> factor of the peak learning rate, asked for before every minibatch."""

    def __call__(self, clock: Clock) -> float: ...


@part
class Flat:
    """The peak rate always."""

    def __call__(self, clock: Clock) -> float:
        return 1.0


@part
class Triangle:
    """Linear from 0 to the peak and back to 0: the fast family's schedule.

    The peak is at the fraction `peak` of training.

    Attributes:
        cycle_momentum: also move momentum from 0.9 down to 0.8 at the peak and back, as torch's CyclicLR does
            by default in the public code, although the papers say 0.9 throughout.
    """

    peak: float = 0.5
    cycle_momentum: bool = False

    def __call__(self, clock: Clock) -> float:
        t = clock.progress
        return t / self.peak if t < self.peak else (1 - t) / (1 - self.peak)

    def momentum(self, clock: Clock, base: float) -> float:
        """Momentum now, for an optimiser whose momentum is `base`."""
        return base - 0.1 * self(clock) if self.cycle_momentum else base


@part
class MultiStep:
    """The peak rate times `factor` for every milestone (a fraction of the epochs) that has been reached.

    However short a run, it begins at the peak rate and reaches milestones below 1 by its last epoch: a run of
    one epoch keeps the peak rate.

    Attributes:
        factors: factor after each milestone instead of powers of `factor`; empty uses powers.
    """

    at: tuple[float, ...] = (0.5, 0.75)
    factor: float = 0.1
    factors: tuple[float, ...] = ()

    def __call__(self, clock: Clock) -> float:
        reached = bisect_right([epoch_of(fraction, clock.epochs) for fraction in self.at], clock.epoch)
        if self.factors:
            return ([1.0, *self.factors])[reached]
        return self.factor**reached


def epoch_of(fraction: float, epochs: int) -> int:
    """The epoch of a milestone, counted from 0; none between the ends falls together with them."""
    place = round(fraction * epochs)
    return max(1, min(place, epochs - 1)) if 0 < fraction < 1 else place


@part
class Pieces:
    """Straight lines between the points (at[k], values[k]).

    Attributes:
        at: fractions of training, from 0 to 1. values: of the peak rate.

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
    """Half a cosine from the peak to `floor` times the peak, after a linear warm-up.

    The warm-up takes the fraction `warm_up`.
    """

    floor: float = 0.0
    warm_up: float = 0.0

    def __call__(self, clock: Clock) -> float:
        t = clock.progress
        if t < self.warm_up:
            return t / self.warm_up
        t = (t - self.warm_up) / (1 - self.warm_up)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * t))


class Optimizer(Protocol):
    """Makes a torch optimiser for a model; `lr` is the peak rate, which groups of parameters may differ from.

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
    """What a configuration says of both."""

    @property
    def optimizer(self) -> Optimizer: ...

    @property
    def rate(self) -> Rate: ...


@part
class SGD:
    """Stochastic gradient descent with momentum; weight decay is added to the gradient.

    Attributes:
        groups: parts of the network with another rate, PATTERN:FACTOR, such as "head:10" or "body.0.*:0.1";
            of several that mean a parameter the first counts. Patterns are those of `Init.freeze`.
    """

    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = False
    groups: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _positive(self.lr, self.weight_decay)
        factors(self.groups)

    def make(self, model: nn.Module) -> torch.optim.Optimizer:
        """torch.optim.SGD over all parameters."""
        return torch.optim.SGD(
            grouped(model, self.groups, self.lr),
            self.lr,
            self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
        )


@part
class AdamW:
    """Adam with decoupled weight decay. `groups` as in SGD."""

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 1e-2
    groups: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _positive(self.lr, self.weight_decay)
        factors(self.groups)

    def make(self, model: nn.Module) -> torch.optim.Optimizer:
        """torch.optim.AdamW over all parameters."""
        betas = (self.beta1, self.beta2)
        parameters = grouped(model, self.groups, self.lr)
        return torch.optim.AdamW(parameters, self.lr, betas, weight_decay=self.weight_decay)


def factors(groups: tuple[str, ...]) -> dict[str, float]:
    """Pattern -> factor of the rate. Raises UserError for what is no list of PATTERN:FACTOR.

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
                f"--freeze {pattern} is for what shall not learn"
            )
        found.setdefault(pattern.strip(), factor)
    return found


def grouped(model: nn.Module, groups: tuple[str, ...], lr: float) -> list[Any]:
    """What torch's optimisers take: all parameters, or groups of them, each with its peak rate."""
    if not groups:
        return list(model.parameters())
    rates: dict[str, float] = {}
    for pattern, factor in factors(groups).items():
        rates |= {name: factor * lr for name in matching(model, pattern) if name not in rates}
    by_rate: dict[float, list[nn.Parameter]] = {lr: []}
    for name, parameter in model.named_parameters():
        by_rate.setdefault(rates.get(name, lr), []).append(parameter)
    return [{"params": parameters, "lr": rate} for rate, parameters in by_rate.items() if parameters]


def _positive(lr: float, weight_decay: float) -> None:
    if not (math.isfinite(lr) and lr > 0):
        raise UserError(f"the learning rate must be positive, got {lr!r}")
    if not (math.isfinite(weight_decay) and weight_decay >= 0):
        raise UserError(f"weight decay must be at least 0, got {weight_decay!r}")


def optimizer_of(spec: Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of a run. Groups of parameters keep the ratio that their rates have to `spec.lr`."""
    optimizer = spec.make(model)
    for group in optimizer.param_groups:
        group["share"] = group["lr"] / spec.lr
    return optimizer


def set_rate(
    optimizer: torch.optim.Optimizer, spec: Optimizer, rate: Rate, clock: Clock, scale: float = 1.0
) -> float:
    """Put the learning rates of this moment (and momentum, if the schedule moves it) into the optimiser.

    Args:
        scale: what the sentinel has left of the rate.

    Returns:
        The rate of a group whose peak is `spec.lr`.
    """
    lr = spec.lr * rate(clock) * scale
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("share", 1.0)
        if isinstance(rate, Triangle) and isinstance(spec, SGD):
            group["momentum"] = rate.momentum(clock, spec.momentum)
    return lr


def rate_before(plan: OptimPlan, clock: Clock, scale: float) -> float | None:
    """The rate of the minibatch before this one in its epoch, for checkpoints that do not hold it."""
    if not clock.step:
        return None
    return plan.optimizer.lr * plan.rate(replace(clock, step=clock.step - 1)) * scale
