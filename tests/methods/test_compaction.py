"""Attacks drop finished examples from the minibatch: same results for fewer passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.methods.glue import Net
from torch import Tensor, nn

from bivallate import Linf
from bivallate.lower import compaction
from bivallate.lower.direction import adam, steepest
from bivallate.lower.modes import AttackMode, attacking
from bivallate.lower.objective import cross_entropy, kl_to_clean
from bivallate.lower.pgd import PGD
from bivallate.lower.problem import LowerProblem
from bivallate.lower.stop import FOSCBelow, Iterate, Misclassified, Stop
from bivallate.parts import part
from bivallate.types import Batch, Clock, Solution

THREAT = Linf(8 / 255)


@part
class Scripted(Stop):
    """Row i stops before step ends[i]."""

    ends: tuple[int, ...]

    def __call__(self, problem: LowerProblem) -> Any:
        return lambda iterate: torch.tensor(self.ends) <= iterate.k


def network() -> nn.Module:
    """Convolutions and BatchNorm, in float32."""
    return Net().float()


def rows_seen(model: nn.Module) -> list[int]:
    """Filled with the size of every minibatch that the model sees."""
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    return sizes


def solve(
    model: nn.Module,
    solver: PGD,
    x: Tensor,
    y: Tensor,
    mode: AttackMode = "eval",
    objective: Any = cross_entropy,
) -> tuple[Solution, LowerProblem]:
    with attacking(model, mode):
        batch = Batch(x, y, torch.arange(len(y)))
        problem = LowerProblem(model, batch, objective, THREAT, Clock(epochs=12))
        return solver.solve(problem), problem


def half_right(model: nn.Module, rows: int = 24) -> tuple[Tensor, Tensor]:
    """Images of which some are classified correctly, float32."""
    x = torch.rand(rows, 1, 6, 6, generator=torch.Generator().manual_seed(7))
    with attacking(model, "eval"), torch.no_grad():
        y = model(x).argmax(1)
    return x, torch.where(torch.arange(rows) % 3 == 0, y, (y + 1) % 3)


@pytest.mark.parametrize("direction", [steepest, adam])
@pytest.mark.parametrize(
    ("objective", "stop"),
    [
        (cross_entropy, Misclassified(0)),
        (kl_to_clean, Misclassified(2)),
        (cross_entropy, FOSCBelow(0.1)),
        (kl_to_clean, FOSCBelow(0.01)),
    ],
)
def test_the_answers_are_those_of_the_whole_minibatch(
    direction: Any, objective: Any, stop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network()
    x, y = half_right(model)
    solver = PGD(6, 2 / 255, stop=stop, direction=direction, jitter=0.001)
    sizes = rows_seen(model)
    shrunk, less = solve(model, solver, x, y, objective=objective)
    assert min(sizes) < len(y), "something shrank"
    monkeypatch.setattr(compaction, "_independent", lambda model: False)
    whole, more = solve(model, solver, x, y, objective=objective)
    assert (shrunk.delta - whole.delta).abs().max() <= 1e-6
    assert torch.equal(shrunk.kappa, whole.kappa)
    assert torch.equal(shrunk.evaluations, whole.evaluations)
    assert less.forward.passes.backward < more.forward.passes.backward
    assert less.forward.passes.forward == sum(sizes[: len(sizes) // 2])


def test_it_never_shrinks_to_one_and_keeps_everyone_it_should() -> None:
    model = network()
    x, y = half_right(model, 8)
    sizes = rows_seen(model)
    ends = (6, 1, 1, 2, 2, 3, 3, 4)
    solution, _ = solve(model, PGD(6, 2 / 255, stop=Scripted(ends)), x, y)
    assert sizes == [8, 8, 6, 4, 2, 2]
    assert solution.evaluations.tolist() == [min(e + 1, 6) for e in ends]
    for row, end in enumerate(ends):
        alone, _ = solve(model, PGD(end, 2 / 255), x, y)
        assert (alone.delta[row] - solution.delta[row]).abs().max() <= 1e-6


def test_nothing_shrinks_under_batch_statistics() -> None:
    model = network()
    x, y = half_right(model)
    for mode in ("train", "train-tracking"):
        sizes = rows_seen(model)
        solution, _ = solve(model, PGD(4, 2 / 255, stop=Misclassified(0)), x, y, mode=mode)
        assert set(sizes) == {24}
        assert solution.evaluations.min() < 4, "though some had stopped"


def test_norms_without_statistics_and_bare_functions_do_not_shrink() -> None:
    model = network().eval()
    assert compaction._independent(model)
    assert not compaction._independent(lambda x: x)
    bare = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, track_running_stats=False)).eval()
    assert not compaction._independent(bare)
    assert compaction._independent(nn.Sequential(nn.GroupNorm(1, 2), nn.InstanceNorm2d(2)).train())


def test_few_stops_are_not_worth_a_copy() -> None:
    model = network()
    x, y = half_right(model, 10)
    sizes = rows_seen(model)
    solve(model, PGD(4, 2 / 255, stop=Scripted((1,) + (9,) * 9)), x, y)
    assert sizes == [10] * 4


def test_rules_see_the_values_that_a_row_left_with() -> None:
    seen: list[Iterate] = []

    @part
    class Watching(Stop):
        def __call__(self, problem: LowerProblem) -> Any:
            def rule(iterate: Iterate) -> Tensor:
                seen.append(iterate)
                return torch.tensor([0, 0, 0, 9, 9, 9]) <= iterate.k

            return rule

    model = network()
    x, y = half_right(model, 6)
    solve(model, PGD(3, 2 / 255, stop=Watching()), x, y)
    assert torch.equal(seen[0].grad[:3], seen[2].grad[:3])
    assert not torch.equal(seen[0].grad[3:], seen[2].grad[3:])
