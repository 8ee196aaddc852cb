"""Prepare a model for evaluation: a module, on one device, in eval mode, frozen, in full precision."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bivallate.errors import UserError, check_device
from bivallate.evaluation.full_precision import full_float32, unmixed, without_autocast
from bivallate.learnable import check_module, check_values
from bivallate.lower.modes import evaluating, frozen

__all__ = ["CallableModule", "dtype_of", "for_inference"]


UNDIFFERENTIABLE = ("does not require grad", "not have been used in the graph")  # in messages of autograd


@contextmanager
def for_inference(
    model: nn.Module | Callable[[Tensor], Tensor], device: torch.device | str | None
) -> Iterator[tuple[nn.Module, torch.device, torch.dtype]]:
    """Yield (module, device, dtype): the model in eval mode, frozen, on a device, in float32 or better.

    The module is a copy if it must be moved or converted. It is also one if its tensors were made in
    inference mode: autograd cannot use those. A device without an index ("cuda") means the model's own,
    if that is of the same type.

    Raises:
        UserError: no model, a model whose tensors have no values, or a model without input gradient if an
            attack within the context needs it.
    """
    if isinstance(model, type) or not callable(model):
        check_module(model)
    module = model if isinstance(model, nn.Module) else CallableModule(model)
    check_values(module)
    tensors, dtype = floating(module), dtype_of(module)
    here = tensors[0].device if tensors else torch.device("cpu")
    wanted = check_device(device, "use 'cpu', or leave it out") if device is not None else here
    stays = wanted.type == here.type and wanted.index in (None, here.index)
    where = here if stays else wanted
    if not stays or any(t.is_inference() for t in tensors):
        module = copy.deepcopy(module).to(where)
    if dtype in (torch.float16, torch.bfloat16):
        module, dtype = copy.deepcopy(module).float(), torch.float32
    with evaluating(module), frozen(module), unmixed(module), without_autocast(where), full_float32():
        try:
            yield module, where, dtype
        except RuntimeError as error:
            if not any(words in str(error) for words in UNDIFFERENTIABLE):
                raise
            raise UserError(
                "this attack follows the gradient, and none leads from the logits to the images: remove "
                "torch.no_grad(), detach() and conversions to numpy from the forward; square needs none"
            ) from error


def floating(module: nn.Module) -> list[Tensor]:
    """The parameters and buffers of real numbers."""
    return [t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()]


def dtype_of(model: nn.Module | Callable[[Tensor], Tensor]) -> torch.dtype:
    """The type in which a model computes, that of its weights (not of a lone number); or float32."""
    tensors = floating(model) if isinstance(model, nn.Module) else []
    weights = [t for t in tensors if t.ndim > 1] or tensors
    return weights[0].dtype if weights else torch.float32


class CallableModule(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)
