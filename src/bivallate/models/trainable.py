"""Whether a network can be trained: a classifier in float32 that passes `learnable`'s checks."""

from __future__ import annotations

import copy

import torch
from torch import nn

from bivallate.learnable import check_asking, check_learning
from bivallate.models.classifier import Classifier

__all__ = ["trainable", "uncompiled"]


def uncompiled(module: nn.Module) -> nn.Module:
    """The classifier inside torch.compile's wrapper, still compiled; other modules as they are."""
    inner = getattr(module, "_orig_mod", None)
    if not isinstance(inner, Classifier):
        return module
    compile_again = getattr(module, "dynamo_ctx", None)
    if compile_again is not None:
        inner._compiled_call_impl = compile_again(inner._call_impl)  # as Module.compile does
    return inner


def trainable(model: Classifier) -> Classifier:
    """The classifier in float32, found fit to be trained.

    Raises:
        UserError: it has no parameters that ask for a gradient, fails or returns no logits in train mode, or
            no gradient leads from the logits to the parameters or to the images.
    """
    check_asking(model, model.architecture)
    if any(t.is_floating_point() and t.dtype != torch.float32 for t in model.state_dict().values()):
        model.float()
    if model.spec is None:
        _try_training(model)
    return model


def _try_training(model: Classifier) -> None:
    try:
        twin = copy.deepcopy(model)
    except Exception:  # what cannot be copied is found out by training it
        return
    device = next(twin.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        x = torch.rand(2, *model.shape, device=device)
        check_learning(twin, x, model.architecture, model.num_classes)
