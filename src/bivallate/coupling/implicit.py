"""Couplings: how the solution of the lower level depends on theta.

A coupling returns a tensor with the right value *and* the right gradient. Then the backward pass of the upper
loss is the hypergradient, and nothing else in the package needs to know that there are two levels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bivallate.lower.modes import in_train_mode
from bivallate.lower.problem import Graph, LowerProblem
from bivallate.parts import part
from bivallate.roles import Role
from bivallate.types import Solution, per_example

Sensitivity = Callable[[Tensor], Tensor]


class Coupling(Role, ABC):
    """(problem, solution) -> delta (B, C, H, W), with the gradient in theta that it deserves.

    The value is solution.delta, or one more step from there for `LastStep`, which takes the solver's last
    step itself so that its pass is not paid twice.
    """

    def takes_mixed(self) -> bool:
        """It asks for the attacker's objective, and for no label."""
        return True

    @abstractmethod
    def __call__(self, problem: LowerProblem, solution: Solution) -> Tensor: ...


@part
class Detached(Coupling):
    """No gradient: exact at an unconstrained maximiser of the training loss (Danskin), assumed by plain AT.
    Free."""

    def __call__(self, problem: LowerProblem, solution: Solution) -> Tensor:
        return solution.delta


@part
class Leaf(Coupling):
    """Asks the outer backward pass for d loss / d delta, in `.grad`, which solvers with feedback read.
    Free."""

    def __call__(self, problem: LowerProblem, solution: Solution) -> Tensor:
        return solution.delta.detach().requires_grad_()


class _Transposed(torch.autograd.Function):
    """Identity on the value; the incoming gradient v is replaced by sensitivity(v)."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, value: Tensor, sensitivity: Sensitivity) -> Tensor:
        ctx.sensitivity = sensitivity
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore
        return ctx.sensitivity(grad_outputs[0]), None, None


def with_implicit_gradient(value: Tensor, grad: Tensor, sensitivity: Sensitivity) -> Tensor:
    """`value`, whose derivative in theta is S d(grad)/d theta.

    Args:
        value: (B, C, H, W) the perturbation.
        grad: (B, C, H, W) gradient of the attacker's objective, with graph in theta.
        sensitivity: v -> S v for the symmetric S_i of each example: dlt*/dtheta = S_i d grad_i / d theta.
            With an objective that the lower level *maximises*, S is minus the inverse of its (damped)
            Hessian, hence positive.
    """
    return _Transposed.apply(grad, value.detach(), sensitivity)  # pyright: ignore[reportReturnType]


class _LogitsWithImplicitGradient(torch.autograd.Function):
    """Logits of a pass shared by coupling and loss, which carry the implicit gradient as well as their own.

    The vector-Jacobian product v = d loss / d delta is known without another pass when the gradient that
    arrives at the logits is, row by row, a multiple of the attacker's own (same objective): then v_i is that
    multiple of grad_i. Otherwise it is computed by one more backward pass.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, grad: Tensor, tether: SharedPass) -> Tensor:
        ctx.tether = tether
        return logits.view_as(logits)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore
        return grad_outputs[0], ctx.tether.implicit_part(grad_outputs[0]), None


@dataclass(frozen=True)
class SharedPass:
    """A pass that coupling and loss share: turns a gradient at its logits into the implicit one."""

    problem: LowerProblem
    graph: Graph
    sensitivity: Sensitivity

    def implicit_part(self, arriving: Tensor) -> Tensor:
        """S v for v = J^T arriving, with J = d logits / d delta; (B, C, H, W)."""
        with torch.enable_grad():
            logits = self.graph.logits.detach().requires_grad_()
            own = torch.autograd.grad(self.problem.objective(self.problem, logits).sum(), logits)[0]
        number = torch.finfo(own.dtype)
        peak = own.abs().amax(1, keepdim=True).clamp(min=number.tiny)  # squares of tiny gradients underflow
        unit = own / peak
        scale = (arriving * unit).sum(1, keepdim=True) / unit.square().sum(1, keepdim=True).clamp(min=1e-3)
        size = arriving.abs().amax(1)
        rest = (arriving - scale * unit).abs().amax(1)
        near = 1e3 * number.eps * torch.maximum(size, number.eps * size.max())
        known = self.problem.parallel  # then nobody waits for it
        if known or not self.problem.anywhere(not bool((rest <= near).all())):
            v = per_example((scale / peak)[:, 0], self.graph.grad) * self.graph.grad.detach()
        else:
            (v,) = torch.autograd.grad(self.graph.logits, self.graph.point, arriving, retain_graph=True)
        return self.sensitivity(v)


def couple_at_solution(
    problem: LowerProblem, delta: Tensor, sensitivity: Callable[[Tensor], Sensitivity]
) -> Tensor:
    """Couple delta by d delta / d theta = S d grad / d theta, with grad taken at delta itself.

    Where the attack ran with batch statistics, its forward pass at delta is the pass that the loss needs: it
    is made once, in the upper level's mode (running statistics move), kept, and handed to the loss with the
    implicit gradient tethered to its logits. With dropout or in eval mode the two passes differ, and are made
    separately.

    Args:
        problem: posed within `attacking`.
        delta: (B, C, H, W) the solution.
        sensitivity: grad (B, C, H, W) -> (v -> S v).
    """
    model = problem.forward.model
    if not (problem.share and isinstance(model, torch.nn.Module) and model.training and not _drops(model)):
        graph = problem.graph(delta)
        problem.forward.passes.backward += len(delta)
        return with_implicit_gradient(delta, graph.grad, sensitivity(graph.grad.detach()))
    with in_train_mode(model):
        graph = problem.graph(delta)
    # of the double backward, whose other half is the outer backward itself
    problem.forward.passes.backward += len(delta)
    tether = SharedPass(problem, graph, sensitivity(graph.grad.detach()))
    delta = delta.detach()
    logits: Tensor = _LogitsWithImplicitGradient.apply(graph.logits, graph.grad, tether)  # pyright: ignore[reportAssignmentType]
    problem.hand_on(logits)
    return delta


def _drops(model: torch.nn.Module) -> bool:
    return any(isinstance(m, torch.nn.modules.dropout._DropoutNd) and m.p > 0 for m in model.modules())


detached = Detached()
leaf = Leaf()
