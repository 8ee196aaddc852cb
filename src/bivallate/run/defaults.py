"""What a training is where nothing was said: the usual values of its data set, and a batch that fits it."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from bivallate.data import registry
from bivallate.errors import UserError
from bivallate.lower.threat import SUCH_AS, Threat, threat
from bivallate.method import Method
from bivallate.run.config import Config, Data, Model
from bivallate.run.optim import SGD
from bivallate.run.recipes.task import Task
from bivallate.schedule import Milestones

MINIBATCHES = 8  # an epoch of a small set has at least so many
TEMPERATURE = Milestones(values=(10.0, 3.0), at=(2 / 3,))  # r of DONE's weights
LARGE, STEP = 0.25, 1000.0  # radius beyond which Fast-BAT takes this step on MNIST's kind of images
SMALLEST = 8  # images of a minibatch, where there are as many


def defaults(method: Method, data: str, *, fixed: Collection[str] = ()) -> Config:
    """The package's own configuration for a data set by name; what is in it stands in `data.registry`.

    A method that sums the gradients of its replays (YOPO) takes as much smaller a rate, and DONE's
    temperature falls to 3 alone: at the paper's 1 and 0.1 a few images are all that counts, and small
    networks end at chance. Fast-BAT's step in the large balls of MNIST is 1000: a shorter one does not reach
    their bounds once the loss is small, and overfits catastrophically. What was asked for stays, and None is
    the paper's.

    Args:
        fixed: parameters of the method that the user chose.
    """
    usual = registry.training_defaults(data)
    method = _suited(method, data, fixed)
    rate = usual.lr / method.replays if method.accumulate else usual.lr
    return Config(
        method=method,
        data=Data(name=data),
        model=Model(name=usual.model),
        optimizer=SGD(rate),
        warm_up=usual.warm_up,
    )


def threat_on(data: str, norm: str, eps: str | float | None, needed: str) -> Threat:
    """The threat of a norm and a radius; without one, the customary one of a data set by name.

    Raises UserError, which begins with `needed`, where there is none.
    """
    kind = type(threat(norm, 0.0)).__name__
    radius = registry.training_defaults(data).radius(kind) if eps is None else eps
    if radius is None:
        raise UserError(f"{needed}, such as {SUCH_AS[kind]}: {data} has no customary one in {kind}")
    return threat(norm, radius)


def _suited(method: Method, data: str, fixed: Collection[str]) -> Method:
    """DONE with `TEMPERATURE`, Fast-BAT with `STEP`, where nothing was said of these; any other as it is."""
    own = method.made[1] if method.made is not None else ()
    task = Task(method, data, {*fixed, *own})
    steps = ("solver.step_size", "coupling.step_size")
    if task.handwriting and method.threat.eps > LARGE and task.as_made(*steps):
        for step in steps:
            task = task.tuned("step_size", step, STEP)
    return task.tuned("temperature", "weighting.temperature", TEMPERATURE).method


def fitted(config: Config, rows: int) -> Config:
    """The configuration with the batch size that suits so many training rows.

    An eighth of them, but no more than is set and no fewer than `SMALLEST`. For configurations whose batch
    size nobody has chosen.
    """
    most = max(rows // MINIBATCHES, min(SMALLEST, rows))
    if config.method.weighting.needs_meta:  # the second stream, which is set apart, has as many a minibatch
        most = min(most, config.data.meta, rows // 4)
    return dataclasses.replace(config, batch_size=max(1, min(config.batch_size, most)))
