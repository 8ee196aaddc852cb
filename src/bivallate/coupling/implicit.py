"""Couplings: how the solution of the lower level depends on theta.

A coupling returns the solution, whose delta has its value *and* its gradient in theta. The backward pass of
the upper loss then computes the hypergradient; the rest of the step need not know of two levels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from bivallate.errors import UserError
from bivallate.lower.modes import in_train_mode
from bivallate.lower.problem import Graph, LowerProblem
from bivallate.parts import part
from bivallate.roles import Role
from bivallate.types import Solution, per_example

Sensitivity = Callable[[Tensor], Tensor]  # v -> S v, S_i = d delta_i* / d grad_i; v is (B, C, H, W)


class Coupling(Role, ABC):
    """(problem, solution) -> the solution, whose delta (B, C, H, W) has its gradient in theta.

    The value of delta is as the solver left it, or for `LastStep` one more step from there: it makes the
    solver's last step itself, so that the pass for that step is made once.

    `gradient` says which one: "theta", "none", or "leaf": delta is a leaf and collects d loss / d delta.
    """

    gradient: ClassVar[Literal["none", "leaf", "theta"]] = "theta"

    def takes_two_labels(self) -> bool:
        """True: it evaluates the attacker's objective and reads no label itself."""
        return True

    @abstractmethod
    def __call__(self, problem: LowerProblem, solution: Solution) -> Solution: ...


@part
class Detached(Coupling):
    """No gradient: exact at a maximiser of the training loss (Danskin's theorem), assumed by plain AT.

    Cost: none.
    """

    gradient: ClassVar = "none"

    def __call__(self, problem: LowerProblem, solution: Solution) -> Solution:
        return solution


@part
class Leaf(Coupling):
    """Make delta a leaf of autograd: the outer backward pass leaves d loss / d delta in `delta.grad`.

    Theta gets no gradient through it. Solvers that move delta by that gradient read it in `feedback`
    (Free-AT).

    Cost: none.
    """

    gradient: ClassVar = "leaf"

    def __call__(self, problem: LowerProblem, solution: Solution) -> Solution:
        return solution.but(delta=solution.delta.detach().requires_grad_())


class _Transposed(torch.autograd.Function):
    """Forward: `value`. Backward: sensitivity(v) for the incoming gradient v, as the gradient of `grad`."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, value: Tensor, sensitivity: Sensitivity) -> Tensor:
        ctx.sensitivity = sensitivity
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore
        return ctx.sensitivity(grad_outputs[0]), None, None


def with_implicit_gradient(value: Tensor, grad: Tensor, sensitivity: Sensitivity) -> Tensor:
    """Return `value` with the derivative S d(grad)/d theta in theta.

    Args:
        value: (B, C, H, W) the perturbation.
        grad: (B, C, H, W) gradient of the attacker's objective, with graph in theta.
        sensitivity: v -> S v for the symmetric S_i of each example: d delta*/d theta = S_i d grad_i / d
            theta. The lower level *maximises* its objective, so S is minus the inverse of its (damped)
            Hessian, hence positive.
    """
    return _Transposed.apply(grad, value.detach(), sensitivity)  # pyright: ignore[reportReturnType]


class _LogitsWithImplicitGradient(torch.autograd.Function):
    """Logits of a pass shared by coupling and loss, which carry the implicit gradient as well as their own.

    The implicit gradient needs the vector-Jacobian product v = d loss / d delta. If loss and attacker have
    the same objective, the gradient that arrives at the logits is, row by row, a multiple of the attacker's
    own; then v_i is that multiple of grad_i, which is known. Otherwise one more backward pass computes v.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, grad: Tensor, shared: SharedPass) -> Tensor:
        ctx.shared = shared
        return logits.view_as(logits)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore
        return grad_outputs[0], ctx.shared.implicit_part(grad_outputs[0]), None


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
        # divided by its largest entry first, because squares of tiny gradients underflow
        peak = own.abs().amax(1, keepdim=True).clamp(min=number.tiny)
        unit = own / peak
        scale = (arriving * unit).sum(1, keepdim=True) / unit.square().sum(1, keepdim=True).clamp(min=1e-3)
        size = arriving.abs().amax(1)
        rest = (arriving - scale * unit).abs().amax(1)
        near = 1e3 * number.eps * torch.maximum(size, number.eps * size.max())  # up to rounding
        declared = self.problem.sharing.collinear  # then the host need not wait for the comparison
        clock = self.problem.clock
        if declared and clock.epoch == clock.step == 0:
            self._check_declaration(rest, size)
        if declared or not self.problem.anywhere(not bool((rest <= near).all())):
            v = per_example((scale / peak)[:, 0], self.graph.grad) * self.graph.grad.detach()
        else:
            (v,) = torch.autograd.grad(self.graph.logits, self.graph.point, arriving, retain_graph=True)
        return self.sensitivity(v)

    def _check_declaration(self, rest: Tensor, size: Tensor) -> None:
        """Raise UserError if what arrives is far from a multiple of the objective's gradient.

        Args:
            rest: (B,) largest entry of what is left beside the multiple.
            size: (B,) largest entry of what arrives. Rounding is far below the hundredth that is allowed.
        """
        far = rest > 0.01 * torch.maximum(size, 0.001 * size.max())
        if self.problem.anywhere(bool(far.any())):
            objective = type(self.problem.objective).__name__
            raise UserError(
                "the loss declares with `follows` that its gradient at the logits is, for each example, a "
                f"multiple of the objective's ({objective}), and it is not: let `follows` return False for it"
            )


def couple_at_solution(
    problem: LowerProblem, solution: Solution, sensitivity: Callable[[Tensor], Sensitivity]
) -> Solution:
    """Couple delta by d delta / d theta = S d grad / d theta, with grad taken at delta itself.

    If the attack runs with batch statistics, its forward pass at delta is the pass that the loss needs. It is
    then made once, in the upper level's mode (running statistics move). Its logits carry the implicit
    gradient and are a part of the solution that is returned. With dropout or in eval mode the two passes
    differ and are made separately.

    Args:
        problem: created within the context `attacking`.
        solution: the solver's.
        sensitivity: grad (B, C, H, W) -> (v -> S v).
    """
    model, delta = problem.forward.model, solution.delta
    if not (problem.sharing.reuses and isinstance(model, nn.Module) and model.training and not _drops(model)):
        graph = problem.graph(delta)
        problem.forward.passes.backward += len(delta)  # the half of the double backward beyond the logits
        delta = with_implicit_gradient(delta, graph.grad, sensitivity(graph.grad.detach()))
        return solution.but(delta=delta)
    with in_train_mode(model):
        graph = problem.graph(delta)
    # one half of the double backward; the other half is the outer backward itself
    problem.forward.passes.backward += len(delta)
    shared = SharedPass(problem, graph, sensitivity(graph.grad.detach()))
    logits: Tensor = _LogitsWithImplicitGradient.apply(graph.logits, graph.grad, shared)  # pyright: ignore[reportAssignmentType]
    return solution.but(delta=delta.detach(), logits=logits)


def _drops(model: nn.Module) -> bool:
    return any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in model.modules())


detached = Detached()
leaf = Leaf()
