"""How often an attack makes the host wait; closed forms on a device equal the processor's roots."""

from __future__ import annotations

import pytest
import torch

import bivallate as bv
from bivallate.evaluation import attack_and_score
from bivallate.lower.fab import nearest_on_plane

ATTACKS = {"apgd-ce": (100, 0.1), "square": (100, 0.1), "fab": (20, 1.0), "pgd": (20, 0.1)}


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
        score = attack_and_score(
            model, (x, y), bv.Linf(1e-4), f"{name}-{length}" + ("-1" if name == "fab" else "")
        )
        assert score.robust_accuracy > 0.8
        found.append(sum(standin.log.syncs.values()))
    return found[0] - found[1]


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_seldom_waited_for(card, name: str) -> None:
    steps, most = ATTACKS[name]
    assert card(waits, name, steps) <= most * steps


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
