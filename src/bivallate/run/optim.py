"""Optimisers, and how a schedule sets their rates."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import nn

from bivallate.errors import UserError, check_decays
from bivallate.from_text import parse_number
from bivallate.models.layers import parameters_matching
from bivallate.parts import part
from bivallate.run.optimizer_state import remember_groups
from bivallate.run.rates import Rate, Triangle
from bivallate.types import Clock


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
        UserError: the rate is not positive, the weight decay is negative, the momentum is outside [0, 1) or 0
            with `nesterov`, or a group is not PATTERN:FACTOR.
    """

    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = False
    groups: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_values(self)
        check_decays(momentum=self.momentum)
        if self.nesterov and not self.momentum:
            raise UserError("nesterov looks ahead along the momentum, which is 0: give one, or leave it out")

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
    """Adam with decoupled weight decay; `lr`, `groups` and errors as in `SGD`, the betas also in [0, 1)."""

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 1e-2
    groups: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_values(self)
        check_decays(beta1=self.beta1, beta2=self.beta2)

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
