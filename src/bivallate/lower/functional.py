"""A network at parameters that are not its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call


@dataclass(frozen=True)
class Functional:
    """The module, in its own mode and precision, with some parameters and buffers replaced.

    (B, C, H, W) -> (B, K).

    Gradients flow to the tensors that are given; the other parameters and buffers are the module's own, and
    its own buffers move as usual. A tensor that is tied to others by name stands for all of them.
    """

    module: nn.Module
    tensors: dict[str, Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        return functional_call(self.module, self._places(), (x,), tie_weights=False)

    def _places(self) -> dict[str, Tensor]:
        """The tensors for every place they are used in, each module once.

        PyTorch's own way with ties replaces a module that is used under two names twice, and then restores it
        to the replacement.
        """
        every = (*self.module.named_parameters(), *self.module.named_buffers())
        given = {id(own): self.tensors[name] for name, own in every if name in self.tensors}
        places = {}
        for prefix, module in self.module.named_modules():
            for name, own in (
                *module.named_parameters(recurse=False, remove_duplicate=False),
                *module.named_buffers(recurse=False, remove_duplicate=False),
            ):
                if id(own) in given:
                    places[f"{prefix}.{name}" if prefix else name] = given[id(own)]
        return places

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """The precision that the module runs in, where that is not its parameters'."""
        return getattr(self.module, "autocast_dtype", None)
