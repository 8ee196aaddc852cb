"""Layers of a network by pattern, for freezing and for learning rates; the last layer and its input."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from bivallate.errors import UserError, listed, nearest
from bivallate.models.classifier import Classifier

__all__ = ["NETWORK", "freeze", "head_path", "last_features", "parameters_matching"]

NETWORK = "network."  # begins the names of a classifier's parameters; patterns may leave it out


def head_path(model: nn.Module) -> str:
    """Path of the last layer whose weight has one row for each class; empty if there is none."""
    classes = getattr(model, "num_classes", None)
    found = ""
    for path, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.ndim > 1 and weight.shape[0] == classes:
            found = path
    return found


def last_features(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Make a function from images (B, C, H, W) in [0, 1] to the last layer's input (B, d), without a graph.

    An input with spatial dimensions is averaged over them.

    Raises:
        UserError: no layer has one row for each class.
    """
    path = head_path(model)
    if not path:
        raise UserError("the network's last layer is not known: no layer has one row for each class")
    head = model.get_submodule(path)

    @torch.no_grad()
    def embed(x: Tensor) -> Tensor:
        kept: list[Tensor] = []
        hook = head.register_forward_pre_hook(lambda module, read: kept.append(read[0]))
        try:
            model(x)
        finally:
            hook.remove()
        return kept[-1].flatten(2).mean(2) if kept[-1].ndim > 2 else kept[-1]

    return embed


def parameters_matching(model: nn.Module, pattern: str) -> list[str]:
    """Names of the parameters that a pattern matches.

    Args:
        pattern: the name of a parameter or of a module that contains it; * stands for any text. `stem` means
            the first layer, `head` the last. A ! in front selects all parameters that do not match.

    Raises:
        UserError: the pattern matches no parameter (the error names the nearest name), or is a ! alone.

    Example:
        >>> from bivallate import models
        >>> net = models.create("tiny-cnn", num_classes=10, shape=(1, 8, 8))
        >>> parameters_matching(net, "stem")
        ['network.stem.weight', 'network.stem.bias']
        >>> [name for name in parameters_matching(net, "!*.weight") if "stem" in name]
        ['network.stem.bias']
    """
    text = pattern.removeprefix("!")
    wanted = _paths(model, text)
    names = [name for name, _ in model.named_parameters()]
    matched = {name for name in names if any(_matches(name, path) for path in wanted)}
    if not matched or not text:
        modules = [path.removeprefix(NETWORK) for path, _ in model.named_modules() if path]
        close = nearest(text, [*modules, *(name.removeprefix(NETWORK) for name in names)])
        top = listed(path for path in modules if path not in ("normalise", "network") and "." not in path)
        hint = f": did you mean {close!r}?" if close else "."
        raise UserError(
            f"no parameter matches the pattern {pattern!r}{hint} Patterns are stem, head, or names with "
            f"*, such as those of {top}"
        )
    return [name for name in names if (name in matched) != pattern.startswith("!")]


def _paths(model: nn.Module, text: str) -> list[str]:
    """The patterns of full parameter names that `stem`, `head` or a pattern stands for."""
    if text == "head":
        return [path] if (path := head_path(model)) else []
    if text == "stem" and isinstance(model, Classifier):
        return [model.stem_name]
    return [text, NETWORK + text] if text else []


def _matches(name: str, path: str) -> bool:
    return fnmatchcase(name, path) or fnmatchcase(name, f"{path}.*")


def freeze(model: nn.Module, patterns: Iterable[str]) -> None:
    """Freeze the parameters that these patterns match.

    A BatchNorm layer with parameters that are all frozen also keeps its running statistics, and uses them in
    train mode.

    Raises:
        UserError: a pattern matches no parameter, or no parameter is left to train.
    """
    frozen = {name for pattern in patterns for name in parameters_matching(model, pattern)}
    if not frozen:
        return
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    if not any(p.requires_grad for p in model.parameters()):
        raise UserError(f"all layers are frozen by {listed(patterns)}: nothing is left to train")
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            parameters = list(module.parameters())
            learns = any(p.requires_grad for p in parameters)
            module.frozen_norm = bool(parameters) and not learns  # pyright: ignore
