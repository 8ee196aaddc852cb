"""Put images on the training device: all of them at the beginning, or each minibatch in one copy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bivallate.data.dataset import Split
from bivallate.data.stream import Stream
from bivallate.errors import UserError

__all__ = ["RESIDENT", "Resident", "resident", "uploaded"]

RESIDENT = ("auto", "always", "never")
SHARE = 0.25  # largest share of the device's free memory that images may take in the mode "auto"
ALIGNED = 16  # bytes; each tensor within the packed buffer begins at a multiple


@dataclass(frozen=True)
class Resident:
    """A split on a device.

    Attributes:
        images: (N, C, H, W) as they are stored, uint8 or float32.
        labels: (N,) int64.
    """

    images: Tensor
    labels: Tensor


def resident(split: Split | None, device: torch.device, wanted: str) -> Resident | None:
    """Copy a split to the device; None if it stays in main memory: on the CPU, or if it does not fit.

    Args:
        wanted: "auto" (on CUDA, up to a quarter of the free memory), "always" or "never".

    Raises:
        UserError: "always" for a streamed split, whose images are decoded as they are needed.
    """
    if split is None or device.type == "cpu" or wanted == "never":
        return None
    if isinstance(split.store, Stream):
        if wanted == "always":
            raise UserError(
                "data.resident=always keeps all images on the device, and these are decoded as they are "
                "needed: use data.resident=auto, or data.stream=never"
            )
        return None
    if wanted == "auto" and not _fits(split, device):
        return None
    images = split.images
    images = images if images.flags.writeable else images.copy()  # torch warns of arrays that it could write
    return Resident(torch.from_numpy(images).to(device), split.labels.to(device))


def _fits(split: Split, device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    size = len(split) * math.prod(split.shape) * np.dtype(split.store.dtype).itemsize
    return size <= SHARE * torch.cuda.mem_get_info(device)[0]


def uploaded(values: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Copy tensors from the CPU to the device in one transfer from pinned memory, without waiting for it.

    Example:
        >>> [t.tolist() for t in uploaded([torch.tensor([1, 2]), torch.tensor([True])], torch.device("cpu"))]
        [[1, 2], [True]]
    """
    if device.type == "cpu":
        return list(values)
    bits = [value.contiguous().flatten().view(torch.uint8) for value in values]
    ends = [0]
    for each in bits:
        ends.append(ends[-1] + -(-len(each) // ALIGNED) * ALIGNED)
    packed = torch.empty(ends[-1], dtype=torch.uint8)
    packed = packed.pin_memory() if device.type == "cuda" else packed
    for each, begin in zip(bits, ends, strict=False):
        packed[begin : begin + len(each)] = each
    there = packed.to(device, non_blocking=True)
    return [
        there[begin : begin + len(each)].view(value.dtype).view(value.shape)
        for value, each, begin in zip(values, bits, ends, strict=False)
    ]
