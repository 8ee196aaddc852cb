"""Attacks as CUDA graphs: the steps of a plain gradient loop are recorded once, and launched as one."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
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

KEPT = 4  # graphs at once, each with the memory of an attack: minibatch and last one, first stream and second

_graphs: list[CudaGraphs] = []  # what the step at hand may use, innermost last

STILL = CrossEntropy, KLToClean, LogitMargin, Margin, DLR  # ask for labels and clean logits alone


@dataclass(frozen=True)
class Walk:
    """Where the steps of an attack have led.

    Attributes:
        delta: (B, C, H, W). before: the point of the last gradient. grad: that gradient. first: the one at
            the start. said: (steps, B, K) logits before each step.
    """

    delta: Tensor
    before: Tensor
    grad: Tensor
    first: Tensor
    said: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        """In their order."""
        return self.delta, self.before, self.grad, self.first, self.said


class Walker(Protocol):
    """A solver whose steps hang on nothing but what it is and the problem's tensors."""

    def walk(self, problem: LowerProblem, start: Tensor) -> Walk:
        """All steps."""
        ...

    def walk_key(self) -> Hashable:
        """What it is."""
        ...


@dataclass(frozen=True)
class Recorded:
    """One graph.

    Attributes:
        given: tensors that it reads, to be written before each launch. made: those that it writes.
        passes: of one launch.
    """

    graph: Any
    given: tuple[Tensor, ...]
    made: Walk
    passes: Passes

    def launch(self, values: tuple[Tensor, ...], passes: Passes) -> Walk:
        """The walk from these values, in memory of its own; its passes are counted."""
        for given, value in zip(self.given, values, strict=True):
            given.copy_(value)
        self.graph.replay()
        passes.forward += self.passes.forward
        passes.backward += self.passes.backward
        return Walk(*(value.clone() for value in self.made.tensors()))


class CudaGraphs:
    """The graphs of one run's attacks, by everything that is fixed in one.

    An attack is recorded when it comes the second time: the first time warms the device up, and one that
    changes every minibatch (a radius that grows) is never recorded. Where recording fails the attacks go on
    as they are, which is said once.

    Attributes:
        tell: hears why there are none. launches: of all graphs so far.
    """

    def __init__(self, tell: Callable[[str], object] = warnings.warn) -> None:
        self.tell, self.launches, self.failed = tell, 0, False
        self.kept: OrderedDict[Hashable, Recorded | None] = OrderedDict()
        self._places: tuple[int, ...] = ()

    def walk(self, solver: Walker, problem: LowerProblem, start: Tensor) -> Walk:
        """The solver's walk from start, by a graph if there is one."""
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
        """Drop all graphs of weights that are somewhere else now."""
        places = tuple(t.data_ptr() for t in (*model.parameters(), *model.buffers()))
        if places != self._places:
            self.kept.clear()
            self._places = places


def suits(problem: LowerProblem) -> bool:
    """Whether an attack reads nothing but what a graph is given: images, labels, clean logits, the network.

    Passes that move running statistics are left out: recording makes some that count for nothing.
    """
    model, objective = problem.forward.model, problem.objective
    inner = objective.objective if isinstance(objective, MarginWeighted) else objective
    if problem.x.device.type != "cuda" or not isinstance(model, nn.Module):
        return False
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
    moving = any(m.training and m.track_running_stats for m in norms)
    return type(inner) in STILL and type(problem.threat) in (Linf, L2) and not moving


def key_of(solver: Walker, problem: LowerProblem, start: Tensor) -> Hashable:
    """What is fixed in a graph, but for where the weights are."""
    model = problem.forward.module
    modes = tuple((m.training, getattr(m, "track_running_stats", None)) for m in model.modules())
    learning = tuple(p.requires_grad for p in model.parameters())
    x = problem.x
    forms = tuple(x.shape), x.dtype, x.stride(), start.dtype, start.stride(), problem.y.dtype
    settings = getattr(model, "autocast_dtype", None), torch.are_deterministic_algorithms_enabled()
    return solver.walk_key(), problem.objective, problem.threat, forms, modes, learning, settings


def inputs(problem: LowerProblem, start: Tensor) -> tuple[Tensor, ...]:
    """Images, labels, start, and clean logits where the objective asks for them."""
    objective = problem.objective
    inner = objective.objective if isinstance(objective, MarginWeighted) else objective
    clean = (problem.clean_logits,) if isinstance(inner, KLToClean) else ()
    return problem.x, problem.y, start, *clean


def record(solver: Walker, problem: LowerProblem, values: tuple[Tensor, ...]) -> Recorded:
    """The graph of a walk, which is made some times before, on a stream aside, as CUDA asks for."""
    given = tuple(value.detach().clone() for value in values)
    x, y, start, *clean = given
    forward = Forward(problem.forward.model)  # with casts of its own, which the graph makes anew each time

    def walk() -> Walk:
        forward._cast = []
        own = LowerProblem(forward, Batch(x, y, y), problem.objective, problem.threat, problem.clock)
        if clean:
            own.clean_logits = clean[0]
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
    """Within, attacks are launched as graphs where they can be."""
    if graphs is None:
        yield
        return
    _graphs.append(graphs)
    try:
        yield
    finally:
        _graphs.pop()


def walked(solver: Walker, problem: LowerProblem, start: Tensor) -> Walk:
    """The solver's walk from start."""
    return _graphs[-1].walk(solver, problem, start) if _graphs else solver.walk(problem, start)
