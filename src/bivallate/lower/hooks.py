"""Forward hooks that keep a module's output and gradient in the pass at x_adv, for YOPO."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class HookedOutput:
    """The output of a module in the pass at x_adv, with its gradient after the backward pass.

    Passes at other points (a clean pass, a regulariser's) are ignored. Of several passes at x_adv the last
    one is kept, from which the loss is computed. On a device a single pass is assumed to be at x_adv, so that
    the host need not wait for the comparison.
    """

    def __init__(self, network: nn.Module, module: nn.Module, x_adv: Tensor) -> None:
        self._x_adv = x_adv
        self._here: bool | Tensor = False
        self._outputs: list[tuple[bool | Tensor, Tensor]] = []
        self._handles = [
            network.register_forward_pre_hook(self._enter),
            module.register_forward_hook(self._leave),
        ]

    def _enter(self, network: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0]
        if x.shape != self._x_adv.shape:
            self._here = False
        else:
            here = torch.isclose(x, self._x_adv, 0, 0, equal_nan=True).all()
            self._here = bool(here) if x.device.type == "cpu" else here  # on a device read only if needed

    def _leave(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if self._here is not False and output.requires_grad:
            output.retain_grad()
            self._outputs.append((self._here, output))

    def output(self) -> Tensor:
        """Remove the hooks and return the output; call once."""
        self.stop()
        heard, self._outputs = self._outputs, []
        if len(heard) > 1:
            heard = [(here, output) for here, output in heard if bool(here)]
        if not heard:
            raise RuntimeError("the loss made no pass at x + delta, or its first layer is never called")
        return heard[-1][1]

    def stop(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
