"""One step of a method, frozen so that its hypergradient can be compared with finite differences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from bivallate.evidence import evidence_of
from bivallate.lower.modes import attacking
from bivallate.lower.problem import Graph, LowerProblem
from bivallate.method import BoundMethod, Method
from bivallate.types import Batch, Clock, Evidence, Facts, Solution, Terms
from bivallate.weighting.base import NotFitted

__all__ = ["FrozenStep", "difference", "dot", "like"]


class RecordedProblem(LowerProblem):
    """A lower problem that records each gradient kept with a graph, and the vector that arrives at it."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.points: list[Tensor] = []
        self.arrived: list[Tensor] = []

    def graph(
        self, delta: Tensor, *, create_graph: bool = True, signs: bool = False, keep: bool = False
    ) -> Graph:
        """As `LowerProblem.graph`, and record the gradient."""
        graph = super().graph(delta, create_graph=create_graph, signs=signs, keep=keep)
        trainable = any(p.requires_grad for p in self.forward.module.parameters())
        # Hessian products run with frozen parameters: they have no gradient in theta to record
        if create_graph and trainable and graph.grad.requires_grad:
            k = len(self.points)
            self.points.append(graph.point.detach())
            self.arrived.append(torch.zeros_like(graph.grad))

            def listen(b: Tensor) -> None:
                self.arrived[k] = b.detach().clone()

            graph.grad.register_hook(listen)
        return graph


class FrozenStep:
    """One step in eval mode: its gradient, and the functions of theta that it is compared with."""

    def __init__(self, model: nn.Module, method: Method, batch: Batch, facts: Facts, clock: Clock) -> None:
        self.model, self.method, self.batch, self.facts, self.clock = model, method, batch, facts, clock
        self.problem, self.bound, solution = self._solve()
        terms = self._terms(solution)
        self.solution = _constant(solution)
        evidence = evidence_of(self.problem, terms, self.solution)
        self.bound.weighting.update(evidence)
        self.weights = self._first_weights(evidence)
        self.loss = (self.weights * terms.robust + terms.anchor).mean()
        free = method.threat.interior(self.solution.delta, batch.x).double().mean()
        self.active = 1 - float(free)

    def _solve(self) -> tuple[RecordedProblem, BoundMethod, Solution]:
        bound = self.method.bind(self.facts)
        with attacking(self.model, "eval"):
            problem = RecordedProblem(
                self.model, self.batch, self.method.objective, self.method.threat, self.clock
            )
            solution = bound.coupling(problem, bound.solver.solve(problem))
        return problem, bound, solution

    def _first_weights(self, evidence: Evidence) -> Tensor:
        """The initial weights, which the check holds constant; 1 where they must be learned first."""
        try:
            return self.bound.weighting(evidence)
        except NotFitted:
            return torch.ones_like(evidence.robust)

    def _terms(self, solution: Solution) -> Terms:
        return self.method.loss(self.problem.with_solution(solution), self.batch.x + solution.delta)

    def gradient(self, parameters: list[nn.Parameter]) -> tuple[Tensor, ...]:
        """What the step's one backward pass adds to `.grad`."""
        return torch.autograd.grad(self.loss, parameters, materialize_grads=True)

    def _risk(self, solution: Solution) -> Tensor:
        terms = self._terms(solution)
        weights = self.weights.detach()
        if self.bound.weighting.differentiable:
            evidence = evidence_of(self.problem, terms, self.solution)
            weights = self.bound.weighting(evidence)
        return (weights * terms.robust + terms.anchor).mean()

    def explicit(self) -> Tensor:
        """The loss as a function of theta, with delta* held fixed."""
        return self._risk(self.solution)

    def surrogate(self) -> float:
        """The function whose gradient the method claims to take, to first order; call after `gradient`."""
        total = float(self.explicit().detach())
        for point, b in zip(list(self.problem.points), list(self.problem.arrived), strict=True):
            total += float((self.problem.logits_and_gradient(point)[1] * b).sum())
        return total

    def truth(self) -> float:
        """The loss as a function of theta, with the attack solved anew from the same noise.
        What another network has said (`helper`) is a constant, though in a fresh run it begins as theta."""
        again = _constant(self._solve()[2]).but(helper=self.solution.helper)
        return float(self._risk(again).detach())


def _constant(solution: Solution) -> Solution:
    """The solution without any gradient in theta; what its start holds is a constant of the check."""
    start = solution.start and replace(solution.start, logits=solution.start.logits.detach())
    return solution.but(delta=solution.delta.detach(), start=start, logits=None)


def like(parameter: nn.Parameter, generator: torch.Generator) -> Tensor:
    """A random direction with the norm of the parameter."""
    way = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.device)
    norm = float(parameter.detach().norm())
    return way * ((norm if norm > 0 else 1.0) / max(float(way.norm()), 1e-300))


def dot(a: list[Tensor] | tuple[Tensor, ...], b: list[Tensor] | tuple[Tensor, ...]) -> float:
    """The inner product of two lists of tensors."""
    return sum(float((u * v).sum()) for u, v in zip(a, b, strict=True))


def difference(
    value: Callable[[], float], parameters: list[nn.Parameter], way: list[Tensor], h: float
) -> float:
    """Central difference along a direction; the parameters are restored bit for bit."""
    home = [p.detach().clone() for p in parameters]
    ends = []
    for t in (h, -h):
        with torch.no_grad():
            for p, start, d in zip(parameters, home, way, strict=True):
                p.copy_(start + t * d)
        ends.append(value())
    with torch.no_grad():
        for p, start in zip(parameters, home, strict=True):
            p.copy_(start)
    return (ends[0] - ends[1]) / (2 * h)
