"""Attacks that search for the smallest perturbation: FMN, DDN, DeepFool, and Carlini and Wagner's."""

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
from bivallate.lower.threat import L1, L2, TINY, Linf, ThreatModel, dual_norm
from bivallate.parts import part
from bivallate.types import Solution, per_example

__all__ = ["CWL2", "DDN", "FMN", "DeepFool"]

EDGE = 1e-6  # C&W: images are scaled by 1 - EDGE about grey, so that their atanh is finite
MOMENTS = 0.9, 0.999  # of Adam
NUDGE = 1e-3  # DeepFool: share of the sum of all steps that is added to a step's length


@dataclass
class _Nearest:
    """The smallest misclassified perturbation of each example so far; before the first: 0, size infinity."""

    problem: LowerProblem
    delta: Tensor
    size: Tensor

    @classmethod
    def none(cls, problem: LowerProblem) -> _Nearest:
        return cls(
            problem, torch.zeros_like(problem.x), torch.full_like(problem.x.flatten(1)[:, 0], math.inf)
        )

    def look(self, delta: Tensor, logits: Tensor) -> Tensor:
        """(B,) bool, misclassified at delta; keep delta where it is smaller than the smallest so far."""
        fooled = logits.argmax(1) != self.problem.y
        size = self.problem.threat.size(delta)
        nearer = fooled & (size < self.size)
        self.delta = torch.where(per_example(nearer, delta), delta, self.delta)
        self.size = torch.where(nearer, size, self.size)
        return fooled

    def solution(self, spent: int) -> Solution:
        y = self.problem.y
        return Solution(self.delta, None, torch.zeros_like(y), torch.full_like(y, spent))


def _within(problem: LowerProblem, delta: Tensor) -> Tensor:
    """The nearest delta for which x + delta is an image."""
    return (problem.x + delta).clamp_(0, 1).sub_(problem.x)


def _free(problem: LowerProblem, delta: Tensor, grad: Tensor) -> Tensor:
    """The gradient, set to 0 where it leads a pixel out of [0, 1].

    Such a move would be cut off, so that neither a step nor the linearised distance of the boundary may
    include it: on images with many black pixels the searches would end before the boundary.
    """
    image = problem.x + delta
    return torch.where(((image <= 0) & (grad < 0)) | ((image >= 1) & (grad > 0)), 0, grad)


def _unit(grad: Tensor) -> Tensor:
    return grad / per_example(grad.flatten(1).norm(dim=1).clamp(min=TINY), grad)


def _annealed(step: int, steps: int, first: float, last: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * step / steps)) / 2


def _l2_only(name: str, threat: ThreatModel) -> None:
    if not isinstance(threat, L2):
        kind = type(threat).__name__
        other = "fmn" if isinstance(threat, L1) else "fmn or deepfool"
        raise UserError(f"{name} searches the smallest L2 norm, got {kind}; use --norm l2, or {other}")


