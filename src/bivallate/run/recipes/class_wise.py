"""The recipes of the class-wise methods' public code.

Deviation: each recipe holds out a tenth of the rows and keeps the epoch with the best mean robust accuracy
there. The public code takes the last weights or chooses on test data, in some cases by the worst class.
"""

from __future__ import annotations

from bivallate.run.config import Config
from bivallate.run.optim import SGD
from bivallate.run.rates import MultiStep
from bivallate.run.recipes.task import Task

__all__ = ["BY_METHOD"]


def faal(task: Task) -> Config:
    """FAAL: 2 epochs of fine-tuning a robust model, at 0.01 and then 0.001; best epoch.

    Begin with the weights of a robust run: `bivallate train faal --init runs/at --recipe faal`.
    """
    sgd = SGD(0.01)
    return task.config(
        sgd, MultiStep((0.5,)), epochs=2, colour="preact-resnet18", normalise=True, augment=task.cropped
    )


def wat(task: Task) -> Config:
    """WAT: 100 epochs, 0.1 times 0.1, 0.01 at 75, 90; weight decay 2e-4; best epoch."""
    sgd = SGD(0.1, weight_decay=2e-4)
    return task.config(sgd, MultiStep((0.75, 0.9)), epochs=100, colour="resnet18", augment=task.cropped)


def cfol(task: Task) -> Config:
    """CFOL: 200 epochs, 0.1 times 0.1, 0.01 at 100, 150; best epoch."""
    return task.config(
        SGD(0.1), MultiStep((0.5, 0.75)), epochs=200, colour="resnet18", normalise=True, augment=task.cropped
    )


def dafa(task: Task) -> Config:
    """DAFA: 110 epochs, 0.1 times 0.1, 0.01 at 100, 105; best epoch."""
    return task.config(
        SGD(0.1), MultiStep((100 / 110, 105 / 110)), epochs=110, colour="resnet18", augment=task.cropped
    )


def cfa(task: Task) -> Config:
    """CFA: 200 epochs, 0.1 times 0.1, 0.01 at 100, 150; best epoch."""
    return task.config(
        SGD(0.1),
        MultiStep((0.5, 0.75)),
        epochs=200,
        colour="preact-resnet18",
        normalise=True,
        augment=task.cropped,
    )


BY_METHOD = {"faal": faal, "wat": wat, "cfol": cfol, "dafa": dafa, "cfa": cfa}
