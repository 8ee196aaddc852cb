"""Check whether training has diverged."""

from __future__ import annotations

import torch

from bivallate.lower.modes import evaluating
from bivallate.run.session import Session

PROBED = 16  # training rows whose logits must be finite


def trouble_of(session: Session) -> str:
    """What is not finite in a session, as a message; empty if all is finite.

    The weights, the average, the optimiser's state and the logits of a few training images are checked.

    Cost: reading the weights once, and one forward pass of a few images.
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
