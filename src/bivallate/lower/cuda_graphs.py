"""Attacks as CUDA graphs: the steps of a plain gradient loop are recorded once and launched as one graph."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bivallate.lower.forward import Forward
from bivallate.lower.modes import frozen
from bivallate.lower.objective import KLToClean, MarginWeighted
from bivallate.lower.problem import LowerProblem
from bivallate.lower.threat import L2, Linf
from bivallate.types import Batch, Passes

__all__ = ["AttackSteps", "CudaGraphs", "can_be_recorded", "graphing", "make_steps", "parts_are_recordable"]

KEPT = 4  # graphs, each with the memory of an attack: full and last minibatch of first and second stream

_graphs: list[CudaGraphs] = []  # the graphs of the contexts that are entered, innermost last


@dataclass(frozen=True)
class AttackSteps:
    """What the steps of an attack have computed.

    Attributes:
        delta: (B, C, H, W) the point after the last step.
        last_point: (B, C, H, W) the point of the last gradient.
        last_grad: (B, C, H, W) that gradient.
        first_grad: (B, C, H, W) the gradient at the start.
        logits: (steps, B, K) before each step.
    """

    delta: Tensor
    last_point: Tensor
    last_grad: Tensor
    first_grad: Tensor
    logits: Sequence[Tensor]

    def tensors(self) -> tuple[Tensor, ...]:
        """All fields, in their order."""
        return self.delta, self.last_point, self.last_grad, self.first_grad, *self.logits


class StepwiseSolver(Protocol):
    """A solver whose steps depend only on its own fields and on the problem's tensors."""

    @property
    def direction(self) -> Any:
        """The `Direction` of its steps."""
        ...

    def make_steps(self, problem: LowerProblem, start: Tensor) -> AttackSteps:
        """Make all steps."""
        ...

    def steps_key(self) -> Hashable:
        """The fields that the steps depend on."""
        ...


@dataclass(frozen=True)
class Recorded:
    """A recorded graph.

    Attributes:
        graph: torch's.
        inputs: tensors that it reads, to be filled before each launch.
        outputs: tensors that it writes.
        passes: of one launch.
    """

    graph: Any
    inputs: tuple[Tensor, ...]
    outputs: AttackSteps
    passes: Passes

    def launch(self, values: tuple[Tensor, ...], passes: Passes) -> AttackSteps:
        """Run the graph on these values, count its passes, and return copies of its results."""
        for own, value in zip(self.inputs, values, strict=True):
            own.copy_(value)
        self.graph.replay()
        passes.forward += self.passes.forward
        passes.backward += self.passes.backward
        delta, point, last, first, *logits = (value.clone() for value in self.outputs.tensors())
        return AttackSteps(delta, point, last, first, logits)


class CudaGraphs:
    """The graphs of one run's attacks, by all that is fixed in each (`key_of`).

    An attack is recorded when it occurs the second time. The first time warms the device up, and an attack
    that changes every minibatch (a radius that grows) is never recorded. If recording fails, attacks run step
    by step, and the reason is reported once.

    Attributes:
        report: receives the reason if recording fails.
        launches: number of launches of all graphs so far.
    """

    def __init__(self, report: Callable[[str], object] = warnings.warn) -> None:
        self.report, self.launches, self.failed = report, 0, False
        self.kept: OrderedDict[Hashable, Recorded | None] = OrderedDict()
        self._places: tuple[int, ...] = ()

    def make_steps(self, solver: StepwiseSolver, problem: LowerProblem, start: Tensor) -> AttackSteps:
        """Make the solver's steps from start, by a graph if there is one."""
        if self.failed or not can_be_recorded(solver, problem):
            return solver.make_steps(problem, start)
        self._forget_moved(problem.forward.module)
        key, values = key_of(solver, problem, start), inputs(problem, start)
        if key not in self.kept:
            self.kept[key] = None
            while len(self.kept) > KEPT:
                self.kept.popitem(last=False)
            return solver.make_steps(problem, start)
        self.kept.move_to_end(key)
        recorded = self.kept[key]
        if recorded is None:
            try:
                recorded = self.kept[key] = record(solver, problem, values)
            except RuntimeError as error:
                self.failed = True
                self.kept.clear()
                first = (str(error).strip() or type(error).__name__).splitlines()[0]
                self.report(
                    f"graphs: this attack cannot be recorded ({first[:200]}); it goes on step by step"
                )
                return solver.make_steps(problem, start)
        self.launches += 1
        return recorded.launch(values, problem.forward.passes)

    def _forget_moved(self, model: nn.Module) -> None:
        """Drop all graphs if the weights have moved in memory: a graph reads fixed addresses."""
        places = tuple(t.data_ptr() for t in (*model.parameters(), *model.buffers()))
        if places != self._places:
            self.kept.clear()
            self._places = places


