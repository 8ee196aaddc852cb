"""Exponential moving average of the weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


class Average:
    """A copy of a model whose parameters are averages of the model's.

    Its buffers are copies of the model's.

    average <- decay average + (1 - decay) parameter after every update, with the decay reduced to (1 + n) /
    (10 + n) in the first updates n so that the random initialisation is forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.model = copy.deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the parameters as they are now."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        mine: list[Tensor] = list(self.model.parameters())
        lists: Any = torch  # its operations on lists of tensors, one kernel for many, are not among the stubs
        lists._foreach_lerp_(mine, list(model.parameters()), 1 - decay)
        pairs = list(zip(self.model.buffers(), model.buffers(), strict=True))
        for dtype in {own.dtype for own, _ in pairs}:
            alike = [pair for pair in pairs if pair[0].dtype == dtype]
            lists._foreach_copy_([own for own, _ in alike], [value for _, value in alike])
