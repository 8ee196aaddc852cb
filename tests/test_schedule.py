"""Values that change during a run."""

from __future__ import annotations

import math

import pytest

from bivallate.errors import UserError
from bivallate.lower.curriculum import Curriculum, Levels
from bivallate.lower.guided_objectives import GuidedCrossEntropy
from bivallate.lower.helper_network import HelperNetwork
from bivallate.lower.pgd import PGD
from bivallate.lower.stop import Misclassified
from bivallate.schedule import Constant, Linear, Milestones, Ramp, value_at
from bivallate.types import Clock
from bivallate.upper.loss import Adversarial
from bivallate.upper.smoothness_losses import Consistent, Guided


def test_numbers_and_schedules_are_read_alike() -> None:
    for value in (0.5, Constant(0.5), Milestones((0.5,), ())):
        assert value_at(value, Clock(3, 10)) == 0.5


@pytest.mark.parametrize(("epochs", "changes"), [(60, [40, 50]), (25, [17, 21]), (6, [4, 5]), (1, [1])])
def test_milestones_scale_with_the_run(epochs, changes) -> None:
    schedule = Milestones((10.0, 1.0, 0.1), (2 / 3, 5 / 6))
    values = [schedule(Clock(e, epochs)) for e in range(epochs)]
    found = [e for e in range(1, epochs) if values[e] != values[e - 1]]
    assert found == [c for c in changes if c < epochs]


def test_linear_goes_from_start_to_end_and_stays() -> None:
    ramp = Linear(1.0, 0.0, until=0.5)
    assert [ramp(Clock(e, 8)) for e in range(8)] == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0, 0.0, 0.0]
    assert Linear(0.0, 2.0)(Clock(5, 10)) == 1.0


def test_progress_counts_minibatches() -> None:
    assert Clock(0, 4, 0, 10).progress == 0
    assert Clock(1, 4, 5, 10).progress == pytest.approx(0.375)
    assert Clock(3, 4, 9, 10).progress < 1


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (lambda: Guided(Linear(1.0, -1.0)), "weight must be at least 0, got -1.0"),
        (
            lambda: GuidedCrossEntropy(Milestones((1.0, math.inf), (0.5,))),
            "weight must be finite, got inf",
        ),
        (lambda: Consistent(Adversarial(), Constant(-1.0)), "weight must be at least 0, got -1.0"),
        (lambda: Misclassified(Linear(-1, 3)), "tau must be at least 0, got -1"),
        (lambda: Curriculum(PGD(3, 0.1), Linear(3, -1)), "level must be at least 0, got -1"),
        (lambda: Curriculum(PGD(3, 0.1), -1), "level must be at least 0, got -1"),
        (lambda: HelperNetwork(PGD(3, 0.1), lr=Constant(-0.1)), "lr must be at least 0, got -0.1"),
    ],
)
def test_a_strength_that_changes_is_checked_as_a_number_is(part, said) -> None:
    with pytest.raises(UserError, match=said):
        part()


@pytest.mark.parametrize(
    "schedule",
    [Constant(2.0), Milestones((3.0, 1.0), (0.5,)), Linear(-1.0, 2.0, 0.4), Ramp(3.0), Levels(4, 0.5)],
)
def test_a_schedule_stays_between_its_extremes(schedule) -> None:
    for epochs in (1, 3, 10):
        for epoch in range(epochs):
            assert min(schedule.extremes) <= schedule(Clock(epoch, epochs)) <= max(schedule.extremes)


def test_a_schedule_of_ones_own_may_be_made_for_one_length() -> None:
    assert Guided(lambda clock: (1.0, 2.0, 3.0)[clock.epoch]).weight is not None


def test_a_schedule_may_begin_at_nothing() -> None:
    assert value_at(Guided(Linear(0.0, 4.5, 0.9)).weight, Clock(9, 10)) == 4.5
