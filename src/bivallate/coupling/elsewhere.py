"""A network at parameters that are not its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call


@dataclass(frozen=True)
class Elsewhere:
    """(B, C, H, W) -> (B, K): the module, in its own mode and precision, with some parameters and buffers
    replaced.

    Gradients flow to the tensors that are given; the other parameters and buffers are the module's own, and
    its own buffers move as usual.
    """

    module: nn.Module
    tensors: dict[str, Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        return functional_call(self.module, self.tensors, (x,))

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """The precision that the module runs in, where that is not its parameters'."""
        return getattr(self.module, "autocast_dtype", None)
