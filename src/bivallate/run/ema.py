"""Exponential moving average of the weights."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Average:
    """A copy of a model whose parameters are averages of its parameters and whose buffers are copies of its
    buffers.

    average <- decay average + (1 - decay) parameter after every update, with the decay reduced to (1 + n) /
    (10 + n) in the first updates n so that the random initialisation is forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.model = copy.deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Takes in the parameters as they are now."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for own, other in zip(self.model.parameters(), model.parameters(), strict=True):
            own.lerp_(other, 1 - decay)
        for own, other in zip(self.model.buffers(), model.buffers(), strict=True):
            own.copy_(other)
