"""Put a network into the mode of an attack, of the upper level or of an evaluation, and restore it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from torch import Tensor, nn

AttackMode = Literal["eval", "train", "train-tracking"]


@contextmanager
def in_mode(model: nn.Module, *, training: bool, track: bool, dropout: bool) -> Iterator[None]:
    """Put a model into a mode, and restore its own mode afterwards, also if the body raises.

    Args:
        model: all its modules are set.
        training: train or eval mode.
        track: whether BatchNorm in train mode moves its running statistics.
        dropout: whether dropout is active in train mode.
    """
    modules = [m for m in model.modules() if hasattr(m, "training")]  # a frozen script's have none
    before = [(m, m.training, getattr(m, "track_running_stats", None)) for m in modules]
    try:
        for module, _, _ in before:
            module.training = training and not getattr(module, "frozen_norm", False)
            if isinstance(module, nn.modules.dropout._DropoutNd) and not dropout:
                module.training = False
            if isinstance(module, nn.modules.batchnorm._NormBase) and training:
                # a norm without buffers cannot track; an outer context may have switched tracking off
                module.track_running_stats = track and module.running_mean is not None
        yield
    finally:
        for module, was_training, tracked in before:
            module.training = was_training
            if getattr(module, "track_running_stats", None) is not tracked:  # a constant in a script
                module.track_running_stats = tracked  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]


def attacking(model: nn.Module, mode: AttackMode):
    """The mode of attack passes: BatchNorm by `mode`, dropout off.

    In "train" mode attack passes use batch statistics and do not move the running statistics; in
    "train-tracking" they move them, as in the public code of the fast family.
    """
    return in_mode(model, training=mode != "eval", track=mode == "train-tracking", dropout=False)


def in_train_mode(model: nn.Module):
    """The mode of the upper level: plain train mode."""
    return in_mode(model, training=True, track=True, dropout=True)


def set_train_mode(model: nn.Module) -> None:
    """Put a model into train mode permanently, except norms that are held in eval mode with frozen layers."""
    for module in model.modules():
        module.training = not getattr(module, "frozen_norm", False)


def evaluating(model: nn.Module):
    """The mode of evaluations: plain eval mode."""
    return in_mode(model, training=False, track=True, dropout=False)


@contextmanager
def own_statistics(model: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let BatchNorm in eval mode read copies of its running statistics.

    A graph that is built here stays right when a later pass in train mode moves the statistics. That pass
    writes the buffers without autograd noticing, which would silently differentiate with the new values.
    """
    modules = model.modules() if isinstance(model, nn.Module) else ()
    norms = [m for m in modules if isinstance(m, nn.modules.batchnorm._NormBase) and not m.training]
    before = [(m, m.running_mean, m.running_var) for m in norms]
    try:
        for norm, mean, var in before:
            norm.running_mean = None if mean is None else mean.clone()
            norm.running_var = None if var is None else var.clone()
        yield
    finally:
        for norm, mean, var in before:
            norm.running_mean, norm.running_var = mean, var


@contextmanager
def frozen(model: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Set requires_grad to False for all parameters, and restore it afterwards.

    An input gradient then costs 0.6 of a full forward and backward pass.
    """
    parameters = [p for p in model.parameters() if p.requires_grad] if isinstance(model, nn.Module) else []
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
