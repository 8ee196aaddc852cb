"""Gradient ascent on a minibatch that shrinks to the examples that still move, for `PGD`.

Attacks that keep a state for each example (APGD, FAB, Square) use `active_examples` instead.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bivallate.lower.problem import LowerProblem

WORTHWHILE = 0.8  # largest fraction to shrink to: the time saved must exceed that of copying the rows


class Compaction:
    """Logits and gradients for the whole minibatch, computed only where they are still needed.

    Rows of examples that have stopped keep the values that they had when they left. The network must treat
    examples independently, so nothing shrinks under train-mode BatchNorm or for a callable that cannot be
    inspected. It never shrinks to a batch of one, which may use other kernels and round differently.

    Deviation: rounding may depend on the size of the batch. Perturbations equal those of the whole minibatch
    except where a gradient is so small that rounding decides its sign.

    Cost: a pass counts, and takes time, only for the examples in the shrunken batch; on CUDA examples leave a
    step later.
    """

    def __init__(self, problem: LowerProblem) -> None:
        self._active = problem
        self._rows: Tensor | None = None
        self._allowed = _independent(problem.forward.model) and not problem.forward.costliest
        self._logits = self._grad = torch.empty(0)
        self._last: tuple[Tensor, Tensor, Any] | None = None

    def logits_and_gradient(self, delta: Tensor, *, signs: bool = False) -> tuple[Tensor, Tensor]:
        """As of `LowerProblem`, at delta (B, C, H, W), with new values only for the remaining rows."""
        if self._rows is None:
            self._logits, self._grad = self._active.logits_and_gradient(delta, signs=signs)
        else:
            logits, grad = self._active.logits_and_gradient(delta[self._rows], signs=signs)
            # not in place, because callers may still hold the earlier tensors
            self._logits = self._logits.index_copy(0, self._rows, logits)
            self._grad = self._grad.index_copy(0, self._rows, grad)
        return self._logits, self._grad

    def shrink(self, problem: LowerProblem, moving: Tensor) -> int:
        """Drop the examples that do not move, if that saves time.

        Args:
            problem: the whole minibatch.
            moving: (B,) bool.

        Returns:
            The number of examples that move; on CUDA that of the step before, which is known without waiting.
        """
        moving, left = self._before(moving) if moving.is_cuda else (moving, int(moving.sum()))
        kept, size = max(left, 2), len(self._active.y)
        if self._allowed and left and kept < size and kept <= WORTHWHILE * size:
            # the moving examples in their order; at least two rows, to avoid a batch of one
            self._rows = moving.to(torch.uint8).argsort(descending=True, stable=True)[:kept]
            self._active = problem.select(self._rows)
        return left

    def _before(self, moving: Tensor) -> tuple[Tensor, int]:
        """Which examples moved at the step before, and how many.

        These numbers have arrived by now. Waiting for the present ones would leave the device without work.
        """
        last, event = self._last, torch.cuda.Event()
        count = moving.sum().to("cpu", non_blocking=True)
        event.record()
        self._last = moving, count, event
        if last is None:
            return moving, len(moving)
        last[2].synchronize()
        return last[0], int(last[1])


def _independent(model: object) -> bool:
    """Whether each example's logits depend on that example alone, judged by the module's BatchNorms."""
    if not isinstance(model, nn.Module):
        return False
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return not any(norm.training or norm.running_mean is None for norm in norms)
