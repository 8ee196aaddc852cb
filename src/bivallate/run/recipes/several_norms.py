"""The recipes of the public code of methods that train under several threats.

Deviation: each recipe holds out a tenth of the rows and keeps the epoch in which most of them withstand every
threat of the training. The public code keeps the weights of its epochs.
"""

from __future__ import annotations

from bivallate.lower.threat import L1, L2, Linf, Threat
from bivallate.run.config import Config
from bivallate.run.optim import SGD
from bivallate.run.rates import MultiStep, Pieces
from bivallate.run.recipes.task import Task

__all__ = ["BY_METHOD"]


def e_at(task: Task) -> Config:
    """E-AT: 3 epochs of fine-tuning a robust model, at 0.01, 0.001, 0.0001; CIFAR-10: L1 12 too; best epoch.

    Begin with the weights of a robust run: `bivallate train e-at --init runs/at --recipe e-at`.

    Deviation: PGD in place of APGD makes the perturbations, and BatchNorm's parameters decay too.
    """
    task = _beside(task, L1(12.0))
    rate = MultiStep((1 / 3, 2 / 3))
    return task.config(SGD(0.01), rate, epochs=3, colour="preact-resnet18", augment=task.cropped)


def msd(task: Task) -> Config:
    """MSD: 50 epochs, linear to 0.1 at 20, 0.005 at 40, 0 at 50; CIFAR-10: L2 0.5, L1 12 too; best epoch.

    Deviation: the attack is the method's own; the public code takes 50 steps, other ones in each norm.
    """
    task = _beside(task, L2(0.5), L1(12.0))
    rate = Pieces((0.0, 0.4, 0.8, 1.0), (0.0, 1.0, 0.05, 0.0))
    return task.config(
        SGD(0.1), rate, epochs=50, colour="preact-resnet18", normalise=True, augment=task.cropped
    )


def _beside(task: Task, *others: Threat) -> Task:
    """Name the papers' other threats, where data and threat are theirs: Linf 8/255 or 0.03 on CIFAR-10."""
    on_its_data = task.known is not None and task.known.name == "cifar10"
    threat = task.method.threat
    if not (on_its_data and isinstance(threat, Linf) and 0.03 <= threat.eps < 0.032):
        return task
    return task.tuned("others", "solver.others", others)


BY_METHOD = {"e-at": e_at, "msd": msd}
