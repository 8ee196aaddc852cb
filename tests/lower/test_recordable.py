"""Which attacks a CUDA graph may repeat: what their parts declare, asked on a processor."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import bivallate as bv
from bivallate.lower import cuda_graphs
from bivallate.lower.class_radius import Proportional
from bivallate.lower.cuda_graphs import CudaGraphs, can_be_recorded, graphing, parts_are_recordable
from bivallate.lower.direction import Direction, DirectionRule, Steepest, adam, raw, steepest
from bivallate.lower.guided_objectives import GuidedCrossEntropy
from bivallate.lower.objective import DLR, KLToClean, LogitMargin, Margin, cross_entropy
from bivallate.lower.pgd import PGD
from bivallate.lower.problem import LowerProblem
from bivallate.types import Batch

X, Y = torch.rand(4, 1, 3, 3, generator=torch.Generator().manual_seed(0)), torch.arange(4) % 3


class Drawing(Steepest):
    """Derives from a direction that is recordable, and draws."""

    def __call__(self, problem: LowerProblem) -> DirectionRule:
        return lambda grad: grad.sign() * problem.noise.sign("d", tuple(grad.shape[1:]), grad.dtype)


class Declared(Steepest):
    """Declares anew that it is recordable."""

    recordable: ClassVar[bool] = True


class Listed(Direction):
    """Recordable, and without a hash."""

    recordable: ClassVar[bool] = True
    __hash__ = None  # pyright: ignore

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Listed)

    def __call__(self, problem: LowerProblem) -> DirectionRule:
        return torch.sign


class Plain:
    """A direction that derives from nothing."""

    def __call__(self, problem: LowerProblem) -> DirectionRule:
        return torch.sign


CASES: dict[str, tuple[Any, Any, bool]] = {
    "steepest": (steepest, cross_entropy, True),
    "raw": (raw, KLToClean(), True),
    "adam": (adam, LogitMargin(), True),
    "declared": (Declared(), Margin(), True),
    "DLR": (steepest, DLR(), True),
    "a direction that draws": (Drawing(), cross_entropy, False),
    "radii of a minibatch": (Proportional(), cross_entropy, False),
    "without hash": (Listed(), cross_entropy, False),
    "of no role": (Plain(), cross_entropy, False),
    "an objective that reads the clock": (steepest, GuidedCrossEntropy(1.0), False),
    "a function": (steepest, lambda problem, logits: logits[:, 0], False),
}


def problem(objective: Any = cross_entropy) -> LowerProblem:
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 3))
    return LowerProblem(model, Batch(X, Y, torch.arange(4)), objective, bv.Linf(0.1))


@pytest.mark.parametrize("case", CASES)
def test_parts_declare_that_a_graph_may_repeat_them(case: str) -> None:
    direction, objective, expected = CASES[case]
    assert parts_are_recordable(PGD(2, 0.1, direction=direction), problem(objective)) is expected


def test_on_a_processor_nothing_is_recorded() -> None:
    assert not can_be_recorded(PGD(2, 0.1), problem())


@pytest.mark.parametrize("direction", [Drawing(), Listed(), Plain()])
def test_what_cannot_be_recorded_is_solved_each_time(direction: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check is the device's in all but the device, and recording would raise on a processor."""
    monkeypatch.setattr(cuda_graphs, "can_be_recorded", parts_are_recordable)
    solver, posed, graphs = PGD(2, 0.05, direction=direction), problem(), CudaGraphs()
    alone: Tensor = solver.solve(posed).delta
    with graphing(graphs):
        for _ in range(3):
            assert torch.equal(solver.solve(posed).delta, alone)
    assert (graphs.launches, graphs.failed, len(graphs.kept)) == (0, False, 0)


def test_a_direction_of_ones_own_is_asked_whether_it_fits() -> None:
    class Refusing(Steepest):
        def check(self, method: Any) -> None:
            raise bv.UserError("not with this method")

    with pytest.raises(bv.UserError, match="not with this method"):
        bv.methods.at(bv.Linf(0.1)).but(solver__direction=Refusing())
