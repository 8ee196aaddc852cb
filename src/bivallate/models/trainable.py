"""Check whether a network can be trained, and bring it into float32."""

from __future__ import annotations

import copy

import torch
from torch import nn

from bivallate.learnable import check_asking, check_learning
from bivallate.models.classifier import Classifier

__all__ = ["trainable", "uncompiled"]


def uncompiled(module: nn.Module) -> nn.Module:
    """Take the classifier out of torch.compile's wrapper, still compiled; return other modules unchanged."""
    inner = getattr(module, "_orig_mod", None)
    if not isinstance(inner, Classifier):
        return module
    compile_again = getattr(module, "dynamo_ctx", None)
    if compile_again is not None:
        inner._compiled_call_impl = compile_again(inner._call_impl)  # as Module.compile does
    return inner


def trainable(model: Classifier) -> Classifier:
    """Check that the classifier can be trained; convert it to float32 in place and return it.

    The package's own architectures are not tried in train mode.

    Raises:
        UserError: no parameter requires a gradient, the model fails or returns no logits in train mode, or no
            gradient reaches the parameters or the images from the logits.
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
    except Exception:  # a model that cannot be copied is not tried here: training itself shows its faults
        return
    device = next(twin.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        x = torch.rand(2, *model.shape, device=device)
        check_learning(twin, x, model.architecture, model.num_classes)
