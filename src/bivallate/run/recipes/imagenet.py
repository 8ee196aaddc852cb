"""The recipe for ImageNet: phases of resolution, batch and rate."""

from __future__ import annotations

import dataclasses

from bivallate.run.config import Config
from bivallate.run.optim import SGD
from bivallate.run.phases import Phase
from bivallate.run.rates import Pieces
from bivallate.run.recipes.task import Task

__all__ = ["imagenet"]


def imagenet(task: Task) -> Config:
    """Wong et al.'s ImageNet: 15 epochs of 128, 224, 288 pixels, batch 512, 224, 128; 0.4 at epoch 1; best.

    The phases end at epochs 6, 12 and 15; from epoch 1 on the rate falls linearly to a tenth within each. On
    other data the image sizes are 4/9, 7/9 and all of the images' own. Weight decay 1e-4.

    Deviation: images are fitted to 288 pixels once, cropped with a padding of 16 and then scaled; the public
    code crops at random from images of 160, 352 and full size. The best epoch is chosen on held-out rows, by
    PGD-50 with one restart, as in `fast`.
    """
    rate = Pieces((0.0, 1 / 15, 6 / 15, 12 / 15, 1.0), (0.0, 1.0, 0.1, 0.01, 0.001))
    sgd = SGD(0.4, weight_decay=1e-4)
    config = task.config(
        sgd, rate, epochs=15, colour="resnet50", normalise=True, watched=50, batch=512, augment=task.cropped
    )
    phases = (Phase(6 / 15, 128 / 288), Phase(12 / 15, 224 / 288, 224 / 512), Phase(1.0, 1.0, 128 / 512))
    if task.known is not None and task.known.name == "imagenet":
        config = config.set("data.size", 288).set("model.stem", "imagenet")
    return dataclasses.replace(config, phases=phases)
