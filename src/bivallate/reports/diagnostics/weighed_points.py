"""The weights that a method would give to some examples now."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from bivallate.errors import UserError
from bivallate.evidence import gather
from bivallate.lower.objective import cross_entropy
from bivallate.lower.pgd import PGD
from bivallate.lower.problem import LowerProblem
from bivallate.method import BoundMethod
from bivallate.reports.diagnostics.sample import inspected, sample
from bivallate.types import Clock

SIZE = 128  # of the minibatches that are weighed: most rules are relative to their minibatch


@dataclass(frozen=True, eq=False)
class WeighedPoints:
    """What a method makes of some points.

    Attributes:
        index, y: (n,) rows and labels. weights: (n,) divided by their mean. x: (n, C, H, W).
        clean, adversarial: (n, K) softmax. margin: (n,) p_y - max p_k on the adversarial points.
    """

    index: np.ndarray
    y: np.ndarray
    weights: np.ndarray
    x: np.ndarray
    clean: np.ndarray
    adversarial: np.ndarray
    margin: np.ndarray

    @property
    def robust(self) -> np.ndarray:
        """(n,) bool: still correct on the adversarial point."""
        return self.margin > 0


def weigh_points(
    model: nn.Module,
    method: BoundMethod,
    data: Any,
    clock: Clock,
    *,
    n: int | None = None,
    seed: int = 0,
    weighting: Callable[[Any], torch.Tensor] | None = None,
) -> WeighedPoints:
    """The weights of a bound method on some points in minibatches of 128, and what they hang on.

    The points are attacked by the method's own solver where that has no memory, else by PGD-20. Eval mode.
    The network need not be the method's own; `weighting` (evidence -> weights) stands in for the method's.

    Raises:
        UserError: a rule that weighs only what it has just been fitted to.
    """
    columns: list[tuple[torch.Tensor, ...]] = []
    chosen = sample(data, n, seed, model)
    solver, objective = attacker(method)
    with inspected(model) as device:
        for batch in chosen.batches(device, SIZE):
            problem = LowerProblem(model, batch, objective, method.threat, clock)
            solution = solver.solve(problem)
            with torch.no_grad():
                problem = problem.solved(solution, solution.delta)
                terms = method.loss(problem, batch.x + solution.delta)
                evidence = gather(problem, terms, solution)
                weights = weighting(evidence) if weighting is not None else _weights(method, evidence)
                clean, moved = evidence.clean_logits.softmax(1), terms.logits.softmax(1)
            columns.append((weights.float().cpu(), clean.cpu(), moved.cpu(), evidence.margin.cpu()))
    w, clean, moved, margin = (torch.cat(c).numpy() for c in zip(*columns, strict=True))
    mean = float(w.mean())
    w = w / mean if mean > 0 else np.ones_like(w)
    return WeighedPoints(chosen.index.numpy(), chosen.y.numpy(), w, chosen.x.numpy(), clean, moved, margin)


def attacker(method: BoundMethod) -> tuple[Any, Any]:
    """(solver, objective): the method's own if its solver has no memory, else PGD-20 on cross-entropy."""
    if isinstance(method.solver, nn.Module):
        return PGD(20, method.threat.eps / 4), cross_entropy
    return method.solver, method.objective


def _weights(method: BoundMethod, evidence: Any) -> torch.Tensor:
    try:
        return method.weighting(evidence)
    except UserError as error:
        rule = type(method.weighting).__name__
        raise UserError(f"{rule} gives no weights outside a training step: {error}") from error
