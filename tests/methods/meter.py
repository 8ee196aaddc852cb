"""Count passes at a network's input and in its forward hook, independently of the package's own count."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Meter:
    """Rows seen: by forwards, first-order backwards, second-order backwards, and tangents."""

    forward: int = 0
    backward: int = 0
    double: int = 0
    tangent: int = 0

    @property
    def backwards(self) -> int:
        """Backward passes by the package's rule.

        Of a double backward the input sees the second-order pass and the first-order one that it runs on
        into: together the two for which it counts. Where it is part of the outer backward that first-order
        pass is the outer one.
        """
        return self.backward + self.double + self.tangent


class _Count(torch.autograd.Function):
    """Identity that counts its backward, the backward of its backward, and its tangents."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, meter: Meter) -> Tensor:
        ctx.meter = meter
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        ctx.meter.backward += len(grads[0])
        return _CountDouble.apply(grads[0], ctx.meter), None  # pyright: ignore[reportReturnType]

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        ctx.meter.tangent += len(tangents[0])
        return tangents[0].view_as(tangents[0])


class _CountDouble(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, meter: Meter) -> Tensor:
        ctx.meter = meter
        return g.view_as(g)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        ctx.meter.double += len(grads[0])
        return grads[0], None


class Metered(nn.Module):
    """A network behind a counting input. The tap is a weight tensor, so that every backward reaches it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.meter = net, Meter()
        self.tap = nn.Parameter(torch.zeros(1, 1, 1, 1, dtype=next(net.parameters()).dtype))
        net.register_forward_hook(self._count)

    @property
    def stem(self) -> nn.Module:
        """The network's own."""
        return self.net.get_submodule("stem")

    def first_layer(self) -> nn.Module:
        """The network's own."""
        named = getattr(self.net, "first_layer", None)
        return named() if callable(named) else self.stem  # pyright: ignore[reportReturnType]

    def _count(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        self.meter.forward += len(args[0])

    def forward(self, x: Tensor) -> Tensor:
        return self.net(_Count.apply(x + self.tap, self.meter))


def promised(cost: str, k: int, threats: int = 1) -> tuple[int, int]:
    """Forwards and backwards of a cost such as "(2K+1)F + 2B", at K = k; of "mF + mB" those of one replay.

    p is the number of threats.

    What qualifies the cost ("at most", "<=", "k to K") is left to the caller; a small k is K there.
    """
    text = re.sub(r"^<= | at most$|, k to K$", "", cost).replace("k", "K").replace("mF + mB", "1F + 1B")
    found = re.fullmatch(r"(\S+)F \+ (\S+)B", text)
    assert found is not None, cost
    numbers = []
    for term in found.groups():
        assert re.fullmatch(r"\d+|\((\d*p?K)(\+(\d*K|\d+|p))*\)", term), cost
        spelt = re.sub(r"(?<=[\dp])(?=[pK])", "*", term)
        numbers.append(eval(spelt, {"__builtins__": {}}, {"K": k, "p": threats}))
    return numbers[0], numbers[1]
