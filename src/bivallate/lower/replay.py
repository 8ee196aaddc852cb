"""Solvers for replayed minibatches, which move delta by the gradient of the step's own backward pass."""

from __future__ import annotations

from dataclasses import field, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from bivallate.errors import UserError, check_range, unknown
from bivallate.lower.hooks import HookedOutput
from bivallate.lower.modes import attacking, frozen
from bivallate.lower.problem import LowerProblem
from bivallate.lower.solver import Remembering, Solver, require_coupling
from bivallate.lower.start import Start, uniform
from bivallate.parts import part
from bivallate.roles import Composition
from bivallate.types import Evidence, Facts, Solution


class KeptDelta(nn.Module):
    """The perturbation kept by position in the minibatch, zero at first."""

    delta: Tensor

    def __init__(self, facts: Facts) -> None:
        super().__init__()
        if facts.resizes:
            raise UserError(
                "the kept perturbation is of images of one size: train without phases (--set phases=none)"
            )
        empty = torch.zeros(0, *facts.shape, dtype=facts.dtype, device=facts.device)
        self.register_buffer("delta", empty)
        self.register_load_state_dict_pre_hook(self._resize)

    def _resize(self, module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
        saved = state.get(f"{prefix}delta")
        if saved is not None:
            self.delta = self.delta.new_zeros(saved.shape)

    def first(self, rows: int) -> Tensor:
        """A copy of the first rows, (rows, C, H, W)."""
        missing = rows - len(self.delta)
        if missing > 0:
            self.delta = torch.cat([self.delta, self.delta.new_zeros(missing, *self.delta.shape[1:])])
        return self.delta[:rows].clone()

    def store(self, delta: Tensor) -> None:
        """Overwrite the first rows."""
        self.delta[: len(delta)] = delta


@part
class Free(Remembering):
    """Free-AT: one delta, kept by position from minibatch to minibatch, moved by every outer backward pass.

    The gradient of delta is taken at the parameters before the update of the same pass. A delta that is
    carried over is projected on the new images' set. A short minibatch uses and stores the first rows.

    Attributes:
        step_size: in units of eps.

    Cost: nothing beyond the outer pass.

    Reference: Shafahi et al., NeurIPS 2019, algorithm 1.
    """

    step_size: float = 1.0

    def __post_init__(self) -> None:
        check_range("step_size", self.step_size, 0)

    def stepped(self, length: float, number: float = 1.0) -> Self:
        """Scale the step that follows every backward pass."""
        return replace(self, step_size=length * self.step_size)

    def check(self, method: Composition) -> None:
        """Raise UserError unless the coupling is `Leaf` and every replay updates the parameters."""
        require_coupling(method, self, "leaf")
        super().check(method)
        if method.accumulate:
            raise UserError("Free-AT updates the parameters at every replay: set accumulate=False")

    def bind(self, facts: Facts) -> BoundFree:
        """Build the kept delta for one run."""
        return BoundFree(self, facts)


class BoundFree(Solver, nn.Module):
    """Free-AT's solver with its kept delta."""

    def __init__(self, rule: Free, facts: Facts) -> None:
        super().__init__()
        self.rule, self.kept = rule, KeptDelta(facts)

    def solve(self, problem: LowerProblem) -> Solution:
        """Return the kept delta of the last replay, projected."""
        delta = problem.project(self.kept.first(len(problem.y)))
        none = torch.zeros_like(problem.y)
        return Solution(delta, None, none, none)

    def feedback(self, problem: LowerProblem, delta: Tensor, evidence: Evidence) -> None:
        """delta <- project(delta + step_size * eps * direction(d loss / d delta))."""
        assert delta.grad is not None
        step = self.rule.step_size * problem.threat.eps * problem.threat.steepest(delta.grad)
        self.kept.store(problem.project(delta.detach() + step))


@part
class YOPO(Remembering):
    """YOPO: after each full pass, attack steps through the first layer alone, with a fixed adjoint.

    With f = f_rest o f_0 and p = d loss / d f_0(x + delta) from the outer backward pass, `steps` times
    delta <- project(delta + step_size eps sign grad_delta <p, f_0(x + delta)>); then f_0's parameters receive
    the gradient of <p, f_0(x + delta)> at the new delta.

    Attributes:
        steps: n; 0 leaves delta at its start.
        step_size: in units of eps.
        start: of the first replay of each minibatch.
        first_layer: "hamiltonian" replaces the gradient that f_0's parameters have from the full pass at
            x + delta by that last gradient, as in the paper; "both" adds the two, as in the public code. The
            gradient of other terms of the loss (a clean term, a regulariser) reaches f_0 in either case.

    Cost: n + 2 forwards and backwards of the first layer a replay, n + 1 with "both"; they are not counted as
    passes.

    The model must name its first layer, by a method `first_layer()` (every built-in model) or by an attribute
    `stem`, a module that is applied to the images themselves.

    Reference: Zhang et al., YOPO, NeurIPS 2019, algorithm 1.
    """

    steps: int = 3
    step_size: float = 0.25
    start: Start = field(default=uniform)
    first_layer: Literal["hamiltonian", "both"] = "hamiltonian"

    def __post_init__(self) -> None:
        check_range("first-layer steps", self.steps, 0)
        check_range("step_size", self.step_size, 0)
        if self.first_layer not in ("hamiltonian", "both"):
            raise unknown("treatment of the first layer", str(self.first_layer), ("hamiltonian", "both"))

    def can_be_finer(self) -> bool:
        """True: no schedule sets its number of steps."""
        return True

    def stepped(self, length: float, number: float = 1.0) -> Self:
        """Scale the first-layer steps and those of the start."""
        steps, start = round(number * self.steps), self.start.stepped(length, number)
        return replace(self, steps=steps, step_size=length * self.step_size, start=start)

    def check(self, method: Composition) -> None:
        """Raise UserError for a coupling, or if replays do not accumulate their gradients."""
        require_coupling(method, self, "none")
        super().check(method)
        if method.replays > 1 and not method.accumulate:
            raise UserError("YOPO makes one update from the gradients of all replays: set accumulate=True")

    def bind(self, facts: Facts) -> BoundYOPO:
        """Build the kept delta for one run."""
        return BoundYOPO(self, facts)


class BoundYOPO(Solver, nn.Module):
    """YOPO's solver with the delta that it carries from replay to replay."""

    def __init__(self, rule: YOPO, facts: Facts) -> None:
        super().__init__()
        self.rule, self.kept = rule, KeptDelta(facts)
        self._hooked: HookedOutput | None = None

    def solve(self, problem: LowerProblem) -> Solution:
        """Return a start at the first replay, and at later ones the delta of the first-layer steps."""
        stem, _ = named_first_layer(problem.forward.model)
        if problem.clock.replay == 0:
            delta = problem.project(self.rule.start(problem))
            self.kept.first(len(delta))
            self.kept.store(delta)
        delta = self.kept.first(len(problem.y))
        if self._hooked is not None:  # left over from a step that raised an error
            self._hooked.stop()
        self._hooked = HookedOutput(problem.forward.module, stem, problem.x + delta)
        none = torch.zeros_like(problem.y)
        return Solution(delta, None, none, none)

    def feedback(self, problem: LowerProblem, delta: Tensor, evidence: Evidence) -> None:
        """Make the n steps, then add the first layer's parameter gradient at their end."""
        assert self._hooked is not None
        adjoint, self._hooked = self._hooked.output().grad, None
        assert adjoint is not None
        _, first = named_first_layer(problem.forward.model)
        delta = before = delta.detach()
        size = self.rule.step_size * problem.threat.eps
        with attacking(first, "train"):
            for _ in range(self.rule.steps):
                with frozen(first):
                    point = delta.requires_grad_()
                    (grad,) = torch.autograd.grad((adjoint * first(problem.x + point)).sum(), point)
                delta = problem.project(point.detach() + size * problem.threat.steepest(grad))
            self._give_gradient(first, adjoint, problem.x + before, problem.x + delta)
        self.kept.store(delta)

    def _give_gradient(self, first: nn.Module, adjoint: Tensor, before: Tensor, after: Tensor) -> None:
        """Add the first layer's parameter gradient at `after`, and subtract the full pass's, at `before`."""
        learning = [p for p in first.parameters() if p.requires_grad]
        if not learning:
            return
        # With the adjoint p held fixed, the gradient of <p, f_0> in f_0's parameters is, by the chain rule,
        # what the outer backward has added to `.grad` for the pass at x + delta. Only that is subtracted,
        # instead of setting `.grad` to zero, so that the gradient of a clean term or a regulariser stays.
        with torch.enable_grad():
            hamiltonian = (adjoint * first(after)).sum()
            if self.rule.first_layer == "hamiltonian":
                hamiltonian = hamiltonian - (adjoint * first(before)).sum()
            grads = torch.autograd.grad(hamiltonian, learning)
        for parameter, grad in zip(learning, grads, strict=True):
            parameter.grad = grad if parameter.grad is None else parameter.grad + grad


def named_first_layer(model: object) -> tuple[nn.Module, nn.Module]:
    """(the module inside the model whose output is f_0, f_0 as a module on images).

    Raises:
        UserError: the model does not name its first layer.
    """
    stem = getattr(model, "stem", None)
    if isinstance(stem, nn.Module):
        named = getattr(model, "first_layer", None)
        first = named() if callable(named) else stem
        return stem, first if isinstance(first, nn.Module) else stem
    raise UserError(
        f"YOPO steps through the first layer alone, but {type(model).__name__} does not name it: give the "
        "model an attribute `stem` (and a method `first_layer()` if something comes before it), wrap it as "
        "bivallate.models.Classifier, or choose another method, such as at or free-at"
    )
