"""Distances between two predictions, and the cosine of two gradients, one value an example."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from bivallate.errors import unknown

__all__ = ["DISTANCES", "DistanceName", "check_distance", "cosines", "jensen_shannon", "nuclear"]

DistanceName = Literal["logits", "softmax", "nuclear", "jensen-shannon"]


def logit_gap(a: Tensor, b: Tensor) -> Tensor:
    """(B,) mean over the classes of the squared difference of logits (B, K)."""
    return (a - b).square().mean(1)


def softmax_gap(a: Tensor, b: Tensor) -> Tensor:
    """(B,) squared Euclidean distance of the predictions."""
    return (a.softmax(1) - b.softmax(1)).square().sum(1)


def nuclear(a: Tensor, b: Tensor) -> Tensor:
    """(B,) the nuclear norm of the minibatch's difference of logits, divided equally among the examples.

    The norm is that of all rows together, so that the gradient for an example depends on the others. With
    several processes it is that of each process's rows. It is NaN where a logit is not finite.
    """
    gap = a - b
    finite = gap.isfinite().all()  # the decomposition refuses others
    norm = torch.where(finite, torch.linalg.matrix_norm(torch.where(finite, gap, 0), "nuc"), math.nan)
    return (norm / len(a)).expand(len(a))


def jensen_shannon(a: Tensor, b: Tensor) -> Tensor:
    """(B,) (KL(p || m) + KL(q || m)) / 2, m = (p + q) / 2, of the predictions p and q, in nats."""
    log_p, log_q = a.log_softmax(1), b.log_softmax(1)
    log_m = torch.logaddexp(log_p, log_q) - torch.log(torch.full_like(log_p[:1], 2.0))
    return ((log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)).sum(1)) / 2


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "logits": logit_gap,
    "softmax": softmax_gap,
    "nuclear": nuclear,
    "jensen-shannon": jensen_shannon,
}


def check_distance(name: str) -> None:
    """Raise UserError for an unknown distance."""
    if name not in DISTANCES:
        raise unknown("distance", str(name), DISTANCES)


def cosines(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) cosine of gradients a and b (B, ...), differentiable, and (B,) bool: both are non-zero.

    Where one is zero the cosine is not defined, and the number says nothing: GradAlign leaves such examples
    out, the diagnostic of alignment (`evaluation.geometry`) counts them as 1.
    """
    a, b = a.flatten(1), b.flatten(1)
    defined = (a.detach().norm(dim=1) > 0) & (b.detach().norm(dim=1) > 0)
    # the norm of a zero row has the derivative 0/0: replace zero rows before, not mask them afterwards
    a, b = (torch.where(defined[:, None], g, 1.0) for g in (a, b))
    return (a / a.norm(dim=1, keepdim=True) * (b / b.norm(dim=1, keepdim=True))).sum(1), defined
