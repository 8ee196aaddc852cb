"""An attack that is launched as one CUDA graph equals the attack without graphs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.device.trial import tiny

import bivallate as bv
from bivallate.lower.cuda_graphs import KEPT, CudaGraphs, graphing
from bivallate.lower.objective import cross_entropy
from bivallate.lower.pgd import PGD
from bivallate.lower.problem import LowerProblem
from bivallate.types import Batch

SOME = {  # method -> whether its attack can be recorded
    "at": True,
    "trades": True,
    "done-adam": True,
    "fat": False,
}


def steps(
    name: str, graphs: bool, dtype: torch.dtype, change: str = ""
) -> tuple[list[Any], list[int], int, list[str]]:
    """Parameters after four steps, passes of each, launches of graphs, and what was told."""
    told: list[str] = []
    trial, made = (
        tiny(name, "cuda", dtype, steps=3) if name in ("at", "at-l2") else tiny(name, "cuda", dtype),
        None,
    )
    if dtype == torch.float32:
        trial.model.autocast_dtype = torch.bfloat16
    made = CudaGraphs(told.append) if graphs else None
    passes = []
    for k in range(4):
        if change == "radius":
            trial.method.threat = bv.Linf(0.1 + 0.01 * k)
        if change == "storage" and k == 3:
            trial.model._apply(lambda t: t.clone())
            trial.optimizer = torch.optim.SGD(trial.model.parameters(), 0.05, momentum=0.9)
        if change == "mode" and k == 2:
            trial.method.attack_mode = "train"
        with graphing(made):
            record = trial.step()
        passes += [record.passes.forward, record.passes.backward]
    return [p.numpy() for p in trial.parameters()], passes, made.launches if made else 0, told


@pytest.mark.parametrize("name", SOME)
def test_steps_are_those_without(card, name: str) -> None:
    there, passes, launches, told = card(steps, name, True, torch.float64)
    here, same, none, _ = card(steps, name, False, torch.float64)
    assert (passes, none, told) == (same, 0, [])
    assert all((a == b).all() for a, b in zip(there, here, strict=True))
    assert (launches >= 3) == SOME[name]


def test_in_bfloat16_the_weights_are_cast_anew_by_every_launch(card) -> None:
    there, _, launches, _ = card(steps, "at", True, torch.float32)
    here, *_ = card(steps, "at", False, torch.float32)
    assert launches == 3
    assert all((a == b).all() for a, b in zip(there, here, strict=True))


@pytest.mark.parametrize(("change", "launches"), [("radius", 0), ("storage", 2), ("mode", 2)])
def test_another_attack_is_another_graph(card, change: str, launches: int) -> None:
    there, _, made, told = card(steps, "at", True, torch.float64, change)
    here, *_ = card(steps, "at", False, torch.float64, change)
    assert (made, told) == (launches, [])
    assert all((a == b).all() for a, b in zip(there, here, strict=True))


def refused() -> tuple[int, list[str]]:
    """A network that asks the device in the middle of a pass."""
    told: list[str] = []
    trial, made = tiny("at", "cuda"), CudaGraphs(told.append)
    trial.model.register_forward_hook(lambda m, x, y: y + 0 * float(y.sum()))
    for _ in range(4):
        with graphing(made):
            trial.step()
    return made.launches, told


def test_what_cannot_be_recorded_goes_on_step_by_step(card) -> None:
    launches, told = card(refused)
    assert launches == 0
    assert len(told) == 1
    assert "cannot be recorded (operation not permitted when stream is capturing)" in told[0]


def kept() -> int:
    """CudaGraphs after minibatches of many sizes."""
    made = CudaGraphs(lambda text: None)
    x = torch.rand(16, 1, 8, 8).to("cuda")
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3)).to("cuda")
    y = torch.zeros(16, dtype=torch.long).to("cuda")

    with graphing(made):
        for rows in (*range(2, 12), 11, 11):
            batch = Batch(x[:rows], y[:rows], y[:rows])
            PGD(2, 0.1).solve(LowerProblem(model, batch, cross_entropy, bv.Linf(0.1)))
    assert made.launches == 2
    return len(made.kept)


def test_only_so_many_are_kept(card) -> None:
    assert card(kept) == KEPT
