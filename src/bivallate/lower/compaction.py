"""Ascent on a minibatch that shrinks to the examples that still move."""

from __future__ import annotations

from typing import Any

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

    Cost: a pass counts, and takes time, only for the examples in the shrunken batch; on CUDA examples leave a
    step later.
    """

    def __init__(self, problem: LowerProblem) -> None:
        self._active = problem
        self._rows: Tensor | None = None
        self._allowed = _independent(problem.forward.model)
        self._logits = self._grad = torch.empty(0)
        self._told: tuple[Tensor, Tensor, Any] | None = None

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
        """Let the examples go that do not move, where that saves time.

        Args:
            problem: the whole minibatch.
            moving: (B,) bool.

        Returns:
            How many move; on CUDA, how many did at the step before, which is known without waiting.
        """
        moving, left = self._before(moving) if moving.is_cuda else (moving, int(moving.sum()))
        kept, size = max(left, 2), len(self._active.y)
        if self._allowed and left and kept < size and kept <= WORTHWHILE * size:
            # those that move, in their order; if one is alone, another keeps it company
            self._rows = moving.to(torch.uint8).argsort(descending=True, stable=True)[:kept]
            self._active = problem.select(self._rows)
        return left

    def _before(self, moving: Tensor) -> tuple[Tensor, int]:
        """Who moved at the step before, and how many: known by now, so that the device need not run dry."""
        told, event = self._told, torch.cuda.Event()
        count = moving.sum().to("cpu", non_blocking=True)
        event.record()
        self._told = moving, count, event
        if told is None:
            return moving, len(moving)
        told[2].synchronize()
        return told[0], int(told[1])


def _independent(model: object) -> bool:
    """Whether each example's logits depend on that example alone, as far as a module's BatchNorms say."""
    if not isinstance(model, nn.Module):
        return False
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return not any(norm.training or norm.running_mean is None for norm in norms)
