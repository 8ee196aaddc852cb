"""Can this module be trained? Asked once, before the first minibatch, of modules that others have written."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bivallate.errors import UserError
from bivallate.lower.modes import posed
from bivallate.models.classifier import Classifier

__all__ = ["check_module", "check_values", "trainable", "uncompiled"]


def check_module(model: object) -> None:
    """Raises UserError unless it is a module whose tensors have values and can be learned from."""
    if not isinstance(model, nn.Module):
        what = "the class" if isinstance(model, type) else type(model).__name__
        name = f" {model.__name__}: call it" if isinstance(model, type) else ": make one of it"
        raise UserError(f"a model is a torch.nn.Module or a name, such as 'tiny-cnn'; got {what}{name}")
    check_values(model, lazy=True)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not is_lazy(tensor) and tensor.is_inference():
            raise UserError(
                f"{name} of {type(model).__name__} was made in inference mode, where nothing can be learned: "
                "make the model outside of it"
            )


def check_values(model: nn.Module, *, lazy: bool = False) -> None:
    """Raises UserError where a tensor of the model has no values. lazy: those that a first pass makes may be
    missing."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor) and not lazy:
            raise UserError(f"{name} of {type(model).__name__} is lazy: pass a batch through the model first")
        if not is_lazy(tensor) and tensor.device.type == "meta":
            raise UserError(
                f"{name} of {type(model).__name__} has no values (device meta): load weights first"
            )


def uncompiled(module: nn.Module) -> nn.Module:
    """A classifier that torch.compile has wrapped, itself, and still compiled; other modules as they are."""
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
    learning = [p for p in model.parameters() if p.requires_grad]
    if not learning:
        frozen = sum(1 for _ in model.parameters())
        cure = (
            "call model.requires_grad_(True), on what is to learn" if frozen else "there is nothing to train"
        )
        raise UserError(f"no parameter of {model.architecture} asks for a gradient ({frozen} do not): {cure}")
    if any(t.is_floating_point() and t.dtype != torch.float32 for t in model.state_dict().values()):
        model.float()
    if model.spec is None:
        _try_training(model)
    return model


def _try_training(model: Classifier) -> None:
    """One pass forwards and backwards in train mode, of a copy."""
    try:
        twin = copy.deepcopy(model)
    except Exception:  # what cannot be copied is found out by training it
        return
    device = next(twin.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        x = torch.rand(2, *model.shape, device=device).requires_grad_()
        with torch.enable_grad(), posed(twin, training=True, track=True, dropout=True):
            try:
                logits = twin(1 * x)
            except Exception as error:
                raise UserError(
                    f"{model.architecture} works in eval mode but failed in train mode on a batch of shape "
                    f"{tuple(x.shape)} ({type(error).__name__}: {error})"
                ) from error
            _check_logits(model, logits)
            _check_gradients(model, twin, logits, x)


def _check_logits(model: Classifier, logits: Any) -> None:
    expected = (2, model.num_classes)
    if not isinstance(logits, Tensor) or tuple(logits.shape) != expected:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(
            f"{model.architecture} must return logits in train mode too, here {expected}; it returned {got}: "
            "leave auxiliary outputs out, or wrap it in a module that returns the logits alone"
        )


def _check_gradients(model: Classifier, twin: Classifier, logits: Tensor, x: Tensor) -> None:
    learning = [p for p in twin.parameters() if p.requires_grad]
    cure = "remove torch.no_grad(), detach() and conversions to numpy from its forward"
    if not logits.requires_grad:
        raise UserError(f"{model.architecture} cannot be trained: no gradient leaves its logits; {cure}")
    try:
        grads = torch.autograd.grad(logits.sum(), [x, *learning], allow_unused=True)
    except RuntimeError as error:
        raise UserError(f"{model.architecture} cannot be differentiated ({error}): {cure}") from error
    if all(g is None for g in grads[1:]):
        raise UserError(f"no gradient leads from {model.architecture}'s logits to its parameters: {cure}")
    if grads[0] is None:
        raise UserError(f"no gradient leads from {model.architecture}'s logits to the images: {cure}")
