"""Square in L2: where its moves are the published ones, and where they are smaller. In Linf: what is not
asked twice."""

from __future__ import annotations

import pytest
import torch
from tests.lower.test_apgd import Ahead, binary, interior, problem_of
from torch import Tensor

import bivallate as bv
from bivallate.lower import square
from bivallate.lower.objective import CrossEntropy
from bivallate.lower.square import Square
from bivallate.lower.threat import ThreatModel

EPS = 0.4


def reached(solver: Square, threat: ThreatModel = bv.L2(EPS)) -> tuple[Tensor, Tensor]:  # noqa: B008  frozen
    """(share of the largest possible loss, perturbations) on a binary linear model of 8 x 8 images."""
    model, w = binary()
    x = interior(4)
    with torch.no_grad():
        y = model(x).argmax(1)
    ahead = Ahead(model, y, 10.0)  # never fooled, so that nothing leaves early
    delta = solver.solve(problem_of(ahead, x, y, CrossEntropy(), threat)).delta
    gain = torch.where(y == 0, 1.0, -1.0) * (delta.flatten(1) @ w)
    largest = w.abs().sum() if isinstance(threat, bv.Linf) else w.norm()
    return gain / (threat.eps * largest), delta


def test_ninety_per_cent_of_the_optimum_on_a_linear_model():
    share, delta = reached(Square(5000))
    assert float(share.min()) >= 0.9
    assert float(share.max()) <= 1 + 1e-5
    assert float(bv.L2(EPS).size(delta).max()) <= EPS + 1e-6


def test_the_published_moves_fall_short_of_it():
    """The figures of docs/evaluation.md: windows that spare the edges, and moves that stay as large."""
    ours, theirs = (reached(Square(5000, edges=edges), bv.Linf(0.05))[0] for edges in (True, False))
    assert float(ours.min()) > 0.99
    assert 0.55 < float(theirs.min()) < float(theirs.max()) < 0.8
    large = reached(Square(5000, shrink=False))[0]
    assert 0.7 < float(large.min()) < float(large.max()) < 0.85


def test_smaller_moves_only_where_the_window_cannot_shrink():
    """On 8 x 8 images 0.8 / 4 of the pixels are more than 3 x 3, and 0.8 / 8 fewer: after query 200."""
    pairs = [(reached(Square(q))[1], reached(Square(q, shrink=False))[1]) for q in (201, 400)]
    assert torch.equal(*pairs[0])
    assert not torch.equal(*pairs[1])


@pytest.mark.parametrize("shrink", [True, False])
def test_every_move_keeps_the_norm(shrink):
    for queries in (1, 250):
        delta = reached(Square(queries, shrink=shrink))[1]
        assert torch.allclose(bv.L2(EPS).size(delta), torch.full((4,), EPS), atol=1e-5), "the box is far"


def test_what_has_failed_at_a_point_is_not_asked_again(monkeypatch):
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(2, 6, 3), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(24, 3)
    model = torch.nn.Sequential(*layers).double()
    x, threat = torch.rand(20, 2, 4, 4, dtype=torch.float64), bv.Linf(0.01)
    y = model(x).argmax(1)

    def solved():
        return Square(1500).solve(problem_of(model, x, y, CrossEntropy(), threat))

    quick = solved()
    monkeypatch.setattr(square, "_unasked", lambda state, pixel, sign: torch.ones_like(state.decided))
    patient = solved()
    assert torch.equal(quick.delta, patient.delta)
    assert float(quick.evaluations.sum()) < 0.5 * float(patient.evaluations.sum())
