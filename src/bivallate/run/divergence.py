"""Whether a state of training is one to go on from."""

from __future__ import annotations

import torch

from bivallate.lower.modes import evaluating
from bivallate.run.session import Session

PROBED = 16  # training rows on which the network must give finite numbers


def trouble_of(session: Session) -> str:
    """What makes a state useless, in words; empty for a good one.

    Weights, averages or an optimiser's memory that are not finite, or a network that gives no finite number
    for training images.

    Cost: one pass over the weights, and one forward of a few images.
    """
    tensors, _ = session.learned()
    for name, value in tensors.items():
        own = not name.startswith("method.") and value.is_floating_point()
        if own and not bool(value.isfinite().all()):
            return f"{name} is not finite"
    rows = torch.arange(min(PROBED, len(session.dataset.train)))
    if not len(rows):
        return ""
    x = session.dataset.train.tensors(rows)[0].to(session.device)
    with evaluating(session.model), torch.no_grad():
        finite = bool(session.model(x).isfinite().all())
    return "" if finite else "the network's outputs are not finite"
