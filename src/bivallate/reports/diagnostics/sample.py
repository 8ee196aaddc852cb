"""The points that a diagnostic looks at, and the model as it sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bivallate.evaluation.points import points, select
from bivallate.lower.modes import evaluating, frozen
from bivallate.lower.objective import cross_entropy
from bivallate.lower.problem import LowerProblem
from bivallate.lower.threat import ThreatModel
from bivallate.noise import Noise
from bivallate.types import Batch, Clock

BATCH = 256


@dataclass(frozen=True, eq=False)
class Sample:
    """Some rows of some data: x (n, C, H, W), y (n,) and index (n,), the rows."""

    x: Tensor
    y: Tensor
    index: Tensor

    def batches(self, device: torch.device, size: int = BATCH) -> Iterator[Batch]:
        """The points in their order, on a device."""
        for start in range(0, len(self.y), size):
            part = slice(start, start + size)
            yield Batch(self.x[part], self.y[part], self.index[part]).to(device)


def sample(data: Any, n: int | None = None, seed: int = 0, *models: Any) -> Sample:
    """A seeded random subset of at most n points of a split or of a pair (x, y) of tensors; all without n.

    Labels of a split that names its classes are found by name among those of the models.

    Raises:
        UserError: the models name other classes, or one with rows is unknown to them.
    """
    source = points(data, *models)
    rows = select(len(source), None if n is None else min(n, len(source)), None, seed)
    x, y = source.tensors(rows)
    return Sample(x, y, rows)


@contextmanager
def inspected(model: nn.Module) -> Iterator[torch.device]:
    """The model in eval mode with frozen parameters, left as it was found; gives its device."""
    first = next(iter(model.parameters()), torch.zeros(0))
    with evaluating(model), frozen(model):
        yield first.device


def problem_of(
    model: Callable[[Tensor], Tensor], batch: Batch, threat: ThreatModel, seed: int
) -> LowerProblem:
    """max over delta in C(x) of the cross-entropy, with noise of a diagnostic's own."""
    noise = Noise(seed, batch.index, turn=-7)
    return LowerProblem(model, batch, cross_entropy, threat, Clock(seed=seed), noise)
