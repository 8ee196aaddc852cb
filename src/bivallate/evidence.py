"""Evidence of a step: what a weighting may read."""

from __future__ import annotations

import torch
from torch import Tensor

from bivallate.lower.modes import evaluating
from bivallate.lower.problem import LowerProblem
from bivallate.types import Evidence, Solution, Terms


def evidence_of(
    problem: LowerProblem, terms: Terms, solution: Solution, buffers: dict[str, Tensor] | None = None
) -> Evidence:
    """Return the evidence of one step: its values for each example, without graph.

    Clean logits are computed in eval mode, when a weighting first reads them.

    Args:
        problem: with its solution, as the loss has seen it.
        terms: what the loss has returned.
        solution: of the solver, as the coupling has returned it.
        buffers: the network's buffers from before the loss's passes, for the clean logits. A step with a
            lookahead has copied them, and its virtual step sees them too. Without them the clean logits use
            the present running statistics, which the loss's passes have moved: a copy for every step would
            cost more than the difference matters.
    """

    def clean() -> Tensor:
        forward = problem.forward if buffers is None else problem.forward.at(buffers)
        with torch.no_grad(), evaluating(forward.module):
            return forward(problem.x)

    return Evidence(
        robust=terms.robust.detach(),
        logits=terms.logits.detach(),
        y=problem.y,
        index=problem.batch.index,
        kappa=lambda: solution.kappa,
        clock=problem.clock,
        clean=clean,
        attached=terms.logits,
        class_score=solution.class_score,
    )
