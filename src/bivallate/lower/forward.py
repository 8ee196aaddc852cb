"""The network as solvers, couplings and losses call it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from bivallate.lower.asking import ask
from bivallate.lower.functional import Functional
from bivallate.types import Passes


class Forward:
    """A network that counts its passes.

    A forward pass counts when it is made, a backward pass whenever a gradient arrives at the logits of one.
    Parts add only what does not pass there: the second-order half of a double backward, and tangents.

    A model that asks for mixed precision (`autocast_dtype`) has it, but for passes whose gradient by the
    image is used with its size, which rounding takes away where the loss is flat.

    Attributes:
        model: the network, or any callable from (B, C, H, W) to (B, K).
        passes: the count, shared by everything that happens in one step.
    """

    def __init__(self, model: Callable[[Tensor], Tensor], passes: Passes | None = None) -> None:
        self.model = model
        self.passes = passes if passes is not None else Passes()

    def __call__(self, x: Tensor, *, exact: bool = False) -> Tensor:
        """Logits in float32 or better. exact: without mixed precision, as every pass that a coupling's
        gradient goes through."""
        self.passes.forward += len(x)
        dtype = None if exact else getattr(self.model, "autocast_dtype", None)
        with torch.autocast(x.device.type, dtype) if dtype is not None else nullcontext():
            logits = ask(self.model, x)
        if logits.requires_grad:
            rows, passes = len(x), self.passes

            def arrived(_: Tensor) -> None:
                passes.backward += rows

            logits.register_hook(arrived)
        return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits

    @property
    def module(self) -> nn.Module:
        """The network as a module, for parts that need its parameters or its mode.

        Raises:
            TypeError: it is another callable.
        """
        found = self.model.module if isinstance(self.model, Functional) else self.model
        if not isinstance(found, nn.Module):
            raise TypeError(f"this part needs an nn.Module with parameters, got {type(found).__name__}")
        return found

    def at(self, tensors: dict[str, Tensor]) -> Forward:
        """The network with some parameters and buffers replaced; its passes go to the same count."""
        before = self.model.tensors if isinstance(self.model, Functional) else {}
        return Forward(Functional(self.module, {**before, **tensors}), self.passes)
