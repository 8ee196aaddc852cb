"""The radius of training over its minibatches.

Against the full radius an untrained network has nothing to learn from: it ends by answering one class
whatever it is shown, which no attack can make worse. A radius that grows lets it learn, then withstand.
"""

from __future__ import annotations

import dataclasses

from bivallate.errors import UserError
from bivallate.method import BoundMethod
from bivallate.types import Clock


def growth(clock: Clock, share: float, begun: float = 0.0) -> float:
    """Factor of the radius at a minibatch, in (0, 1]: linear over `share` of all minibatches.

    Args:
        begun: fraction of the minibatches that lay behind when the radius began to grow.

    Example:
        >>> [growth(Clock(step=k, steps=4), 0.5) for k in range(4)]
        [0.5, 1.0, 1.0, 1.0]
    """
    if share <= 0:
        return 1.0
    done = clock.progress + 1 / (clock.steps * clock.epochs) - begun
    return min(1.0, done / share)


def set_radius(method: BoundMethod, factor: float) -> None:
    """Let the running method attack within a part of its radius.

    Its steps keep their length, and are projected. Raises UserError for a threat that cannot be had with
    another radius.
    """
    full = method.spec.threat
    if factor >= 1:
        method.threat = full
        return
    try:
        method.threat = dataclasses.replace(full, eps=factor * full.eps)
    except TypeError as error:
        raise UserError(f"the radius of {full!r} cannot grow: train with --set warm_up=0") from error
