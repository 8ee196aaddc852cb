"""How far two answers of one model to the same images are apart."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["apart"]


def apart(answers: Tensor, logits: Tensor, first: int | None = None) -> float:
    """How far answers are from (B, K) logits, in shares of the largest margin between two classes.

    Rounding of each logit does not count. A class that is masked by a huge number, or a number that is
    added to all logits, changes neither.

    Args:
        first: only these rows have answers.
    """
    likeliest = logits.topk(min(2, logits.shape[1]), 1).values
    margin = (likeliest[:, 0] - likeliest[:, -1] if logits.shape[1] > 1 else likeliest[:, 0]).abs().amax()
    expected = logits[:first]
    rounding = 16 * torch.finfo(expected.dtype).eps * expected.abs()
    return float(((answers - expected).abs() - rounding).clamp(min=0).amax() / margin.clamp(min=1e-30))
