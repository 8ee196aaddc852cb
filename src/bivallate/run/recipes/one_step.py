"""The recipes of the single-step methods' public code.

Deviation: each holds out a tenth of the rows and keeps the epoch that is best there, where that code takes the
last weights or looks at test data.
"""

from __future__ import annotations

import dataclasses

from bivallate.run.config import Config
from bivallate.run.optim import SGD, Cosine, MultiStep, Pieces, Rate, Triangle
from bivallate.run.recipes.task import Task

__all__ = ["RECIPES"]


def fgsm_pgi(task: Task) -> Config:
    """FGSM-PGI: 110 epochs, 0.1 times 0.1, 0.01 at 100, 105; best epoch."""
    rate = MultiStep((100 / 110, 105 / 110))
    return task.config(
        SGD(0.1), rate, epochs=110, colour="resnet18", normalise=True, augment=task.cropped
    )


def gat(task: Task) -> Config:
    """GAT: 100 epochs of batch 64, 0.1 times 0.1, 0.01 at 71, 86; best epoch."""
    return _batches_of_64(task, MultiStep((0.71, 0.86)))


def nuat(task: Task) -> Config:
    """NuAT: 100 epochs of batch 64, lines to 0.1 at 40 and 0.02 at 80, a tenth less at 86, 91; best epoch."""
    return _batches_of_64(task, NUAT)


def elle(task: Task) -> Config:
    """ELLE, AAER, SORA: 30 epochs, triangle to 0.2 at epoch 15; best epoch."""
    return task.config(
        SGD(0.2), Triangle(0.5), epochs=30, colour="preact-resnet18", augment=task.cropped
    )
