"""The lower-level problem of one minibatch: its objective, its gradient, its constraint set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bivallate import collective
from bivallate.errors import UserError
from bivallate.lower.forward import Forward
from bivallate.lower.modes import frozen, own_statistics
from bivallate.lower.radii import Radii
from bivallate.lower.second_order import twice_differentiable
from bivallate.lower.synced_batchnorm import is_synchronised
from bivallate.lower.threat import Linf, ThreatModel
from bivallate.noise import Noise
from bivallate.renamed import renamed_methods
from bivallate.roles import Role
from bivallate.types import AttackStart, Batch, Clock, Solution


class Objective(Role, ABC):
    """What the attacker maximises: (problem, logits (B, K)) -> (B,), differentiable in the logits."""

    @abstractmethod
    def __call__(self, problem: LowerProblem, logits: Tensor) -> Tensor: ...


Score = Callable[["LowerProblem", Tensor], Tensor]  # an objective, or any function of its signature


@dataclass(frozen=True)
class Graph:
    """A forward pass and its input gradient, connected by autograd's graph (`LowerProblem.graph`)."""

    point: Tensor  # (B, C, H, W) leaf
    logits: Tensor  # (B, K) with graph in theta and point
    grad: Tensor  # (B, C, H, W) d objective / d point, with graph in theta and point


@dataclass(frozen=True)
class LossPromises:
    """What the loss promises of its pass at the solution, for `couple_at_solution` in coupling/implicit.py.

    Attributes:
        reuses: the loss asks for `logits_at_solution`, once and before any other pass: a coupling may make
            that pass for it.
        collinear: the gradient of `robust` at the logits is, row by row, a multiple of the objective's.
    """

    reuses: bool = False
    collinear: bool = False


