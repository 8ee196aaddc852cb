"""Tolerances and the check of the radius that all threat models share."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bivallate.errors import UserError

__all__ = ["FREE_MARGIN", "TINY", "check_eps", "tiny"]

TINY = 1e-12  # added to norms, or their least value, where they divide: a zero gradient has no direction
FREE_MARGIN = 1e-7  # how far inside its bounds a coordinate must lie to count as free (Fast-BAT's H_C)


def tiny(like: Tensor) -> float:
    """The least normal number of a tensor's type, which divides no gradient by 0 that is not 0 itself."""
    return torch.finfo(like.dtype).tiny


def check_eps(eps: float) -> None:
    """Raise UserError unless a radius is a finite number of at least 0."""
    if not (isinstance(eps, int | float) and math.isfinite(eps) and eps >= 0):
        raise UserError(
            f"eps must be a finite number of at least 0, got {eps!r}; write 8/255 or 0.03, or 0.5 in L2"
        )
