"""Tensors of one value that are kept between steps, so that a device is not asked to fill them each time."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["filled_like"]

KEPT = 16

_kept: dict[tuple[torch.Size, torch.dtype, torch.device, float], Tensor] = {}


def filled_like(values: Tensor, value: float) -> Tensor:
    """A tensor of the shape, type and device of another, with one value everywhere, without graph.

    To be read, not written to: another caller may hold the same one. One that was written to all the same is
    given to nobody else.

    Example:
        >>> filled_like(torch.tensor([3.0, 4.0]), 1.0)
        tensor([1., 1.])
    """
    key = values.shape, values.dtype, values.device, value
    found = _kept.get(key)
    if found is None or found._version or found.requires_grad:
        with torch.inference_mode(False):  # such tensors do not count what is written
            found = torch.full(values.shape, value, dtype=values.dtype, device=values.device)
        _kept.pop(key, None)
        while len(_kept) >= KEPT:
            del _kept[next(iter(_kept))]
        _kept[key] = found
    return found
