"""The cross-entropy with the labels of a minibatch, of which an image may have two (CutMix)."""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor

from bivallate.lower.problem import LowerProblem

__all__ = ["label_loss"]


def label_loss(problem: LowerProblem, logits: Tensor, smoothing: float = 0.0) -> Tensor:
    """(B,) cross-entropy of logits (B, K) with the label, or with both labels by their shares (CutMix).

    Args:
        smoothing: label smoothing s: the target is (1 - s) on the label, plus s / K on every class.
    """
    own, mixed = partial(F.cross_entropy, reduction="none", label_smoothing=smoothing), problem.batch.mixed
    if mixed is None:
        return own(logits, problem.y)
    share = mixed.share.to(logits.dtype)
    return share * own(logits, problem.y) + (1 - share) * own(logits, mixed.y)
