"""The warm-up of the radius during training.

An untrained network that is attacked within the full radius may learn nothing: it ends by predicting one
class for every image, which no attack can make worse. With a radius that grows from zero it first learns to
classify.
"""

from __future__ import annotations

import dataclasses

from bivallate.errors import UserError
from bivallate.method import BoundMethod
from bivallate.types import Clock


def growth(clock: Clock, share: float, begun: float = 0.0) -> float:
    """Factor of the radius at a minibatch, in (0, 1]; it grows linearly over `share` of all minibatches.

    Args:
        clock: the minibatch.
        share: fraction of the run's minibatches over which the radius grows; 0 for no warm-up.
        begun: fraction of the run's minibatches before the growth begins.

    Example:
        >>> [growth(Clock(step=k, steps=4), 0.5) for k in range(4)]
        [0.5, 1.0, 1.0, 1.0]
    """
    if share <= 0:
        return 1.0
    done = clock.progress + 1 / (clock.steps * clock.epochs) - begun
    return min(1.0, done / share)


def set_radius(method: BoundMethod, factor: float) -> None:
    """Set the radius of the running method's threat to `factor` times the full one.

    The attack's step sizes stay the same; the projection bounds the steps. Raises UserError if the threat
    cannot be made with another radius.
    """
    full = method.spec.threat
    if factor >= 1:
        method.threat = full
        return
    try:
        method.threat = dataclasses.replace(full, eps=factor * full.eps)
    except TypeError as error:
        raise UserError(f"the radius of {full!r} cannot grow: train with --set warm_up=0") from error
