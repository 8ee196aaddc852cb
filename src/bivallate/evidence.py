"""Gather what a weighting may read from the values that one step has computed."""

from __future__ import annotations

import torch
from torch import Tensor

from bivallate.lower.modes import evaluating
from bivallate.lower.problem import LowerProblem
from bivallate.types import Evidence, Solution, Terms


def gather(
    problem: LowerProblem, terms: Terms, solution: Solution, buffers: dict[str, Tensor] | None = None
) -> Evidence:
    """Gather the evidence of one step, from detached values.

    Clean logits are computed in eval mode when they are first read, with the network's present buffers or
    with `buffers`, a copy from before the outer pass.
    """

    def clean() -> Tensor:
        forward = problem.forward if buffers is None else problem.forward.at(buffers)
        with torch.no_grad(), evaluating(forward.module):
            return forward(problem.x)

    return Evidence(
        loss=terms.robust.detach(),
        logits=terms.logits.detach(),
        y=problem.y,
        index=problem.batch.index,
        kappa=lambda: solution.kappa,
        clock=problem.clock,
        clean=clean,
        attached=terms.logits,
        class_score=solution.class_score,
    )