def can_be_recorded(solver: StepwiseSolver, problem: LowerProblem) -> bool:
    """Whether an attack reads only what a graph is given: images, labels, clean logits and the network.

    Attacks that move running statistics are excluded, because recording makes extra passes.
    """
    model = problem.forward.model
    if problem.x.device.type != "cuda" or not isinstance(model, nn.Module):
        return False
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
    moving = any(m.training and m.track_running_stats for m in norms)
    plain = type(problem.threat) in (Linf, L2) and problem.batch.mixed is None
    return plain and not moving and parts_are_recordable(solver, problem)


def parts_are_recordable(solver: StepwiseSolver, problem: LowerProblem) -> bool:
    """Whether direction and objective declare that a graph may repeat them, and graphs can be kept by them.

    The declaration `Role.recordable` is not inherited: a class that derives from one of the package's may
    draw numbers or read the clock.
    """
    objective = problem.objective
    inner = objective.objective if isinstance(objective, MarginWeighted) else objective
    if not all(vars(type(each)).get("recordable", False) for each in (solver.direction, inner)):
        return False
    try:
        hash((solver.steps_key(), objective))
    except TypeError:
        return False
    return True


def key_of(solver: StepwiseSolver, problem: LowerProblem, start: Tensor) -> Hashable:
    """All that is fixed in a graph, except the addresses of the weights."""
    model = problem.forward.module
    modes = tuple((m.training, getattr(m, "track_running_stats", None)) for m in model.modules())
    learning = tuple(p.requires_grad for p in model.parameters())
    x = problem.x
    forms = tuple(x.shape), x.dtype, x.stride(), start.dtype, start.stride(), problem.y.dtype
    settings = getattr(model, "autocast_dtype", None), torch.are_deterministic_algorithms_enabled()
    return solver.steps_key(), problem.objective, problem.threat, forms, modes, learning, settings


def inputs(problem: LowerProblem, start: Tensor) -> tuple[Tensor, ...]:
    """Images, labels, start, and clean logits if the objective reads them."""
    objective = problem.objective
    inner = objective.objective if isinstance(objective, MarginWeighted) else objective
    clean = (problem.clean_logits,) if isinstance(inner, KLToClean) else ()
    return problem.x, problem.y, start, *clean


def record(solver: StepwiseSolver, problem: LowerProblem, values: tuple[Tensor, ...]) -> Recorded:
    """Record the graph of an attack, after a run on a side stream, as CUDA requires."""
    own_inputs = tuple(value.detach().clone() for value in values)
    x, y, start, *clean = own_inputs
    forward = Forward(problem.forward.model)  # with its own copies of weights, made anew by each launch

    def make() -> AttackSteps:
        forward.forget_weights()
        own = LowerProblem(
            forward, Batch(x, y, y), problem.objective, problem.threat, problem.clock,
            clean_logits=clean[0] if clean else None,
        )  # fmt: skip
        return solver.make_steps(own, start)

    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        with frozen(problem.forward.model):
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                make()
            torch.cuda.current_stream().wait_stream(aside)
            forward.passes = passes = Passes()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                outputs = make()
    finally:
        torch.set_autocast_cache_enabled(before)
    return Recorded(graph, own_inputs, outputs, passes)


@contextmanager
def graphing(graphs: CudaGraphs | None) -> Iterator[None]:
    """Within, attacks are launched as graphs where possible."""
    if graphs is None:
        yield
        return
    _graphs.append(graphs)
    try:
        yield
    finally:
        _graphs.pop()


def make_steps(solver: StepwiseSolver, problem: LowerProblem, start: Tensor) -> AttackSteps:
    """Make the solver's steps from start; within `graphing` by a graph, where possible."""
    if not _graphs:
        return solver.make_steps(problem, start)
    return _graphs[-1].make_steps(solver, problem, start)
