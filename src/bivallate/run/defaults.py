"""The default configuration for a data set, and the default batch size for its number of rows."""

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

MINIBATCHES = 8  # least number of minibatches in an epoch of a small set
TEMPERATURE = Milestones(values=(10.0, 3.0), at=(2 / 3,))  # r of DONE's weights
LARGE, STEP = 0.25, 1000.0  # above this radius Fast-BAT takes this step on MNIST and Fashion-MNIST
SMALLEST = 8  # least number of images in a minibatch, if the set has as many


def defaults(method: Method, data: str, *, fixed: Collection[str] = ()) -> Config:
    """The package's own default configuration for a data set by name; its values are in `data.registry`.

    Three values depend on the method:

    * A method that sums the gradients of its replays (YOPO) divides the rate by their number.
    * DONE's temperature falls to 3 only. At the paper's 1 and 0.1 a few images have nearly all of the weight,
      and small networks end at chance.
    * Fast-BAT's step at the large radii of MNIST is 1000. With a shorter step the attack does not reach the
      bounds once the loss is small, and training overfits catastrophically.

    A parameter that the user has set is kept; None stands for the paper's value.

    Args:
        method: the method.
        data: name of the data set.
        fixed: parameters of the method that the user has set.
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
    """The threat of a norm and a radius; without a radius, with the customary one of the data set.

    Raises UserError, which begins with the text `needed`, if the data set has none in this norm.
    """
    kind = type(threat(norm, 0.0)).__name__
    radius = registry.training_defaults(data).radius(kind) if eps is None else eps
    if radius is None:
        raise UserError(f"{needed}, such as {SUCH_AS[kind]}: {data} has no customary one in {kind}")
    return threat(norm, radius)


def _suited(method: Method, data: str, fixed: Collection[str]) -> Method:
    """DONE with `TEMPERATURE`, Fast-BAT with `STEP`, unless the user set these; other methods unchanged."""
    own = method.made[1] if method.made is not None else ()
    task = Task(method, data, {*fixed, *own})
    steps = ("solver.step_size", "coupling.step_size")
    if task.handwriting and method.threat.eps > LARGE and task.as_made(*steps):
        for step in steps:
            task = task.tuned("step_size", step, STEP)
    return task.tuned("temperature", "weighting.temperature", TEMPERATURE).method


def fitted(config: Config, rows: int) -> Config:
    """The configuration with the default batch size for this number of training rows.

    It is an eighth of the rows, but at most the configuration's and at least `SMALLEST`. Call it only if the
    user has not chosen a batch size.
    """
    most = max(rows // MINIBATCHES, min(SMALLEST, rows))
    if config.method.weighting.needs_meta:  # minibatches of the second stream have the same size
        most = min(most, config.data.meta, rows // 4)
    return dataclasses.replace(config, batch_size=max(1, min(config.batch_size, most)))
