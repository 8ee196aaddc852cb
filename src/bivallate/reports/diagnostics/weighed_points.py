"""The weights that a method gives to chosen examples, outside of training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from bivallate.errors import UserError
from bivallate.evidence import evidence_of
from bivallate.lower.objective import cross_entropy
from bivallate.lower.pgd import PGD
from bivallate.lower.problem import LowerProblem
from bivallate.method import BoundMethod
from bivallate.reports.diagnostics.sample import inspected, sample
from bivallate.types import Clock

SIZE = 128  # size of the minibatches; most weighting rules depend on the whole minibatch


@dataclass(frozen=True, eq=False)
class WeighedPoints:
    """A method's weights on some points, and what they depend on.

    Attributes:
        index, y: (n,) rows of the data and labels.
        weights: (n,) weights divided by their mean.
        x: (n, C, H, W) images in [0, 1].
        clean, adversarial: (n, K) softmax of the clean and the adversarial points.
        margin: (n,) p_y - max p_k on the adversarial points.
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
        """Whether each adversarial point is classified correctly, (n,) bool."""
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
    """Compute the weights of a bound method on some points, in minibatches of 128.

    The attack is the method's own solver, or PGD-20 if that solver has a memory. The model is in eval mode.

    Args:
        model: the network; it need not be the one that the method has trained.
        method: the bound method.
        data: a split or a pair (x, y) of tensors.
        clock: place in training, for the method's schedules.
        n: largest number of points; None takes all.
        seed: seed of the points.
        weighting: a function from evidence to weights, in place of the method's weighting.

    Raises:
        UserError: the method's rule can weight only the minibatch of the training step that it was fitted in.
    """
    columns: list[tuple[torch.Tensor, ...]] = []
    chosen = sample(data, n, seed, model)
    solver, objective = attacker(method)
    with inspected(model) as device:
        for batch in chosen.batches(device, SIZE):
            problem = LowerProblem(model, batch, objective, method.threat, clock)
            solution = solver.solve(problem)
            with torch.no_grad():
                problem = problem.with_solution(solution)
                terms = method.loss(problem, batch.x + solution.delta)
                evidence = evidence_of(problem, terms, solution)
                weights = weighting(evidence) if weighting is not None else _weights(method, evidence)
                clean, moved = evidence.clean_logits.softmax(1), terms.logits.softmax(1)
            columns.append((weights.float().cpu(), clean.cpu(), moved.cpu(), evidence.margin.cpu()))
    w, clean, moved, margin = (torch.cat(c).numpy() for c in zip(*columns, strict=True))
    mean = float(w.mean())
    w = w / mean if mean > 0 else np.ones_like(w)
    return WeighedPoints(chosen.index.numpy(), chosen.y.numpy(), w, chosen.x.numpy(), clean, moved, margin)


def attacker(method: BoundMethod) -> tuple[Any, Any]:
    """Solver and objective: the method's own if its solver has no memory, else PGD-20 on cross-entropy."""
    if isinstance(method.solver, nn.Module):
        return PGD(20, method.threat.eps / 4), cross_entropy
    return method.solver, method.objective


def _weights(method: BoundMethod, evidence: Any) -> torch.Tensor:
    try:
        return method.weighting(evidence)
    except UserError as error:
        rule = type(method.weighting).__name__
        raise UserError(f"{rule} gives no weights outside a training step: {error}") from error
