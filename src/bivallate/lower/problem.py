"""The lower-level problem of one minibatch: its objective, its gradient, its constraint set."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bivallate.lower.asking import ask
from bivallate.lower.modes import frozen, own_statistics
from bivallate.lower.second_order import twice_differentiable
from bivallate.lower.threat import ThreatModel
from bivallate.noise import Noise
from bivallate.types import Batch, Clock, Passes

if TYPE_CHECKING:
    from bivallate.lower.objective import Objective


@dataclass(frozen=True)
class Setting:
    """What a loss may know of the lower problem at whose solution it is asked (GradAlign draws there).

    Attributes:
        x: (B, C, H, W) the problem's clean points: a loss that is asked about others must not use the rest.
        threat, noise: the problem's.
        clean_grad: (B, C, H, W) d objective / d delta at delta = 0, where the attack began there and so has
            paid for it. objective, training: whose gradient that is, and the network's mode.
        coupled: whether the loss's gradient by the perturbation goes on to theta.
    """

    x: Tensor
    threat: ThreatModel
    noise: Noise
    objective: Objective
    clean_grad: Tensor | None = None
    training: bool = False
    coupled: bool = False


class Forward:
    """The network as solvers, couplings and losses call it: counts passes and never pays one twice.

    A forward pass counts when it is made, a backward pass whenever a gradient arrives at the logits of one.
    Parts add only what does not pass there: the second-order half of a double backward, and tangents.

    A model that asks for mixed precision (`autocast_dtype`) has it, but for passes whose gradient by the
    image is used with its size, which rounding takes away where the loss is flat.

    Attributes:
        model: the network, or any callable from (B, C, H, W) to (B, K).
        passes: the count, shared by everything that happens in one step.
        setting: of the lower problem that has been solved, for losses that ask; None before.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        passes: Passes | None = None,
        setting: Setting | None = None,
    ) -> None:
        self.model = model
        self.passes = passes if passes is not None else Passes()
        self.setting = setting
        self._kept: tuple[Tensor, Tensor] | None = None

    def __call__(self, x: Tensor, *, exact: bool = False) -> Tensor:
        """Logits in float32 or better; a pass that was kept for this very tensor is handed out once, then
        forgotten. exact: without mixed precision, as every pass that a coupling's gradient goes through."""
        if self._kept is not None and self._kept[0] is x:
            logits, self._kept = self._kept[1], None
            return logits
        self.passes.forward += len(x)
        exact = exact or (self.setting is not None and self.setting.coupled and x.requires_grad)
        dtype = None if exact else getattr(self.model, "autocast_dtype", None)
        with torch.autocast(x.device.type, dtype) if dtype is not None else nullcontext():
            logits = ask(self.model, x)
        if logits.requires_grad:
            rows, passes = len(x), self.passes

            def arrived(_: Tensor) -> None:
                passes.backward += rows

            logits.register_hook(arrived)
        return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits

    def keep(self, x: Tensor, logits: Tensor) -> None:
        """Remember logits for x: the next call with this very tensor returns them."""
        self._kept = (x, logits)

    def rename(self, old: Tensor, new: Tensor) -> None:
        """Logits kept for `old` are from now on those of `new`."""
        if self._kept is not None and self._kept[0] is old:
            self._kept = (new, self._kept[1])

    @property
    def module(self) -> nn.Module:
        """The network as a module, for parts that need its parameters."""
        if not isinstance(self.model, nn.Module):
            raise TypeError(f"this part needs an nn.Module with parameters, got {type(self.model).__name__}")
        return self.model

    def of(self, model: Callable[[Tensor], Tensor]) -> Forward:
        """Another network whose passes go to the same count (virtual parameters, a perturbed copy)."""
        return Forward(model, self.passes, self.setting)


@dataclass(frozen=True)
class Graph:
    """What `LowerProblem.graph` leaves for the coupling: one forward pass and its gradient, connected."""

    point: Tensor  # (B, C, H, W) leaf
    logits: Tensor  # (B, K) with graph in theta and point
    grad: Tensor  # (B, C, H, W) d objective / d point, with graph in theta and point