@renamed_methods(
    ascent="logits_and_gradient", first_ascent="first_gradient", ascent_at_zero="gradient_at_zero",
    solved="with_solution",
)  # fmt: skip
class LowerProblem:
    """max over delta in C(x) of objective(theta, delta; x, y): one independent problem for each example.

    A loss of the upper level, (problem, x_adv) -> Terms, is handed the same problem, after `with_solution`:
    there it finds network, minibatch, moment, noise and log.

    Attributes:
        forward: the network as a function of x, which counts its passes (`Forward`).
        batch: the minibatch, with its x and y.
        objective: what the attacker maximises.
        threat: the set C(x).
        clock: the moment in the run.
        noise: the draws of these rows at this moment.
        sharing: what the loss promises to a coupling.
        regularised: whether regularisers add to the anchor: not on a second data stream, nor where the anchor
            is not used.
        coupled: whether delta carries a gradient in theta; set by `with_solution`, as the next three are.
        class_score, helper, start: of the solution.
        lr: rates of the update to come, one or by name of a parameter; 0 before the step tells (`Lookahead`).
        log: what parts report for the run's record: numbers, or tensors of one number, which are read
            together at the end of the step, so that no part waits for the device.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor] | Forward,
        batch: Batch,
        objective: Score,
        threat: ThreatModel,
        clock: Clock | None = None,
        noise: Noise | None = None,
        sharing: LossPromises | None = None,
        regularised: bool = True,
        clean_logits: Tensor | None = None,
    ) -> None:
        self.sharing, self.regularised = sharing or LossPromises(), regularised
        self.forward = model if isinstance(model, Forward) else Forward(model)
        self.batch, self.x, self.y, self.objective, self.threat = batch, batch.x, batch.y, objective, threat
        self.clock = clock = clock or Clock()
        self.noise = noise or Noise(clock.seed, batch.index, clock.epoch, clock.replay, batch.population)
        self.lr: float | dict[str, float] = 0.0
        self.log: dict[str, float | Tensor] = {}
        self.class_score: Tensor | None = None
        self.helper: Tensor | None = None
        self.start: AttackStart | None = None
        self._clean = clean_logits
        self._at_solution: Tensor | None = None
        self.coupled = self._asked_at_solution = False
        self._box: tuple[Tensor, Tensor] | None = None
        self._ones: Tensor | None = None

    @property
    def clean_logits(self) -> Tensor:
        """(B, K) logits at delta = 0, without graph. One forward pass, when first asked, and then kept.
        The pass is made in the network's mode at that moment: the attack's if the objective or the solver
        asks; train mode, with dropout and moving BatchNorm's statistics, if a loss is the first to ask.
        Not `Evidence.clean_logits`, which weightings read: those are of another pass, in eval mode."""
        if self._clean is None:
            with torch.no_grad():
                self._clean = self.forward(self.x, exact=True)
        return self._clean

    def logits_at_start(self) -> Tensor:
        """(B, K) logits with graph where the attack began: the solver's pass if kept, else one forward."""
        assert self.start is not None
        kept = self.start.logits
        return kept if kept.requires_grad else self.logits(self.x + self.start.delta)

    def project(self, delta: Tensor) -> Tensor:
        """The nearest point of C(x); a box is computed once."""
        if type(self.threat) is not Linf:
            return self.threat.project(delta, self.x)
        lo, up = self._box = self._box or self.threat.bounds(self.x)
        return torch.clamp(delta, lo, up)

    def logits_and_gradient(self, delta: Tensor, *, signs: bool = False) -> tuple[Tensor, Tensor]:
        """Logits (B, K) and d objective_i / d delta_i (B, C, H, W) at delta, both without graph; no step.
        The gradient is of the *sum* of the objectives, so that an example's gradient does not depend on the
        size of its minibatch. signs: no more than its signs are used, for which the model's mixed precision
        will do. Cost: one forward, one backward, parameters frozen."""
        with frozen(self.forward.model):
            graph = self.graph(delta, create_graph=False, signs=signs)
        return graph.logits.detach(), graph.grad

    def first_gradient(self, delta: Tensor) -> tuple[AttackStart, Tensor]:
        """Where an attack begins, and d objective / d delta there. Cost: one forward, one backward.
        The pass is kept with its graph in theta, so that the loss may go back through it."""
        graph = self.graph(delta, create_graph=False, keep=True)
        return AttackStart(delta, graph.logits), graph.grad

    def gradient_at_zero(self, objective: Score) -> Tensor:
        """The gradient of another objective at delta = 0. Cost: one forward, one backward.
        The logits of its pass are the clean ones, which cost nothing afterwards."""
        self._clean, grad = self.but(objective).logits_and_gradient(torch.zeros_like(self.x))
        return grad

    def graph(
        self, delta: Tensor, *, create_graph: bool = True, signs: bool = False, keep: bool = False
    ) -> Graph:
        """A forward pass at delta and its input gradient, connected by autograd's graph in theta and delta.
        keep: without create_graph, the graph of the forward pass stays. Cost: one forward, one backward."""
        objective = self.objective
        with torch.enable_grad():
            point = delta.detach().requires_grad_()
            with ExitStack() as again:
                if create_graph or keep:
                    again.enter_context(own_statistics(self.forward.model))
                if create_graph:
                    again.enter_context(twice_differentiable())
                logits = self.forward(self.x + point, exact=not signs)
            values = objective(self, logits)
            self._ones = torch.ones_like(values) if self._ones is None else self._ones
            (grad,) = torch.autograd.grad(values, point, self._ones, create_graph or keep, create_graph)
        return Graph(point, logits, grad)

    def value(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, K) and objective (B,) without any gradient. Cost: one forward."""
        with torch.no_grad():
            logits = self.forward(self.x + delta)
            return logits, self.objective(self, logits)

    def curvature(self, delta: Tensor) -> Callable[[Tensor], Tensor]:
        """Hessian-vector products at delta: v -> (d^2 objective_i / d delta_i^2) v_i.
        Cost: one forward and backward now, two backwards a product."""
        with frozen(self.forward.model):
            graph = self.graph(delta)

        def product(v: Tensor) -> Tensor:
            if not graph.grad.requires_grad:  # an objective that is linear in delta
                return torch.zeros_like(v)
            self.forward.passes.backward += len(v)
            (hv,) = torch.autograd.grad(graph.grad, graph.point, v, retain_graph=True, materialize_grads=True)
            return hv

        return product

    def with_solution(self, solution: Solution) -> LowerProblem:
        """A copy of this problem that knows its solution, as the coupling has returned it, for the loss.

        It counts and logs with the original. Where delta carries a gradient in theta, every pass there is
        exact. A leaf carries none: it only collects the gradient that the solver's `feedback` reads.

        Raises:
            UserError: the coupling has returned something else.
        """
        if not isinstance(solution, Solution):
            raise UserError(
                "a coupling returns the solution, with a delta that carries a gradient: return "
                f"solution.but(delta=...), got {type(solution).__name__}"
            )
        other = copy(self)
        other.coupled = solution.delta.requires_grad and not solution.delta.is_leaf
        other.class_score, other.helper = solution.class_score, solution.helper
        other.start, other._at_solution, other._asked_at_solution = solution.start, solution.logits, False
        return other

    def logits(self, x: Tensor, *, exact: bool = False) -> Tensor:
        """(B, K) logits at any points, with graph, in the network's present mode. Cost: one forward."""
        return self.forward(x, exact=exact or (self.coupled and x.requires_grad))

    def logits_at_solution(self, x_adv: Tensor) -> Tensor:
        """Logits at the attacked points, for losses that declare `reuses_forward`.
        A pass that the coupling has made there is handed out, once."""
        shared, self._at_solution, self._asked_at_solution = self._at_solution, None, True
        return self.logits(x_adv) if shared is None else shared

    def check_pass_is_used(self) -> None:
        """Raise UserError if the loss declares that it asks for `logits_at_solution`, and did not.
        A coupling's pass there would be lost with its gradient. Checked with every coupling."""
        if self._at_solution is not None or (self.sharing.reuses and not self._asked_at_solution):
            raise UserError(
                "the loss declares reuses_forward and made its own pass at x_adv, with which a coupling's "
                "gradient is lost: let it ask problem.logits_at_solution(x_adv), or set reuses_forward=False"
            )

    def but(self, objective: Score | None = None, threat: ThreatModel | None = None) -> LowerProblem:
        """The same problem with another objective or constraint set; passes are counted together."""
        other = self._copy(objective=objective or self.objective, threat=threat or self.threat)
        other._clean = self._clean
        return other

    def select(self, rows: Tensor) -> LowerProblem:
        """The problems of some examples: rows is (b,) int64; noise follows the examples."""
        b = self.batch
        view = b.view[rows] if b.view is not None else None
        mixed = b.mixed[rows] if b.mixed is not None else None
        batch = Batch(b.x[rows], b.y[rows], b.index[rows], view, mixed=mixed)
        threat = self.threat.select(rows) if isinstance(self.threat, Radii) else self.threat
        noise = replace(self.noise, index=self.noise.index[rows])
        other = self._copy(batch=batch, noise=noise, threat=threat)
        other.start = None
        other._clean = None if self._clean is None else self._clean[rows]
        return other

    def anywhere(self, flag: bool) -> bool:
        """Whether a condition holds here; with synchronised BatchNorm, whether it holds on any process.
        There passes wait for each other, so a loop has to make equally many on all processes."""
        return collective.any_rank(flag) if is_synchronised(self.forward.network) else flag

    def goes_on(self, flag: bool) -> bool:
        """Whether a loop that may end early goes on; flag: whether anything is left to do here."""
        return self.anywhere(flag) or self.forward.costliest

    def at(self, parameters: dict[str, Tensor]) -> LowerProblem:
        """The same problem with some of the network's parameters and buffers replaced."""
        other = self._copy(model=self.forward.at(parameters))
        other.start = self.start and self.start.at_other_parameters()
        return other

    def unregularised(self) -> LowerProblem:
        """The same problem, marked so that regularisers of the anchor skip it."""
        return self._copy(regularised=False)

    def of_second_stream(self, batch: Batch, noise: Noise) -> LowerProblem:
        """The same problem for a minibatch of the second data stream, with draws and a log of its own."""
        other = self._copy(batch=batch, noise=noise, regularised=False)
        other.coupled, other.log, other.start = False, {}, None
        return other

    def _copy(self, **changes: Any) -> LowerProblem:
        # without `sharing` and the pass at the solution: both are of the one problem that the loss is handed
        arguments: dict[str, Any] = {
            "model": self.forward,
            "batch": self.batch,
            "objective": self.objective,
            "threat": self.threat,
            "clock": self.clock,
            "noise": self.noise,
            "regularised": self.regularised,
        }
        other = LowerProblem(**(arguments | changes))
        other.coupled, other.log = self.coupled, self.log
        other.class_score, other.helper = self.class_score, self.helper
        other.start = self.start
        return other
