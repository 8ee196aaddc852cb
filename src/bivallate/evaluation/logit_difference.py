"""Whether two answers are of one model, and how far they are apart."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from bivallate.errors import UserError

__all__ = ["SAMPLE", "another_model", "apart", "of_one_model", "same_values"]

SAMPLE = 8  # number of points whose logits identify a model
SAME = 1e-4  # tolerance relative to the largest logit: above rounding by batch size, threads or device


def of_one_model(kept: Tensor, sample: Tensor) -> bool:
    """Whether (k, K) logits of the same few points agree up to rounding, with which a file is recognised."""
    return kept.shape == sample.shape and bool((kept - sample).abs().max() <= SAME * kept.abs().max())


def apart(answers: Tensor, logits: Tensor, first: int | None = None) -> float:
    """How far answers are from (B, K) logits, in shares of the largest margin between two classes.

    Rounding of each logit does not count. A class that is masked by a huge number, or a number that is
    added to all logits, changes neither.

    Args:
        first: only these rows have answers.
    """
    answers, logits = (t if t.is_floating_point() else t.float() for t in (answers, logits))
    likeliest = logits.topk(min(2, logits.shape[1]), 1).values
    margin = (likeliest[:, 0] - likeliest[:, -1] if logits.shape[1] > 1 else likeliest[:, 0]).abs().amax()
    expected = logits[:first]
    rounding = 16 * torch.finfo(expected.dtype).eps * expected.abs()
    return float(((answers - expected).abs() - rounding).clamp(min=0).amax() / margin.clamp(min=1e-30))


def another_model(file: str | os.PathLike[str]) -> UserError:
    """The error for a file of unfinished work that was begun with another model."""
    return UserError(
        f"{os.fspath(file)} was begun with another model: its logits on the same points differ. A model that "
        "is random cannot be told from another, nor be resumed. Delete the file or name another one"
    )


def same_values(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same values, NaN included."""
    return torch.equal(one, other) or bool(((one == other) | ((one != one) & (other != other))).all())
