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

EPS = 0.4


def reached(solver: Square) -> tuple[Tensor, Tensor]:
    """(share of the largest possible loss, perturbations) on a binary linear model of 8 x 8 images."""
    model, w = binary()
    x = interior(4)
    with torch.no_grad():
        y = model(x).argmax(1)
    ahead = Ahead(model, y, 10.0)  # never fooled, so that nothing leaves early
    delta = solver.solve(problem_of(ahead, x, y, CrossEntropy(), bv.L2(EPS))).delta
    gain = torch.where(y == 0, 1.0, -1.0) * (delta.flatten(1) @ w)
    return gain / (EPS * w.norm()), delta


def test_ninety_per_cent_of_the_optimum_on_a_linear_model():
    share, delta = reached(Square(5000))
    assert float(share.min()) >= 0.9
    assert float(share.max()) <= 1 + 1e-5
    assert float(bv.L2(EPS).size(delta).max()) <= EPS + 1e-6


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
    monkeypatch.setattr(square, "_unasked", lambda state, pixel, sign: torch.ones_like(state.gone))
    patient = solved()
    assert torch.equal(quick.delta, patient.delta)
    assert float(quick.evaluations.sum()) < 0.5 * float(patient.evaluations.sum())
