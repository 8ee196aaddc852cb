"""Check that a module can be trained: its tensors have values, gradients flow, copies can be made.

The checks run once, before the first minibatch, on networks (`models.trainable`) and on modules that users
have written.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bivallate.errors import UserError
from bivallate.lower.input_guard import call_unharmed
from bivallate.lower.modes import in_mode

__all__ = ["check_asking", "check_learning", "check_module", "check_values", "copied"]


def check_module(model: object) -> None:
    """Raise UserError unless it is a torch module whose tensors have values and can be trained."""
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
    """Raise UserError if a tensor of the model has no values.

    lazy: allow lazy tensors, which get their values in the first pass.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor) and not lazy:
            raise UserError(f"{name} of {type(model).__name__} is lazy: pass a batch through the model first")
        if not is_lazy(tensor) and tensor.device.type == "meta":
            raise UserError(
                f"{name} of {type(model).__name__} has no values (device meta): load weights first"
            )


def copied(model: nn.Module) -> nn.Module:
    """Return a deep copy. Raises UserError for a module that cannot be copied."""
    try:
        return copy.deepcopy(model)
    except Exception as error:  # whatever its parts raise
        raise UserError(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {error}): if it keeps a "
            "tensor that was computed, store that detached, or as a buffer"
        ) from error


def check_asking(model: nn.Module, name: str) -> list[nn.Parameter]:
    """The parameters that ask for a gradient. Raises UserError if none does."""
    learning = [p for p in model.parameters() if p.requires_grad]
    if not learning:
        frozen = sum(1 for _ in model.parameters())
        cure = (
            "call model.requires_grad_(True), on what is to learn" if frozen else "there is nothing to train"
        )
        raise UserError(f"no parameter of {name} asks for a gradient ({frozen} do not): {cure}")
    return learning


def check_learning(
    model: nn.Module, x: Tensor, name: str, classes: int | None = None, *, training: bool = True
) -> None:
    """Make one forward and one backward pass to check that a step could train the model.

    Args:
        model: a copy, because a pass may move buffers; its modes are left as they were.
        x: (B, C, H, W) a few images, at least two in train mode. name: of the model, for messages.
        classes: the number of logits that an image must have; None for any number.
        training: make the pass in train mode, else in eval mode.

    Raises:
        UserError: no parameter asks for a gradient, the model fails or returns no logits on images like x, or
            no gradient leads from the logits to the parameters or to the images.
    """
    learning = check_asking(model, name)
    device = x.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        x = x.detach().clone().requires_grad_()
        with torch.enable_grad(), in_mode(model, training=training, track=True, dropout=True):
            try:
                logits = call_unharmed(model, 1 * x)
            except UserError:
                raise
            except Exception as error:
                works = "works in eval mode but " if classes is not None and training else ""
                raise UserError(
                    f"{name} {works}failed in {'train' if training else 'eval'} mode on a batch of shape "
                    f"{tuple(x.shape)} ({type(error).__name__}: {error})"
                ) from error
            _check_logits(name, logits, len(x), classes, training)
            _check_gradients(name, learning, logits, x)


def _check_logits(name: str, logits: Any, rows: int, classes: int | None, training: bool) -> None:
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else ()
    if len(shape) == 2 and shape[0] == rows and classes in (None, shape[1]):
        return
    got = shape if isinstance(logits, Tensor) else type(logits).__name__
    mode = " in train mode too" if training and classes is not None else ""
    raise UserError(
        f"{name} must return logits{mode}, here ({rows}, {classes or 'classes'}); it returned {got}: "
        "leave auxiliary outputs out, or wrap it in a module that returns the logits alone"
    )


def _check_gradients(name: str, learning: list[nn.Parameter], logits: Tensor, x: Tensor) -> None:
    cure = "remove torch.no_grad(), detach() and conversions to numpy from its forward"
    if not logits.requires_grad:
        raise UserError(f"{name} cannot be trained: no gradient leaves its logits; {cure}")
    try:
        grads = torch.autograd.grad(logits.sum(), [x, *learning], allow_unused=True)
    except RuntimeError as error:
        raise UserError(f"{name} cannot be differentiated ({error}): {cure}") from error
    if all(g is None for g in grads[1:]):
        raise UserError(f"no gradient leads from {name}'s logits to its parameters: {cure}")
    if grads[0] is None:
        raise UserError(f"no gradient leads from {name}'s logits to the images: {cure}")
