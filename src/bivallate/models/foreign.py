"""The user's own networks: modules, and factories that make them."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from bivallate.errors import UserError
from bivallate.learnable import check_module
from bivallate.models.classifier import Classifier, normalisation
from bivallate.models.trainable import uncompiled

__all__ = ["load_factory", "wrap"]

Statistics = Sequence[float] | float | None


def wrap(
    module: nn.Module,
    *,
    num_classes: int,
    shape: Sequence[int],
    mean: Statistics = None,
    std: Statistics = None,
    name: str = "",
) -> Classifier:
    """Wrap a module as a `Classifier`; the module itself is unchanged. A classifier is returned as it is.

    Args:
        module: maps images (B, C, H, W) to logits (B, num_classes). It is tried on one batch of two images.
        num_classes: number of classes K.
        shape: (C, H, W) of the images.
        mean, std: channel statistics in [0, 1] pixel units that become the first layer; None for a module
            that takes images in [0, 1] or normalises them itself.
        name: name of the architecture in manifests; default the name of the module's class.

    Raises:
        UserError: `module` is not a module, its tensors have no values, it does not map (B, C, H, W) to
            (B, num_classes), or it is a classifier of another shape or number of classes.
    """
    check_module(module)
    module = uncompiled(module)
    if isinstance(module, Classifier):
        if module.num_classes != num_classes or module.shape != tuple(shape):
            raise UserError(
                f"the model takes {module.shape} and has {module.num_classes} classes, but the data has "
                f"{tuple(shape)} and {num_classes}: create the model for this data"
            )
        return module
    size = (int(shape[0]), int(shape[1]), int(shape[2]))
    name = name or type(getattr(module, "_orig_mod", module)).__qualname__  # the class inside torch.compile's
    model = Classifier(
        module,
        architecture=name,
        num_classes=num_classes,
        shape=size,
        normalise=normalisation(mean, std, size[0]),
    )
    _try(model, module)
    return model


def _try(model: Classifier, module: nn.Module) -> None:
    """Check the shape of the logits by a pass in eval mode over grey images; restore all modes."""
    tensor = next(iter(module.parameters()), torch.zeros(()))
    model.normalise.to(tensor.device)
    modes = {part: part.training for part in model.modules()}
    x = torch.full((2, *model.shape), 0.5, device=tensor.device, dtype=tensor.dtype)
    try:
        with torch.no_grad():
            logits = model.eval()(x)
    except Exception as error:
        raise UserError(
            f"{model.architecture} failed on a batch of shape {tuple(x.shape)} "
            f"({type(error).__name__}: {error}): it must take images (batch, channels, height, width)"
        ) from error
    finally:
        for part, mode in modes.items():
            part.training = mode
    expected = (2, model.num_classes)
    if not isinstance(logits, torch.Tensor) or tuple(logits.shape) != expected:
        got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise UserError(
            f"{model.architecture} must return logits (batch, classes), here {expected}; it returned {got}"
        )


def load_factory(
    reference: str,
    *,
    num_classes: int,
    shape: Sequence[int],
    mean: Statistics = None,
    std: Statistics = None,
    **options: Any,
) -> Classifier:
    """Import the user's `package.module:factory`, call it and wrap the module that it returns.

    This runs the user's code. Modules in the working directory are found too.

    Args:
        reference: `package.module:factory`, a function or class that returns a module.
        num_classes, shape: K and (C, H, W); passed to the factory if it has parameters of these names.
        mean, std: as in `wrap`.
        options: passed to the factory.

    Raises:
        UserError: the reference cannot be imported, the factory fails, or it returns something other than a
            module from (B, C, H, W) to (B, num_classes).
    """
    factory = imported(reference, "a function or a class that returns the model")
    try:
        accepted = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        accepted = {}
    any_name = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    given = {"num_classes": num_classes, "shape": tuple(shape)}
    known = {key: value for key, value in given.items() if any_name or key in accepted}
    try:
        module = factory(**known, **options)
    except Exception as error:
        raise UserError(f"{reference} failed with {type(error).__name__}: {error}") from error
    if not isinstance(module, nn.Module):
        raise UserError(f"{reference} must return a torch.nn.Module, it returned {type(module).__name__}")
    return wrap(module, num_classes=num_classes, shape=shape, mean=mean, std=std, name=reference)


def imported(reference: str, wanted: str) -> Callable[..., Any]:
    """Import the callable that the user's `package.module:name` refers to.

    Modules in the working directory are found too.

    Args:
        reference: `package.module:name`.
        wanted: what the callable should be, for the error message.

    Raises:
        UserError: the reference cannot be imported, or is not callable.
    """
    module_name, colon, attribute = reference.partition(":")
    if not (module_name and colon and attribute):
        raise UserError(f"code of your own is named as package.module:name, got {reference!r}")
    here = os.getcwd()
    sys.path.append(here)
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:
        raise UserError(
            f"cannot import {module_name!r} for {reference!r} ({type(error).__name__}: {error}): it must be "
            "installed or lie in the working directory"
        ) from error
    finally:
        sys.path.remove(here)
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise UserError(f"{reference!r}: {module_name} has no {attribute!r}")
        found = getattr(found, part)
    if not callable(found):
        raise UserError(f"{reference!r} is not callable: name {wanted}")
    return found