class LowerProblem:
    """max over delta in C(x) of objective(theta, delta; x, y): one independent problem per example.

    Attributes:
        forward: the network, counted. batch, x, y, clock, threat, objective: what the problem is made of.
        noise: the draws of these rows at this moment.
        share: whether the upper loss will ask for logits at exactly x + delta, once, so that a coupling may
            make that pass for it.
        log: numbers that parts report about themselves, for the run's record.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor] | Forward,
        batch: Batch,
        objective: Objective,
        threat: ThreatModel,
        clock: Clock | None = None,
        noise: Noise | None = None,
        share: bool = False,
    ) -> None:
        self.share = share
        self.forward = model if isinstance(model, Forward) else Forward(model)
        self.batch, self.x, self.y = batch, batch.x, batch.y
        self.objective, self.threat = objective, threat
        self.clock = clock = clock or Clock()
        self.noise = noise or Noise(clock.seed, batch.index, clock.epoch, clock.replay)
        self.log: dict[str, float] = {}
        self._clean: Tensor | None = None
        self._clean_grad: Tensor | None = None
        self._trained = False

    @property
    def clean_logits(self) -> Tensor:
        """(B, K) logits at delta = 0, without graph, in the mode of the attack; one forward pass, when first
        asked."""
        if self._clean is None:
            with torch.no_grad():
                self._clean = self.forward(self.x, exact=True)
        return self._clean

    @clean_logits.setter
    def clean_logits(self, logits: Tensor) -> None:
        """Logits at delta = 0 that a part has already paid for."""
        self._clean = logits.detach()

    def began_at_zero(self, grad: Tensor) -> None:
        """Keeps the gradient at delta = 0 for losses that need it again."""
        self._clean_grad, self._trained = grad, getattr(self.forward.model, "training", False)

    def project(self, delta: Tensor) -> Tensor:
        """The nearest point of C(x)."""
        return self.threat.project(delta, self.x)

    def ascent(self, delta: Tensor, *, signs: bool = False) -> tuple[Tensor, Tensor]:
        """Logits (B, K) and d objective_i / d delta_i (B, C, H, W), both without graph.

        The gradient is of the *sum* of the objectives, so that an example's gradient does not depend on the
        size of its minibatch. signs: no more than its signs are used, for which the model's mixed precision
        will do. Cost: one forward, one backward, parameters frozen.
        """
        with frozen(self.forward.model):
            graph = self.graph(delta, create_graph=False, signs=signs)
        return graph.logits.detach(), graph.grad

    def graph(self, delta: Tensor, *, create_graph: bool = True, signs: bool = False) -> Graph:
        """The same with the graph kept in theta and delta. Cost: one forward, one backward."""
        objective = self.objective
        with torch.enable_grad():
            point = delta.detach().requires_grad_()
            with ExitStack() as again:
                if create_graph:
                    again.enter_context(own_statistics(self.forward.model))
                    again.enter_context(twice_differentiable())
                logits = self.forward(self.x + point, exact=not signs)
            total = objective(self, logits).sum()
            (grad,) = torch.autograd.grad(total, point, create_graph=create_graph)
        return Graph(point, logits, grad)

    def value(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, K) and objective (B,) without any gradient. Cost: one forward."""
        with torch.no_grad():
            logits = self.forward(self.x + delta)
            return logits, self.objective(self, logits)

    def curvature(self, delta: Tensor) -> Callable[[Tensor], Tensor]:
        """v -> (d^2 objective_i / d delta_i^2) v_i at delta. Cost: one forward and backward now, two
        backwards a product."""
        with frozen(self.forward.model):
            graph = self.graph(delta)

        def product(v: Tensor) -> Tensor:
            if not graph.grad.requires_grad:  # an objective that is linear in delta
                return torch.zeros_like(v)
            self.forward.passes.backward += len(v)
            (hv,) = torch.autograd.grad(graph.grad, graph.point, v, retain_graph=True, materialize_grads=True)
            return hv

        return product

    def adversarial(self, delta: Tensor) -> Tensor:
        """x + delta, recognised by `forward` if a coupling has already made the pass there."""
        mode = self._clean_grad, self._trained
        coupled = delta.requires_grad and not delta.is_leaf  # a leaf is read by its solver alone
        self.forward.setting = Setting(self.x, self.threat, self.noise, self.objective, *mode, coupled)
        x_adv = self.x + delta
        self.forward.rename(delta, x_adv)
        return x_adv

    def but(self, objective: Objective | None = None, threat: ThreatModel | None = None) -> LowerProblem:
        """The same problem with another objective or constraint set; passes are counted together."""
        objective, threat = objective or self.objective, threat or self.threat
        other = LowerProblem(self.forward, self.batch, objective, threat, self.clock, self.noise)
        other._clean, other.log = self._clean, self.log
        return other

    def select(self, rows: Tensor) -> LowerProblem:
        """The problems of some examples: rows is (b,) int64; noise follows the examples."""
        b = self.batch
        view = b.view[rows] if b.view is not None else None
        batch = Batch(b.x[rows], b.y[rows], b.index[rows], view)
        noise = replace(self.noise, index=self.noise.index[rows])
        other = LowerProblem(self.forward, batch, self.objective, self.threat, self.clock, noise)
        other._clean = None if self._clean is None else self._clean[rows]
        other.log = self.log
        return other
