"""Ascent on a minibatch that shrinks to the examples that still move."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bivallate.lower.problem import LowerProblem

WORTHWHILE = 0.8  # shrink to this fraction at most: copying the rows that stay must pay for itself


class Compaction:
    """Logits and gradients for the whole minibatch, computed only where they are still needed.

    Rows of examples that have stopped keep the values they had when they left. The network must treat
    examples independently, so nothing shrinks under train-mode BatchNorm or for a callable that cannot be
    inspected; and never to a batch of one, which may take other kernels and other rounding.

    Deviation: perturbations are the whole minibatch's wherever a gradient's sign stands above rounding, which
    may depend on the size of the batch.

    Cost: a pass counts, and takes time, only for the examples in the shrunken batch.
    """

    def __init__(self, problem: LowerProblem) -> None:
        self._active = problem
        self._rows: Tensor | None = None
        self._allowed = _independent(problem.forward.model)
        self._logits = self._grad = torch.empty(0)

    def ascent(self, delta: Tensor, *, signs: bool = False) -> tuple[Tensor, Tensor]:
        """`LowerProblem.ascent` at delta (B, C, H, W); fresh values for the rows that are left."""
        if self._rows is None:
            self._logits, self._grad = self._active.ascent(delta, signs=signs)
        else:
            logits, grad = self._active.ascent(delta[self._rows], signs=signs)
            # not in place: whoever was given the earlier tensors may still hold them
            self._logits = self._logits.index_copy(0, self._rows, logits)
            self._grad = self._grad.index_copy(0, self._rows, grad)
        return self._logits, self._grad

    def shrink(self, problem: LowerProblem, moving: Tensor) -> int:
        """Lets the examples go that do not move, where that saves time.

        Args:
            problem: the whole minibatch.
            moving: (B,) bool.

        Returns:
            How many move.
        """
        left, size = int(moving.sum()), len(self._active.y)
        kept = max(left, 2)
        if self._allowed and left and kept < size and kept <= WORTHWHILE * size:
            rows = moving.nonzero()[:, 0]
            if left == 1:  # another keeps it company
                rows = torch.cat([rows, (~moving).nonzero()[:1, 0]])
            self._rows, self._active = rows, problem.select(rows)
        return left


def _independent(model: object) -> bool:
    """Whether each example's logits depend on that example alone, as far as a module's BatchNorms say."""
    if not isinstance(model, nn.Module):
        return False
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return not any(norm.training or norm.running_mean is None for norm in norms)
