"""The modes in which an attack, the upper level and an evaluation see a network, which is left as found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from torch import Tensor, nn

AttackMode = Literal["eval", "train", "train-tracking"]


@contextmanager
def in_mode(model: nn.Module, *, training: bool, track: bool, dropout: bool) -> Iterator[None]:
    """Put a model into a mode, and leave it exactly as it was found, also when the body raises.

    Args:
        model: whose modules are set.
        training: train or eval mode.
        track: whether train-mode BatchNorm moves its running statistics.
        dropout: whether train-mode dropout drops.
    """
    found = [(m, m.training, getattr(m, "track_running_stats", None)) for m in model.modules()]
    try:
        for module, _, _ in found:
            module.training = training and not getattr(module, "held", False)
            if isinstance(module, nn.modules.dropout._DropoutNd) and not dropout:
                module.training = False
            if isinstance(module, nn.modules.batchnorm._NormBase) and training:
                # a norm without buffers never tracks; one with buffers may be silenced by an outer pose
                module.track_running_stats = track and module.running_mean is not None
        yield
    finally:
        for module, was_training, tracked in found:
            module.training = was_training
            if tracked is not None:
                module.track_running_stats = tracked  # pyright: ignore[reportAttributeAccessIssue]


def attacking(model: nn.Module, mode: AttackMode):
    """The model as the attack sees it: BatchNorm by `mode`, dropout off.

    In "train" mode attack passes use batch statistics and do not move the running ones; "train-tracking"
    moves them, as the public code of the fast family does.
    """
    return in_mode(model, training=mode != "eval", track=mode == "train-tracking", dropout=False)


def in_train_mode(model: nn.Module):
    """The model as the upper level sees it: plain train mode."""
    return in_mode(model, training=True, track=True, dropout=True)


def set_train_mode(model: nn.Module) -> None:
    """Put a model into train mode, to stay there, but for norms that are held still with a frozen layer."""
    for module in model.modules():
        module.training = not getattr(module, "held", False)


def evaluating(model: nn.Module):
    """Plain eval mode."""
    return in_mode(model, training=False, track=True, dropout=False)


@contextmanager
def own_statistics(model: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """BatchNorm in eval mode reads copies of its running statistics.

    A graph that is built here stays right when a later pass in train mode moves them: the kernel writes the
    buffers behind autograd's back, which would then differentiate with the moved values and say nothing.
    """
    modules = model.modules() if isinstance(model, nn.Module) else ()
    norms = [m for m in modules if isinstance(m, nn.modules.batchnorm._NormBase) and not m.training]
    found = [(m, m.running_mean, m.running_var) for m in norms]
    try:
        for norm, mean, var in found:
            norm.running_mean = None if mean is None else mean.clone()
            norm.running_var = None if var is None else var.clone()
        yield
    finally:
        for norm, mean, var in found:
            norm.running_mean, norm.running_var = mean, var


@contextmanager
def frozen(model: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let no parameter ask for a gradient.

    An input gradient then costs 0.6 of a forward and backward instead of 1.
    """
    parameters = [p for p in model.parameters() if p.requires_grad] if isinstance(model, nn.Module) else []
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
