"""The recipes of the single-step methods' public code.

Deviation: each recipe holds out a tenth of the rows and keeps the epoch that is best there. The public code
takes the last weights, chooses on test data, or holds out 1,000 rows.
"""

from __future__ import annotations

import dataclasses

from bivallate.run.config import Config
from bivallate.run.optim import SGD
from bivallate.run.rates import Cosine, MultiStep, Pieces, Rate, Triangle
from bivallate.run.recipes.task import Task

__all__ = ["BY_METHOD"]


def gat(task: Task) -> Config:
    """GAT: 100 epochs of batch 64, 0.1 times 0.1, 0.01 at 71, 86; best epoch."""
    return _by_64(task, MultiStep((0.71, 0.86)))


def nuat(task: Task) -> Config:
    """NuAT: 100 epochs of batch 64, linear to 0.1 at 40, 0.02 at 80, then times 0.1 at 86, 91; best epoch."""
    at = (0.0, 0.4, 0.8, 0.86, 0.86, 0.91, 0.91, 1.0)
    return _by_64(task, Pieces(at, (0.0, 1.0, 0.2, 0.2, 0.02, 0.02, 2e-3, 2e-3)))


def elle(task: Task) -> Config:
    """ELLE and SORA: 30 epochs, triangle to 0.2 at epoch 15; best epoch. For AAER use `n-fgsm`."""
    return task.config(SGD(0.2), Triangle(0.5), epochs=30, colour="preact-resnet18", augment=task.cropped)


def fgsm_pgi(task: Task) -> Config:
    """FGSM-PGI: 110 epochs, 0.1 times 0.1, 0.01 at 100, 105; best epoch."""
    rate = MultiStep((100 / 110, 105 / 110))
    return task.config(SGD(0.1), rate, epochs=110, colour="resnet18", normalise=True, augment=task.cropped)


def liet(task: Task) -> Config:
    """LIET: 100 epochs, half a cosine from 0.1 after a warm-up to epoch 30; best, and averaged (0.9995).

    Deviation: the warm-up is a line from 0, not half a cosine from 0.004.
    """
    rate = Cosine(warm_up=0.3)
    made = task.config(SGD(0.1), rate, epochs=100, colour="resnet18", augment=task.cropped)
    return dataclasses.replace(made, average=0.9995)


def _by_64(task: Task, rate: Rate) -> Config:
    return task.config(SGD(0.1), rate, epochs=100, colour="resnet18", batch=64, augment=task.cropped)


BY_METHOD = {"gat": gat, "nuat": nuat, "elle": elle, "fgsm-pgi": fgsm_pgi, "liet": liet}
