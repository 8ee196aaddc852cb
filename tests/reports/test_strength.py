"""The choice of a run's strongest evaluation, with different points and accuracies."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from bivallate.evaluation import Score
from bivallate.lower.threat import Linf
from bivallate.reports.strength import common_ground, strongest_first

ALL = list(range(359))
SOME = list(range(0, 300, 3))  # 100 of them
HARD = list(range(259, 359))


@dataclass(frozen=True)
class Kept:
    """A stored evaluation."""

    score: Score
    stale: bool = False


def kept(attack: str, rows: list[int], broken: set[int], passes: float = 40, stale: bool = False) -> Kept:
    """Verdicts on some rows of one data set, of which these are broken."""
    index = torch.tensor(rows)
    stage = torch.tensor([1 if row in broken else -1 for row in rows])
    y = index % 10
    spent = {"forward": passes / 2, "backward": passes / 2}
    score = Score(
        attack, None, Linf(0.1), 10, y, y, torch.ones(len(rows)), stage, index, (attack,), spent, 1.0, 0,
        str(len(rows)), "m",
    )  # fmt: skip
    return Kept(score, stale)


PGD = kept("pgd-20", ALL, set(range(0, 359, 2)))  # leaves 50 % everywhere
EASY = set(range(0, 359, 2)) - set(SOME)  # pgd leaves all of the 100, half of the others


@pytest.mark.parametrize(
    ("others", "leader"),
    [
        ([PGD], "pgd-20"),
        ([PGD, kept("autoattack", SOME, set(range(0, 359, 2)) | set(SOME[:20]))], "autoattack"),
        # On easy points the stronger attack leaves more than the weaker one on all: it leads all the same.
        (
            [kept("pgd-20", ALL, EASY), kept("autoattack", SOME, set(SOME[:10]), passes=900)],
            "autoattack",
        ),
        # On hard points the weaker one leaves less than the stronger one on all: it does not lead.
        ([kept("autoattack", ALL, set(range(180)) | set(HARD)), kept("pgd-9", HARD, set(HARD[:90]))],
         "autoattack"),
        # What leaves as much but tried harder leads.
        ([PGD, kept("autoattack", SOME, set(range(0, 359, 2)), passes=900)], "autoattack"),
        # Two points are no evidence, nor is a model that is gone.
        ([PGD, kept("autoattack", [0, 1], {0, 1}, passes=900)], "pgd-20"),
        ([PGD, kept("autoattack", ALL, set(ALL), passes=900, stale=True)], "pgd-20"),
        # A few points stand behind, however many of them are left, and do not shrink the common ground.
        ([PGD, kept("autoattack", SOME, set(SOME)), kept("pgd-1", [1, 3], set())], "autoattack"),
        # Without points in common each counts for itself.
        ([kept("a", ALL[:100], set(ALL[:50])), kept("b", ALL[200:300], set(ALL[200:280]))], "b"),
        # Few points lead where there are no others.
        ([kept("a", [0, 1, 2], set()), kept("b", [0, 1, 2], {0})], "b"),
    ],
)  # fmt: skip
def test_the_strongest_leads(others, leader):
    for offers in (others, others[::-1]):
        order = strongest_first([[e] for e in offers])
        assert offers[order[0]].score.attack == leader
        assert sorted(order) == list(range(len(offers)))


def test_of_one_attack_the_evaluation_on_more_points_leads():
    """What a point costs depends on which points were drawn: one that is wrong is not attacked."""
    trial = kept("pgd-20", SOME, set(range(0, 359, 2)), passes=41)
    for offers in ([PGD, trial], [trial, PGD]):
        assert offers[strongest_first([[e] for e in offers])[0]] is PGD


def test_offers_of_several_runs_are_ranked_by_what_all_left():
    weak, strong = kept("pgd-20", ALL, set(ALL[:100])), kept("autoattack", SOME, set(SOME[:60]))
    assert strongest_first([[weak, PGD], [strong, PGD]]) == [1, 0]
    assert strongest_first([]) == []


def test_other_labels_are_another_data_set():
    """The same rows of a set that was replaced by another one have nothing in common."""
    other = kept("autoattack", SOME, set(SOME[:10]))
    moved = Kept(Score(**(vars(other.score) | {"y": (other.score.y + 1) % 10})))
    assert common_ground([PGD, other]) == pytest.approx([0.5, 0.9])
    assert common_ground([PGD, moved]) == pytest.approx([PGD.score.robust_accuracy, 0.9])
