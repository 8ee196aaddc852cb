"""Dynamic AT with a first FOSC threshold that is estimated from the first minibatch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bivallate import collective
from bivallate.errors import UserError
from bivallate.lower.pgd import PGD, AroundPGD
from bivallate.lower.problem import LowerProblem
from bivallate.lower.solver import Remembering, Solver
from bivallate.lower.stop import Form, FOSCBelow, fosc
from bivallate.parts import part
from bivallate.schedule import Linear
from bivallate.types import Facts, Solution

__all__ = ["EstimatedThreshold", "fgsm_fosc"]


def fgsm_fosc(problem: LowerProblem, form: Form) -> Tensor:
    """(B,) FOSC of the FGSM points: that of a weak attack, and so a scale for the first threshold.

    Cost: two forwards and backwards.

    Reference: Wang et al., Dynamic AT, ICML 2019, section 4, the footnote on c_max.
    """
    threat, origin = problem.threat, torch.zeros_like(problem.x)
    delta = problem.project(threat.eps * threat.steepest(problem.logits_and_gradient(origin)[1]))
    return fosc(form, threat, problem.logits_and_gradient(delta)[1], problem.x, delta)


@part
class EstimatedThreshold(AroundPGD, Remembering):
    """PGD with `FOSCBelow`, whose threshold begins at the mean FOSC of the first minibatch's FGSM points.

    Attributes:
        inner: its stop sets the form of FOSC; the first value of the stop's linear threshold is replaced by
            the estimate.

    If the radius grows in training (`warm_up`), the first radius is small and the estimate too low: give
    c_max then.

    Cost: the inner solver's, and two forwards and backwards an example of the run's first minibatch.
    """

    inner: PGD

    def __post_init__(self) -> None:
        stop = self.inner.stop
        if not (isinstance(stop, FOSCBelow) and isinstance(stop.threshold, Linear)):
            raise UserError("EstimatedThreshold needs a PGD with stop=FOSCBelow(Linear(...))")
        if stop.origin != "clean":
            raise UserError('the threshold is estimated from the clean image: fosc_origin="clean"')

    def bind(self, facts: Facts) -> BoundEstimatedThreshold:
        """Build the estimate for one run."""
        return BoundEstimatedThreshold(self)


class BoundEstimatedThreshold(Solver, nn.Module):
    """The solver with its estimate `c_max` (), which is NaN before the first minibatch."""

    c_max: Tensor

    def __init__(self, rule: EstimatedThreshold) -> None:
        super().__init__()
        self.rule = rule
        self.register_buffer("c_max", torch.full((), torch.nan))  # on the CPU: the host reads it every step

    def solve(self, problem: LowerProblem) -> Solution:
        """Solve by the inner solver; at the first minibatch, estimate the threshold before."""
        inner = self.rule.inner
        stop: Any = inner.stop
        if bool(self.c_max.isnan()):
            self.c_max.copy_(collective.mean(fgsm_fosc(problem, stop.form)))
        problem.log["c_max"] = float(self.c_max)
        threshold = replace(stop.threshold, start=float(self.c_max))
        return replace(inner, stop=replace(stop, threshold=threshold)).solve(problem)
