"""Copy several tensors from a device to the CPU in one transfer, so that the host waits for it once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["to_cpu"]


def to_cpu(values: Sequence[Tensor]) -> list[Tensor]:
    """Copy tensors to the CPU, without graph and bit for bit, in one transfer.

    Args:
        values: tensors with 32 or 64 bits a number, on one device or on the CPU.

    Example:
        >>> [list(t) for t in map(Tensor.tolist, to_cpu([torch.tensor([7]), torch.tensor([0.5, 0.25])]))]
        [[7], [0.5, 0.25]]
    """
    # as integers of 32 bits, tensors of different types fit into one buffer
    away = [value for value in values if value.device.type != "cpu"]
    bits = [value.detach().contiguous().flatten().view(torch.int32) for value in away]
    parts = iter(torch.cat(bits).cpu().split([len(b) for b in bits]) if bits else ())
    return [
        value.detach()
        if value.device.type == "cpu"
        else next(parts).clone().view(value.dtype).view(value.shape)
        for value in values
    ]
