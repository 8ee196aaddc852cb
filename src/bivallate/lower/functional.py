"""A network evaluated at other parameters than its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call


@dataclass(frozen=True)
class Functional:
    """(B, C, H, W) -> (B, K): a module with some parameters and buffers replaced, in its mode and precision.

    Gradients flow to the given tensors. The other parameters and buffers are the module's own, and its own
    buffers move as usual. A given tensor replaces its parameter under all names of a tied parameter.
    """

    module: nn.Module
    tensors: dict[str, Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        return functional_call(self.module, self._places(), (x,), tie_weights=False)

    def _places(self) -> dict[str, Tensor]:
        """The given tensors by every name under which they are used, each module once.

        PyTorch's own `tie_weights` replaces the tensors of a module with two names twice, and then restores
        the replacement instead of the original.
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
        """The type of the module's mixed precision, or None."""
        return getattr(self.module, "autocast_dtype", None)

    @property
    def rounding(self) -> float | None:
        """The relative rounding error of the module's logits, or None if it states none."""
        return getattr(self.module, "rounding", None)
