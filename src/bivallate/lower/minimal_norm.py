"""Attacks that look for the smallest perturbation: FMN, DDN, DeepFool, and that of Carlini and Wagner."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bivallate.errors import UserError
from bivallate.lower.fab import NearestPlane
from bivallate.lower.l1 import onto
from bivallate.lower.problem import LowerProblem
from bivallate.lower.solver import Solver
from bivallate.lower.threat import L1, L2, TINY, Linf, dual_norm
from bivallate.parts import part
from bivallate.types import Solution, per_example

__all__ = ["CWL2", "DDN", "FMN", "DeepFool"]

EDGE = 1e-6  # C&W: how far the images are drawn in, so that their hyperbolic arc tangents are finite
MOMENTS = 0.9, 0.999  # of Adam
NUDGE = 1e-3  # DeepFool: share of the sum of all steps by which a step is longer


@dataclass
class _Nearest:
    """The smallest misclassified perturbation of each example so far: zero and infinity before the first."""

    problem: LowerProblem
    delta: Tensor
    size: Tensor

    @classmethod
    def none(cls, problem: LowerProblem) -> _Nearest:
        return cls(
            problem, torch.zeros_like(problem.x), torch.full_like(problem.x.flatten(1)[:, 0], math.inf)
        )

    def look(self, delta: Tensor, logits: Tensor) -> Tensor:
        """(B,) bool, misclassified at delta; the nearest of these are kept."""
        fooled = logits.argmax(1) != self.problem.y
        size = self.problem.threat.size(delta)
        nearer = fooled & (size < self.size)
        self.delta = torch.where(per_example(nearer, delta), delta, self.delta)
        self.size = torch.where(nearer, size, self.size)
        return fooled

    def solution(self, spent: int) -> Solution:
        y = self.problem.y
        return Solution(self.delta, self.delta, torch.zeros_like(y), torch.full_like(y, spent))


def _within(problem: LowerProblem, delta: Tensor) -> Tensor:
    """The nearest delta for which x + delta is an image."""
    return (problem.x + delta).clamp_(0, 1).sub_(problem.x)


def _free(problem: LowerProblem, delta: Tensor, grad: Tensor) -> Tensor:
    """The gradient without the pixels that are at a bound which it would lead them through.

    A move there is cut off, so that neither the boundary's distance nor a step should count on it: on images
    with many black pixels the searches would end short of the boundary.
    """
    image = problem.x + delta
    return torch.where(((image <= 0) & (grad < 0)) | ((image >= 1) & (grad > 0)), 0, grad)


def _unit(grad: Tensor) -> Tensor:
    return grad / per_example(grad.flatten(1).norm(dim=1).clamp(min=TINY), grad)


def _annealed(step: int, steps: int, first: float, last: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * step / steps)) / 2


def _l2_only(name: str, problem: LowerProblem) -> None:
    if not isinstance(problem.threat, L2):
        kind = type(problem.threat).__name__
        other = "fmn" if isinstance(problem.threat, L1) else "fmn or deepfool"
        raise UserError(f"{name} searches the smallest L2 norm, got {kind}; use --norm l2, or {other}")


@part
class FMN(Solver):
    """Fast minimum-norm attack: a step along the gradient, then onto a ball whose radius is searched for.

    The radius is the linearised distance of the boundary until a first misclassified point, and shrinks or
    grows by gamma from there on. The problem's eps plays no part. The answer of an example that was never
    misclassified is zero.

    Attributes:
        steps: K. step_size: alpha_0, in L2 norm; falls to a hundredth.
        gamma, gamma_last: the radius' relative change, first and last.

    Cost: steps forwards and backwards and one forward.

    Deviation: the linearised distance is taken larger by gamma, without which rounding decides whether a
    boundary that is nearly a plane is ever crossed; pixels at a bound are left out of a gradient that leads
    through it; the last point is looked at too.

    Reference: Pintor et al., Fast minimum-norm adversarial attacks, NeurIPS 2021, algorithm 1.
    """

    steps: int = 100
    step_size: float = 1.0
    gamma: float = 0.05
    gamma_last: float = 0.001

    def solve(self, problem: LowerProblem) -> Solution:
        """Solution of the lower problem; see the class."""
        threat = problem.threat
        delta, found = torch.zeros_like(problem.x), _Nearest.none(problem)
        farthest = threat.size(torch.maximum(problem.x, 1 - problem.x))
        radius = torch.full_like(farthest, math.inf)
        for i in range(self.steps):
            logits, grad = problem.ascent(delta)
            fooled = found.look(delta, logits)
            gap = problem.objective(problem, logits).abs()
            grad = _free(problem, delta, grad)
            slope = dual_norm(threat, grad.flatten(1)).clamp(min=TINY)
            gamma = _annealed(i, self.steps, self.gamma, self.gamma_last)
            beyond = torch.where(
                found.size.isinf(), threat.size(delta) + (1 + gamma) * gap / slope, radius * (1 + gamma)
            )  # the boundary's distance, as long as none has been crossed
            radius = torch.where(fooled, torch.minimum(radius * (1 - gamma), found.size), beyond)
            radius = torch.minimum(radius, farthest)
            alpha = _annealed(i, self.steps, self.step_size, self.step_size / 100)
            delta = _onto(problem, delta + alpha * _unit(grad), radius)
        found.look(delta, problem.value(delta)[0])
        return found.solution(self.steps)


def _onto(problem: LowerProblem, delta: Tensor, radius: Tensor) -> Tensor:
    """Images whose perturbations are projected on balls of radius (B,); in L1 on both at once."""
    if isinstance(problem.threat, L1):
        return onto(delta, problem.x, radius)
    if isinstance(problem.threat, Linf):
        most = per_example(radius, delta)
        return _within(problem, torch.minimum(torch.maximum(delta, -most), most))
    norm = delta.flatten(1).norm(dim=1).clamp(min=TINY)
    return _within(problem, delta * per_example((radius / norm).clamp(max=1), delta))


@part
class DDN(Solver):
    """Decoupled direction and norm: a gradient step, then onto a sphere of changing radius.

    The sphere shrinks by gamma when the point is misclassified and grows when it is not. L2 alone.

    Attributes:
        steps: K. radius: of the first sphere. gamma: its relative change.

    Cost: steps forwards and backwards and one forward.

    Deviation: pixels are not rounded to 256 levels; pixels at a bound are left out of a gradient that leads
    through it; the last point is looked at too.

    Reference: Rony et al., Decoupling direction and norm, CVPR 2019, algorithm 1.
    """

    steps: int = 100
    radius: float = 1.0
    gamma: float = 0.05

    def solve(self, problem: LowerProblem) -> Solution:
        """Solution of the lower problem; see the class. Raises UserError unless the threat is L2."""
        _l2_only("ddn", problem)
        x, threat = problem.x, problem.threat
        delta, found = torch.zeros_like(x), _Nearest.none(problem)
        farthest = threat.size(torch.maximum(x, 1 - x))
        radius = torch.full_like(farthest, self.radius)
        for i in range(self.steps):
            logits, grad = problem.ascent(delta)
            fooled, grad = found.look(delta, logits), _free(problem, delta, grad)
            flat = per_example(threat.size(grad) < TINY, grad)
            if bool(flat.any()):
                noise = problem.noise.normal(f"direction/{i}", tuple(x.shape[1:]), x.dtype)
                grad = torch.where(flat, noise, grad)
            radius = torch.minimum(radius * torch.where(fooled, 1 - self.gamma, 1 + self.gamma), farthest)
            delta = delta + _annealed(i, self.steps, 1.0, 0.01) * _unit(grad)
            delta = _within(problem, per_example(radius, delta) * _unit(delta))
        found.look(delta, problem.value(delta)[0])
        return found.solution(self.steps)


@part
class DeepFool(Solver):
    """Steps to the nearest linearised boundary until the class changes. Linf and L2.

    Attributes:
        steps: at most. overshoot: share by which the sum of all steps is longer than it need be.

    Cost: a forward and as many backwards as there are classes a step, and one forward; an example whose
    class has changed moves no more.

    Deviation: a step is longer by a thousandth of the sum so far (the public code: by 0.0001), without which
    steps that the box cuts short come ever nearer to the boundary and never cross it.

    Reference: Moosavi-Dezfooli et al., DeepFool, CVPR 2016, algorithm 2 and eq. 10 to 12.
    """

    steps: int = 50
    overshoot: float = 0.02

    def solve(self, problem: LowerProblem) -> Solution:
        """Solution of the lower problem; see the class."""
        linf, plane = isinstance(problem.threat, Linf), NearestPlane()
        if isinstance(problem.threat, L1):
            raise UserError("deepfool is of Linf and L2, got L1; use fab or fmn")
        total, found = torch.zeros_like(problem.x), _Nearest.none(problem)
        delta = total
        for i in range(self.steps):
            logits, f, w = plane(problem, delta)
            done = found.look(delta, logits)
            if bool(done.all()):
                return found.solution(i + 1)
            norm = dual_norm(problem.threat, w.flatten(1)).clamp(min=TINY)
            length = f.abs() / norm + NUDGE * problem.threat.size(total)
            move = per_example(length, w) * (w.sign() if linf else w / per_example(norm, w))
            total = torch.where(per_example(done, total), total, total + move)
            delta = _within(problem, (1 + self.overshoot) * total)
        found.look(delta, problem.value(delta)[0])
        return found.solution(self.steps)


@part
class CWL2(Solver):
    """The L2 attack of Carlini and Wagner, with a binary search for each example's c.

    Adam on ||delta||^2 + c max(z_y - max_{j != y} z_j, 0), with pixels as (tanh(w) + 1) / 2. L2 alone.

    Attributes:
        steps: of Adam for each c. searches: values of c. first: c at first. rate: Adam's.

    Cost: steps x searches forwards and backwards.

    Deviation: no search is abandoned early; steps are 200 by default for the paper's 10,000.

    Reference: Carlini and Wagner, Towards evaluating the robustness of neural networks, S&P 2017, section
    VI.A.
    """

    steps: int = 200
    searches: int = 9
    first: float = 1e-2
    rate: float = 1e-2

    def solve(self, problem: LowerProblem) -> Solution:
        """Solution of the lower problem; see the class. Raises UserError unless the threat is L2."""
        _l2_only("cw-l2", problem)
        found = _Nearest.none(problem)
        c = torch.full_like(found.size, self.first)
        low, high = torch.zeros_like(c), torch.full_like(c, math.inf)
        for _ in range(self.searches):
            broke = self._descend(problem, c, found)
            low, high = torch.where(broke, low, c), torch.where(broke, c, high)
            c = torch.where(high.isinf(), 10 * c, (low + high) / 2)
        return found.solution(self.steps * self.searches)

    def _descend(self, problem: LowerProblem, c: Tensor, found: _Nearest) -> Tensor:
        """(B,) bool: whether the descent with these c met a misclassified point."""
        w = ((2 * problem.x - 1) * (1 - EDGE)).atanh()
        mean, square = torch.zeros_like(w), torch.zeros_like(w)
        broke = torch.zeros_like(problem.y, dtype=torch.bool)
        a, b = MOMENTS
        for i in range(1, self.steps + 1):
            image = (w.tanh() + 1) / 2
            delta = image - problem.x
            logits, ascent = problem.ascent(delta)
            fooled = found.look(delta, logits)
            broke |= fooled
            pull = per_example(torch.where(fooled, 0, c), delta) * ascent
            grad = (2 * delta - pull) * 2 * image * (1 - image)
            mean, square = torch.lerp(grad, mean, a), torch.lerp(grad.square(), square, b)
            w = w - self.rate * (mean / (1 - a**i)) / ((square / (1 - b**i)).sqrt() + 1e-8)
        return broke