@part
class FMN(Solver):
    """Fast minimum-norm attack: a step along the gradient, then a projection on a ball of changing radius.

    Until the first misclassified point the radius is the linearised distance of the boundary; from there on
    it shrinks or grows by the factor gamma. The problem's eps is not used. The result of an example that was
    never misclassified is zero.

    Attributes:
        steps: K.
        step_size: alpha_0, in L2 norm; it falls to a hundredth.
        gamma, gamma_last: relative change of the radius at the first and at the last step.

    Cost: steps forwards and backwards and one forward.

    Deviation: the linearised distance is enlarged by gamma; otherwise rounding decides whether a nearly plane
    boundary is ever crossed. The gradient is set to 0 where it leads a pixel out of [0, 1]. The last point is
    tested too.

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
            logits, grad = problem.logits_and_gradient(delta)
            fooled = found.look(delta, logits)
            gap = problem.objective(problem, logits).abs()
            grad = _free(problem, delta, grad)
            slope = dual_norm(threat, grad.flatten(1)).clamp(min=TINY)
            gamma = _annealed(i, self.steps, self.gamma, self.gamma_last)
            beyond = torch.where(
                found.size.isinf(), threat.size(delta) + (1 + gamma) * gap / slope, radius * (1 + gamma)
            )  # the linearised distance of the boundary, until the first crossing
            radius = torch.where(fooled, torch.minimum(radius * (1 - gamma), found.size), beyond)
            radius = torch.minimum(radius, farthest)
            alpha = _annealed(i, self.steps, self.step_size, self.step_size / 100)
            delta = _onto(problem, delta + alpha * _unit(grad), radius)
        found.look(delta, problem.value(delta)[0])
        return found.solution(self.steps)


def _onto(problem: LowerProblem, delta: Tensor, radius: Tensor) -> Tensor:
    """Project perturbations on balls of radius (B,), then on the box; in L1 on their intersection."""
    if isinstance(problem.threat, L1):
        return onto(delta, problem.x, radius)
    if isinstance(problem.threat, Linf):
        most = per_example(radius, delta)
        return _within(problem, torch.minimum(torch.maximum(delta, -most), most))
    norm = delta.flatten(1).norm(dim=1).clamp(min=TINY)
    return _within(problem, delta * per_example((radius / norm).clamp(max=1), delta))


@part
class DDN(Solver):
    """Decoupled direction and norm: a gradient step, then a projection on a sphere of changing radius.

    The radius shrinks by gamma when the point is misclassified and grows when it is not. L2 only.

    Attributes:
        steps: K.
        radius: of the first sphere.
        gamma: relative change of the radius.

    Cost: steps forwards and backwards and one forward.

    Deviation: pixels are not rounded to 256 levels. The gradient is set to 0 where it leads a pixel out of
    [0, 1]. The last point is tested too.

    Reference: Rony et al., Decoupling direction and norm, CVPR 2019, algorithm 1.
    """

    steps: int = 100
    radius: float = 1.0
    gamma: float = 0.05

    def check_threat(self, threat: ThreatModel) -> None:
        """Raise UserError unless it is L2."""
        _l2_only("ddn", threat)

    def solve(self, problem: LowerProblem) -> Solution:
        """Solution of the lower problem; see the class. Raises UserError unless the threat is L2."""
        self.check_threat(problem.threat)
        x, threat = problem.x, problem.threat
        delta, found = torch.zeros_like(x), _Nearest.none(problem)
        farthest = threat.size(torch.maximum(x, 1 - x))
        radius = torch.full_like(farthest, self.radius)
        for i in range(self.steps):
            logits, grad = problem.logits_and_gradient(delta)
            fooled, grad = found.look(delta, logits), _free(problem, delta, grad)
            flat = per_example(threat.size(grad) < TINY, grad)
            if x.device.type != "cpu" or bool(flat.any()):  # drawing costs a device less than the answer
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
        steps: largest number of steps.
        overshoot: share by which the sum of all steps is lengthened.

    Cost: a forward and a backward for each class at every step, and one forward. An example whose class has
    changed does not move any more.

    Deviation: a step is lengthened by a thousandth of the sum so far (the public code: by 0.0001). Otherwise
    steps that the box cuts short approach the boundary and never cross it.

    Reference: Moosavi-Dezfooli et al., DeepFool, CVPR 2016, algorithm 2 and eq. 10 to 12.
    """

    steps: int = 50
    overshoot: float = 0.02

    def check_threat(self, threat: ThreatModel) -> None:
        """Raise UserError for L1."""
        if isinstance(threat, L1):
            raise UserError("deepfool is of Linf and L2, got L1; use fab or fmn")

    def solve(self, problem: LowerProblem) -> Solution:
        """Solution of the lower problem; see the class."""
        self.check_threat(problem.threat)
        linf, plane = isinstance(problem.threat, Linf), NearestPlane()
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

    Adam minimises ||delta||^2 + c max(z_y - max_{j != y} z_j, 0), with pixels as (tanh(w) + 1) / 2. L2 only.

    Attributes:
        steps: of Adam for each c.
        searches: number of values of c.
        first: first c.
        rate: Adam's learning rate.

    Cost: steps x searches forwards and backwards.

    Deviation: no search is ended early; the default is 200 steps, the paper's 10,000.

    Reference: Carlini and Wagner, Towards evaluating the robustness of neural networks, S&P 2017, section
    VI.A.
    """

    steps: int = 200
    searches: int = 9
    first: float = 1e-2
    rate: float = 1e-2

    def check_threat(self, threat: ThreatModel) -> None:
        """Raise UserError unless it is L2."""
        _l2_only("cw-l2", threat)

    def solve(self, problem: LowerProblem) -> Solution:
        """Solution of the lower problem; see the class. Raises UserError unless the threat is L2."""
        self.check_threat(problem.threat)
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
            logits, ascent = problem.logits_and_gradient(delta)
            fooled = found.look(delta, logits)
            broke |= fooled
            pull = per_example(torch.where(fooled, 0, c), delta) * ascent
            grad = (2 * delta - pull) * 2 * image * (1 - image)
            mean, square = torch.lerp(grad, mean, a), torch.lerp(grad.square(), square, b)
            w = w - self.rate * (mean / (1 - a**i)) / ((square / (1 - b**i)).sqrt() + 1e-8)
        return broke
