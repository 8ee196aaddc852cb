"""What a training is where nothing was said: the usual values of its data set, and a batch that fits it."""

from __future__ import annotations

import dataclasses

from bivallate.data import registry
from bivallate.method import Method
from bivallate.run.config import Config, Data, Model
from bivallate.run.optim import SGD

MINIBATCHES = 8  # an epoch of a small set has at least so many
SMALLEST = 8  # images of a minibatch, where there are as many


def defaults(method: Method, data: str) -> Config:
    """The package's own configuration for a data set by name; what is in it stands in `data.registry`.

    A method that sums the gradients of its replays (YOPO) takes as much smaller a rate.
    """
    usual = registry.usual(data)
    rate = usual.lr / method.replays if method.accumulate else usual.lr
    return Config(
        method=method,
        data=Data(name=data),
        model=Model(name=usual.model),
        optimizer=SGD(rate),
        warm_up=usual.warm_up,
    )


def fitted(config: Config, rows: int) -> Config:
    """With the batch that suits so many training rows: an eighth of them, but no more than is set and no
    fewer than `SMALLEST`. For configurations whose batch size nobody has chosen."""
    most = max(rows // MINIBATCHES, min(SMALLEST, rows))
    if config.method.weighting.needs_meta:  # the second stream, which is set apart, has as many a minibatch
        most = min(most, config.data.meta, rows // 4)
    return dataclasses.replace(config, batch_size=max(1, min(config.batch_size, most)))
