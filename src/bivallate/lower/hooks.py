"""Output and gradient of a module in the pass at x_adv, for solvers that use them again."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Overheard:
    """What a module inside a network puts out in the pass at x_adv, with its gradient after the backward.

    Passes at other points (a clean pass, a regulariser's) are not heard; of several at x_adv the last one
    is kept, which is the one that the loss is made of.
    """

    def __init__(self, network: nn.Module, module: nn.Module, x_adv: Tensor) -> None:
        self._x_adv, self._here = x_adv, False
        self._output: Tensor | None = None
        self._handles = [
            network.register_forward_pre_hook(self._enter),
            module.register_forward_hook(self._leave),
        ]

    def _enter(self, network: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0]
        self._here = x.shape == self._x_adv.shape and torch.equal(x, self._x_adv)

    def _leave(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if self._here and output.requires_grad:
            output.retain_grad()
            self._output = output

    def output(self) -> Tensor:
        """The output, once; ends the listening."""
        self.stop()
        if self._output is None:
            raise RuntimeError("the loss made no pass at x + delta, or its first layer is never called")
        return self._output

    def stop(self) -> None:
        """Ends the listening."""
        for handle in self._handles:
            handle.remove()
