"""Copy several tensors from a device to the CPU in one transfer, so that the host waits for it once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["OneTransfer"]

T = TypeVar("T")


class _Packed:
    """Copies of tensors in one buffer on their device; the tensors may change before it is read."""

    def __init__(self, values: Sequence[Tensor]) -> None:
        self.values = [value.detach() for value in values]
        away = [value for value in self.values if value.device.type != "cpu"]
        # as bytes, tensors of different types fit into one buffer
        held = [value.contiguous().flatten().view(torch.uint8) for value in away]
        self.sizes = [len(each) for each in held]
        self.buffer = torch.cat(held) if held else torch.empty(0, dtype=torch.uint8)

    def unpacked(self, buffer: Tensor) -> list[Tensor]:
        """The tensors, from the buffer on the CPU."""
        parts = iter(buffer.split(self.sizes))
        return [
            value if value.device.type == "cpu" else next(parts).clone().view(value.dtype).view(value.shape)
            for value in self.values
        ]


def _read(packs: Sequence[_Packed]) -> list[list[Tensor]]:
    buffers = [pack.buffer for pack in packs if pack.sizes]
    whole = (torch.cat(buffers) if len(buffers) > 1 else buffers[0]).cpu() if buffers else torch.empty(0)
    parts = iter(whole.split([len(buffer) for buffer in buffers]))
    return [pack.unpacked(next(parts)) if pack.sizes else pack.values for pack in packs]


class OneTransfer:
    """Tensors that come one after another, and are read in one transfer when the first is asked for.

    Example:
        >>> transfer = OneTransfer()
        >>> asked = [transfer.later([torch.tensor(n)], lambda found: int(found[0])) for n in (7, 9)]
        >>> [get() for get in asked]
        [7, 9]
    """

    def __init__(self) -> None:
        self._packs: list[_Packed] = []
        self._makers: list[Callable[[list[Tensor]], Any]] = []
        self._values: list[list[Tensor]] = []
        self._made: list[Any] = []

    def later(self, values: Sequence[Tensor], make: Callable[[list[Tensor]], T]) -> Callable[[], T]:
        """A function that returns what `make` makes of the tensors, on the CPU, without graph, bit for bit.

        The first call of such a function reads all tensors that came so far. What came earlier is made
        earlier, once.

        Args:
            values: tensors of any types, on one device or on the CPU.
        """
        place = len(self._packs)
        self._packs.append(_Packed(values))
        self._makers.append(make)
        return lambda: self._get(place)

    def _get(self, place: int) -> Any:
        if place >= len(self._values):
            self._values += _read(self._packs[len(self._values) :])
        while place >= len(self._made):
            k = len(self._made)
            self._made.append(self._makers[k](self._values[k]))
        return self._made[place]
