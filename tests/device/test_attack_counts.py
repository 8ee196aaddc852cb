"""How often an attack makes the host wait; closed forms on a device equal the processor's roots."""

from __future__ import annotations

import pytest
import torch

import bivallate as bv
from bivallate.evaluation import attack_and_score
from bivallate.lower import fab
from bivallate.lower.fab import FAB, NearestPlane, nearest_on_plane
from bivallate.lower.objective import margin
from bivallate.types import Batch

ATTACKS = {"apgd-ce": (100, 0.1), "square": (100, 0.1), "fab": (100, 0.1), "pgd": (20, 0.1), "ddn": (20, 0.1)}


def waits(name: str, steps: int) -> int:
    """Of an attack in so many steps on a network that withstands it, more than of none."""
    from tests.device import standin

    found = []
    for length in (steps, 1):
        torch.manual_seed(0)
        x = torch.rand(8, 1, 4, 4).to("cuda")
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).to("cuda")
        y = model(x).argmax(1)
        standin.log.syncs.clear()
        ball = bv.L2(1e-4) if name == "ddn" else bv.Linf(1e-4)
        score = attack_and_score(model, (x, y), ball, f"{name}-{length}" + ("-1" if name == "fab" else ""))
        assert score.robust_accuracy > 0.8
        found.append(sum(standin.log.syncs.values()))
    return found[0] - found[1]


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_seldom_waited_for(card, name: str) -> None:
    steps, most = ATTACKS[name]
    assert card(waits, name, steps) <= most * steps


def walked(device: str, leave: bool, often: float) -> tuple[list, list[int], int, bool]:
    """FAB's smallest perturbations, the steps and passes spent, and whether it took gradients both ways."""
    torch.manual_seed(0)
    layers = torch.nn.Linear(16, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)
    model = torch.nn.Sequential(torch.nn.Flatten(), *layers).double()
    x = torch.rand(12, 1, 4, 4, dtype=torch.float64)
    y = model(x).argmax(1)
    y[:2] = (y[:2] + 1) % 3  # misclassified without attack
    model, x, y = model.to(device), x.to(device), y.to(device)
    problem = bv.LowerProblem(model, Batch(x, y, torch.arange(12).to(device)), margin, bv.Linf(0.1))
    modes, step = set(), FAB._step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fab, "OFTEN", often)
        patch.setattr(FAB, "_step", lambda *given: (modes.add(given[-1]), step(*given))[1])
        found = FAB(36, boundary=NearestPlane(), leave=leave).solve(problem)
    passes = problem.forward.passes
    return found.delta.cpu().tolist(), found.evaluations.tolist(), passes.forward, modes == {True, False}


@pytest.mark.parametrize(("leave", "often"), [(False, 0.3), (False, 1.0), (True, 1.0)])
def test_fab_finds_what_it_finds_where_it_waits(card, leave: bool, often: float) -> None:
    there, steps, passes, both = card(walked, "cuda", leave, often)
    here, few, least, _ = walked("cpu", leave, often)
    apart = (torch.tensor(there) - torch.tensor(here)).abs().max()
    assert apart < 1e-7, apart
    assert both == (often == 1)
    assert leave or steps == few
    assert leave or passes <= 1.3 * least, (passes, least)


def moves(device: str, linf: bool) -> list[list[float]]:
    """The nearest points on planes within reach, through the point and out of reach."""
    generator = torch.Generator().manual_seed(0)
    w, point = (torch.rand(6, 12, generator=generator, dtype=torch.float64) for _ in range(2))
    w = (w - 0.5) * (w > 0.2)
    excess = torch.tensor([0.05, -0.3, 0.0, 1.0, 50.0, -50.0], dtype=torch.float64)
    found = nearest_on_plane(excess.to(device), w.to(device), point.round().to(device), linf=linf)
    return (
        found.cpu().tolist()
        + nearest_on_plane(excess.to(device), w.to(device), point.to(device), linf=linf).cpu().tolist()
    )


@pytest.mark.parametrize("linf", [True, False])
def test_the_nearest_point_on_a_plane_in_closed_form(card, linf: bool) -> None:
    there, here = torch.tensor(card(moves, "cuda", linf)), torch.tensor(moves("cpu", linf))
    assert torch.allclose(there, here, rtol=0, atol=1e-10)
    assert (here.abs() > 0).any()
