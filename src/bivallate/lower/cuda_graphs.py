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
from bivallate.lower.objective import DLR, CrossEntropy, KLToClean, LogitMargin, Margin, MarginWeighted
from bivallate.lower.problem import LowerProblem
from bivallate.lower.threat import L2, Linf
from bivallate.types import Batch, Passes

__all__ = ["CudaGraphs", "Walk", "graphing", "walked"]

KEPT = 4  # graphs, each with the memory of an attack: full and last minibatch of first and second stream

_graphs: list[CudaGraphs] = []  # the graphs of the contexts that are entered, innermost last

STILL = CrossEntropy, KLToClean, LogitMargin, Margin, DLR  # objectives that read only labels and clean logits


@dataclass(frozen=True)
class Walk:
    """The result of an attack's steps.

    Attributes:
        delta: (B, C, H, W). before: the point of the last gradient. grad: that gradient. first: the gradient
            at the start. said: (steps, B, K) logits before each step.
    """

    delta: Tensor
    before: Tensor
    grad: Tensor
    first: Tensor
    said: Sequence[Tensor]

    def tensors(self) -> tuple[Tensor, ...]:
        """All fields, in their order."""
        return self.delta, self.before, self.grad, self.first, *self.said


class Walker(Protocol):
    """A solver whose steps depend only on its own fields and on the problem's tensors."""

    def walk(self, problem: LowerProblem, start: Tensor) -> Walk:
        """Make all steps."""
        ...

    def walk_key(self) -> Hashable:
        """The fields that the steps depend on."""
        ...


@dataclass(frozen=True)
class Recorded:
    """A recorded graph.

    Attributes:
        given: tensors that it reads, to be filled before each launch. made: tensors that it writes.
        passes: of one launch.
    """

    graph: Any
    given: tuple[Tensor, ...]
    made: Walk
    passes: Passes

    def launch(self, values: tuple[Tensor, ...], passes: Passes) -> Walk:
        """Run the graph on these values, count its passes, and return copies of its results."""
        for given, value in zip(self.given, values, strict=True):
            given.copy_(value)
        self.graph.replay()
        passes.forward += self.passes.forward
        passes.backward += self.passes.backward
        delta, before, grad, first, *said = (value.clone() for value in self.made.tensors())
        return Walk(delta, before, grad, first, said)


class CudaGraphs:
    """The graphs of one run's attacks, by all that is fixed in each (`key_of`).

    An attack is recorded when it occurs the second time. The first time warms the device up, and an attack
    that changes every minibatch (a radius that grows) is never recorded. If recording fails, attacks run step
    by step, and the reason is reported once.

    Attributes:
        tell: receives the reason if recording fails. launches: number of launches of all graphs so far.
    """

    def __init__(self, tell: Callable[[str], object] = warnings.warn) -> None:
        self.tell, self.launches, self.failed = tell, 0, False
        self.kept: OrderedDict[Hashable, Recorded | None] = OrderedDict()
        self._places: tuple[int, ...] = ()

    def walk(self, solver: Walker, problem: LowerProblem, start: Tensor) -> Walk:
        """Make the solver's steps from start, by a graph if there is one."""
        if self.failed or not suits(problem):
            return solver.walk(problem, start)
        self._forget_moved(problem.forward.module)
        key, values = key_of(solver, problem, start), inputs(problem, start)
        if key not in self.kept:
            self.kept[key] = None
            while len(self.kept) > KEPT:
                self.kept.popitem(last=False)
            return solver.walk(problem, start)
        self.kept.move_to_end(key)
        recorded = self.kept[key]
        if recorded is None:
            try:
                recorded = self.kept[key] = record(solver, problem, values)
            except RuntimeError as error:
                self.failed = True
                self.kept.clear()
                first = (str(error).strip() or type(error).__name__).splitlines()[0]
                self.tell(f"graphs: this attack cannot be recorded ({first[:200]}); it goes on step by step")
                return solver.walk(problem, start)
        self.launches += 1
        return recorded.launch(values, problem.forward.passes)

    def _forget_moved(self, model: nn.Module) -> None:
        """Drop all graphs if the weights have moved in memory: a graph reads fixed addresses."""
        places = tuple(t.data_ptr() for t in (*model.parameters(), *model.buffers()))
        if places != self._places:
            self.kept.clear()
            self._places = places


def suits(problem: LowerProblem) -> bool:
    """Whether an attack reads only what a graph is given: images, labels, clean logits and the network.

    Attacks that move running statistics are excluded, because recording makes extra passes.
    """
    model, objective = problem.forward.model, problem.objective
    inner = objective.objective if isinstance(objective, MarginWeighted) else objective
    if problem.x.device.type != "cuda" or not isinstance(model, nn.Module):
        return False
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
    moving = any(m.training and m.track_running_stats for m in norms)
    return type(inner) in STILL and type(problem.threat) in (Linf, L2) and not moving


def key_of(solver: Walker, problem: LowerProblem, start: Tensor) -> Hashable:
    """All that is fixed in a graph, except the addresses of the weights."""
    model = problem.forward.module
    modes = tuple((m.training, getattr(m, "track_running_stats", None)) for m in model.modules())
    learning = tuple(p.requires_grad for p in model.parameters())
    x = problem.x
    forms = tuple(x.shape), x.dtype, x.stride(), start.dtype, start.stride(), problem.y.dtype
    settings = getattr(model, "autocast_dtype", None), torch.are_deterministic_algorithms_enabled()
    return solver.walk_key(), problem.objective, problem.threat, forms, modes, learning, settings


def inputs(problem: LowerProblem, start: Tensor) -> tuple[Tensor, ...]:
    """Images, labels, start, and clean logits if the objective reads them."""
    objective = problem.objective
    inner = objective.objective if isinstance(objective, MarginWeighted) else objective
    clean = (problem.clean_logits,) if isinstance(inner, KLToClean) else ()
    return problem.x, problem.y, start, *clean


def record(solver: Walker, problem: LowerProblem, values: tuple[Tensor, ...]) -> Recorded:
    """Record the graph of an attack, after a run on a side stream, as CUDA requires."""
    given = tuple(value.detach().clone() for value in values)
    x, y, start, *clean = given
    forward = Forward(problem.forward.model)  # with its own cast weights, which each launch casts anew

    def walk() -> Walk:
        forward._cast = []
        own = LowerProblem(
            forward, Batch(x, y, y), problem.objective, problem.threat, problem.clock,
            clean_logits=clean[0] if clean else None,
        )  # fmt: skip
        return solver.walk(own, start)

    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        with frozen(problem.forward.model):
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                walk()
            torch.cuda.current_stream().wait_stream(aside)
            forward.passes = passes = Passes()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                made = walk()
    finally:
        torch.set_autocast_cache_enabled(before)
    return Recorded(graph, given, made, passes)


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


def walked(solver: Walker, problem: LowerProblem, start: Tensor) -> Walk:
    """Make the solver's steps from start, by a graph within `graphing`."""
    return _graphs[-1].walk(solver, problem, start) if _graphs else solver.walk(problem, start)
