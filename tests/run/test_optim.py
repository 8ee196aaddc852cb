"""Learning-rate schedules against torch's own and against the papers' milestones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import bivallate as bv
from bivallate.run.optim import set_rate
from bivallate.types import Clock

STEPS = 7


def rates(rate, epochs: int) -> list[float]:
    return [rate(Clock(e, epochs, s, STEPS)) for e in range(epochs) for s in range(STEPS)]


def test_triangle_is_piecewise_linear_per_iteration():
    got = rates(bv.Triangle(0.4), 10)
    t = np.arange(10 * STEPS) / STEPS
    np.testing.assert_allclose(got, np.interp(t, [0, 4, 10], [0, 1, 0]), atol=1e-12)


def test_triangle_equals_torchs_cyclic_rate_and_momentum():
    weight = torch.nn.Parameter(torch.zeros(1))
    theirs = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    half = 5 * STEPS
    cyclic = torch.optim.lr_scheduler.CyclicLR(theirs, 0.0, 0.2, step_size_up=half, step_size_down=half)
    ours = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    for step in range(10 * STEPS):
        clock = Clock(step // STEPS, 10, step % STEPS, STEPS)
        set_rate(ours, bv.SGD(0.2), bv.Triangle(0.5, cycle_momentum=True), clock)
        for key in ("lr", "momentum"):
            assert ours.param_groups[0][key] == pytest.approx(theirs.param_groups[0][key], abs=1e-9), step
        theirs.step()
        cyclic.step()


def test_multistep_drops_at_fractions_of_the_epochs():
    rate = bv.MultiStep((0.5, 100 / 120), 0.1)
    by_epoch = [rate(Clock(e, 120)) for e in range(120)]
    assert by_epoch == pytest.approx([1.0] * 60 + [0.1] * 40 + [0.01] * 20)
    assert [rate(Clock(e, 12)) for e in (5, 6, 9, 10)] == pytest.approx([1, 0.1, 0.1, 0.01])


def test_multistep_takes_factors_of_its_own():
    rate = bv.MultiStep((0.5, 0.75, 11 / 12), factors=(0.1, 0.01, 0.005))
    assert [rate(Clock(e, 120)) for e in (59, 60, 90, 110)] == [1, 0.1, 0.01, 0.005]


def test_cosine_and_flat():
    values = rates(bv.Cosine(floor=0.1, warm_up=0.2), 10)
    assert values[0] == 0
    assert max(values) == pytest.approx(1.0)
    assert values[-1] == pytest.approx(0.1, abs=1e-2)
    assert set(rates(bv.Flat(), 3)) == {1.0}


def test_adamw_is_torchs_own():
    model = torch.nn.Linear(2, 2)
    group = bv.AdamW(1e-3, weight_decay=0.1).make(model).param_groups[0]
    assert (group["lr"], group["weight_decay"], group["betas"]) == (1e-3, 0.1, (0.9, 0.999))
