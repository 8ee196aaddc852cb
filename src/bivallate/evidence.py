"""Gathers what a weighting may look at, from what one step has computed."""

from __future__ import annotations

import torch
from torch import Tensor

from bivallate.lower.elsewhere import Elsewhere
from bivallate.lower.modes import evaluating
from bivallate.lower.problem import Forward
from bivallate.types import Batch, Clock, Evidence, Solution, Terms


def gather(
    forward: Forward,
    terms: Terms,
    solution: Solution,
    batch: Batch,
    clock: Clock,
    buffers: dict[str, Tensor] | None = None,
) -> Evidence:
    """Evidence of one step: detached values; clean logits in eval mode, computed when first asked, with the
    network's present buffers or those given, of before the outer pass."""

    def clean() -> Tensor:
        network = forward if buffers is None else forward.of(Elsewhere(forward.module, buffers))
        with torch.no_grad(), evaluating(forward.module):
            return network(batch.x)

    return Evidence(
        loss=terms.robust.detach(),
        logits=terms.logits.detach(),
        y=batch.y,
        index=batch.index,
        kappa=solution.kappa,
        clock=clock,
        clean=clean,
        attached=terms.logits,
    )
