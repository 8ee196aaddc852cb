"""The points of a diagnostic, and the model and the lower problem on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bivallate.evaluation.points import as_points, select
from bivallate.lower.modes import evaluating, frozen
from bivallate.lower.objective import cross_entropy
from bivallate.lower.problem import LowerProblem
from bivallate.lower.threat import ThreatModel
from bivallate.noise import Noise
from bivallate.types import Batch, Clock

BATCH = 256


@dataclass(frozen=True, eq=False)
class Sample:
    """Points of a data set.

    Attributes:
        x: (n, C, H, W) images in [0, 1].
        y: (n,) labels.
        index: (n,) rows of the data set.
    """

    x: Tensor
    y: Tensor
    index: Tensor

    def batches(self, device: torch.device, size: int = BATCH) -> Iterator[Batch]:
        """The points as batches on a device, in their order."""
        for start in range(0, len(self.y), size):
            part = slice(start, start + size)
            yield Batch(self.x[part], self.y[part], self.index[part]).to(device)


def sample(data: Any, n: int | None = None, seed: int = 0, *models: Any) -> Sample:
    """Draw a seeded random subset of at most n points of a split or of a pair (x, y) of tensors.

    Without n all points are taken. If the split names its classes, its labels are translated by name into
    those of the models.

    Raises:
        UserError: the models differ in their classes, or do not know a class that has rows.
    """
    source = as_points(data, *models)
    rows = select(len(source), None if n is None else min(n, len(source)), None, seed)
    x, y = source.tensors(rows)
    return Sample(x, y, rows)


@contextmanager
def inspected(model: nn.Module) -> Iterator[torch.device]:
    """Put the model into eval mode with frozen parameters for the context; yield its device."""
    first = next(iter(model.parameters()), torch.zeros(0))
    with evaluating(model), frozen(model):
        yield first.device


def problem_of(
    model: Callable[[Tensor], Tensor], batch: Batch, threat: ThreatModel, seed: int
) -> LowerProblem:
    """The lower problem of maximising the cross-entropy, with noise that nothing else uses."""
    noise = Noise(seed, batch.index, turn=-7)
    return LowerProblem(model, batch, cross_entropy, threat, Clock(seed=seed), noise)
