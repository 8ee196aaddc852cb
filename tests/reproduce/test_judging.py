"""Verdicts on hand-made records."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from bivallate.errors import UserError
from bivallate.evaluation.evaluation_file import pack
from bivallate.evaluation.statistics import mcnemar
from bivallate.reproduce.judging import _score_interval as score_interval
from bivallate.reproduce.judging import judge_claim, sign_flip
from bivallate.reproduce.paper_table import Claim, PaperTable
from bivallate.reproduce.records import Record, read_record

from .conftest import by_hand, keep

TABLE = PaperTable("T-X", "title", "source", (), (), lambda cell: cell, "note")
PGD = Claim("A", "B", "PGD")


def verdicts(good: int, n: int = 100) -> list[bool]:
    return [i < good for i in range(n)]


@pytest.mark.parametrize(
    ("a", "b", "status"), [(60, 40, "confirmed"), (40, 60, "not confirmed"), (52, 50, "undecided")]
)
def test_a_claim_is_confirmed_refuted_or_open(a: int, b: int, status: str) -> None:
    verdict = judge_claim(TABLE, PGD, "g", [by_hand("A", verdicts(a)), by_hand("B", verdicts(b))])
    assert verdict.status == status
    assert verdict.difference == pytest.approx((a - b) / 100)
    assert verdict.how == "exact paired test on 100 points"
    assert verdict.p == pytest.approx(binomtest(max(a - b, 0), abs(a - b), 0.5).pvalue)


def test_transferred_examples_are_paired_by_the_images_that_they_are_made_of() -> None:
    """Two GPU runs of one attack on one network differ by rounding, and so do their images' fingerprints."""
    records = [by_hand(row, verdicts(good), data=row) for row, good in (("A", 60), ("B", 40))]
    assert judge_claim(TABLE, PGD, "g", records).how == "intervals on different points"
    for record in records:
        record.entry["columns"]["PGD"]["score"] = "pgd-20-from-standard"
        record.entry["scores"]["pgd-20-from-standard"] = record.entry["scores"].pop("pgd-20")
        record.entry["data"] = {"fingerprint": "of the test images"}
    assert judge_claim(TABLE, PGD, "g", records).how == "exact paired test on 100 points"
    records[0].entry["data"] = {"fingerprint": "of others"}
    assert judge_claim(TABLE, PGD, "g", records).how == "trained on different images"


def test_transferred_examples_are_paired_over_the_seeds_if_each_pair_is_made_on_one_network() -> None:
    """The data's fingerprint depends on the seed, by the held-out images, and the other network does too."""
    records = [by_hand(row, verdicts(k), seed=s) for row, k in (("A", 60), ("B", 40)) for s in (0, 1)]
    for record in records:
        scores = record.entry["scores"]
        record.entry["columns"]["PGD"]["score"] = "pgd-20-from-standard-of-best"
        scores["pgd-20-from-standard-of-best"] = scores["pgd-20"] | {"data_fingerprint": record.row}
        record.entry["data"] = {"fingerprint": f"of seed {record.seed}"}
        record.entry["sources"] = {"Standard": {"fingerprint": f"of seed {record.seed}"}}
    verdict = judge_claim(TABLE, PGD, "g", records)
    assert (verdict.how, verdict.seeds) == ("exact paired test on 100 points", (0, 1))
    records[3].entry["sources"] = {"Standard": {"fingerprint": "trained again"}}
    assert judge_claim(TABLE, PGD, "g", records).how == "intervals on different points"


def test_a_lower_value_may_be_the_better_one() -> None:
    records = [by_hand("A", verdicts(40)), by_hand("B", verdicts(60))]
    assert judge_claim(TABLE, Claim("A", "B", "PGD", lower=True), "g", records).status == "confirmed"


def test_a_missing_record_is_not_run() -> None:
    assert judge_claim(TABLE, PGD, "g", [by_hand("A", verdicts(60))]).status == "not run"
    records = [by_hand("A", verdicts(60), seed=0), by_hand("B", verdicts(40), seed=1)]
    assert judge_claim(TABLE, PGD, "g", records).status == "not run"  # no seed in common
    assert judge_claim(TABLE, PGD, "elsewhere", records).status == "not run"


def test_a_margin_asks_for_no_more_than_not_losing() -> None:
    equal = [by_hand("A", verdicts(501, 1000)), by_hand("B", verdicts(502, 1000))]
    assert judge_claim(TABLE, Claim("A", "B", "PGD", margin=0.01), "g", equal).status == "confirmed"
    assert judge_claim(TABLE, PGD, "g", equal).status == "undecided"
    lost = [by_hand("A", verdicts(400, 1000)), by_hand("B", verdicts(500, 1000))]
    against = judge_claim(TABLE, Claim("A", "B", "PGD", margin=0.01), "g", lost)
    assert (against.status, against.p, against.how) == ("not confirmed", None, "paired score interval")


def test_a_margin_is_not_met_by_points_that_hardly_differ() -> None:
    claim = Claim("A", "B", "PGD", margin=0.015)
    for b in (100, 101):  # of 200: a true loss of 1.5 points would look like this one time in twenty or five
        records = [by_hand("A", verdicts(100, 200)), by_hand("B", verdicts(b, 200))]
        assert judge_claim(TABLE, claim, "g", records).status == "undecided"


def test_a_more_unequal_method_is_not_taken_for_a_better_tail() -> None:
    """The weakest of equal classes lie below their common level by chance, those of unequal ones do not."""
    generator, confirmed = np.random.default_rng(0), 0
    label = np.arange(1000) % 10
    for _ in range(20):
        spread, flat = np.where(label < 3, 0.9, 0.98), np.full(1000, 0.9)
        a, b = ((generator.random(1000) < law).tolist() for law in (spread, flat))
        records = [by_hand("A", a), by_hand("B", b)]
        confirmed += judge_claim(TABLE, Claim("A", "B", "Tail-30"), "g", records).status == "confirmed"
    assert confirmed <= 2


def test_different_points_are_compared_by_their_intervals() -> None:
    near = [by_hand("A", verdicts(60)), by_hand("B", verdicts(50), data="other")]
    verdict = judge_claim(TABLE, PGD, "g", near)
    assert (verdict.status, verdict.p, verdict.how) == ("undecided", None, "intervals on different points")
    low, high = verdict.interval_95 or (0, 0)
    assert low < 0.1 < high
    far = [by_hand("A", verdicts(80)), by_hand("B", verdicts(40), data="other")]
    assert judge_claim(TABLE, PGD, "g", far).status == "confirmed"


def test_networks_of_other_training_images_decide_nothing() -> None:
    a, b = by_hand("A", verdicts(90)), by_hand("B", verdicts(10))
    for record, images in ((a, "some"), (b, "others")):
        record.entry["data"] = {"train": 100, "fingerprint": images}
    found = judge_claim(TABLE, PGD, "g", [a, b])
    assert (found.status, found.difference, found.how) == ("undecided", None, "trained on different images")


@pytest.mark.parametrize(("kind", "marked"), [("MAIL", True), ("Equal", False), ("ClassNoRegret", False)])
def test_nearly_equal_are_weights_of_examples(kind: str, marked: bool) -> None:
    record = by_hand("A", verdicts(90))
    record.entry["config"] = {"method": {"weighting": {"kind": kind}}}
    record.entry["training"] = {"history": [{"seconds": 1.0, "effective": 0.97}]}
    assert record.unweighted is marked


def test_several_seeds_are_averaged_point_by_point() -> None:
    records = [by_hand("A", verdicts(56), seed=s) for s in (0, 1)] + [by_hand("B", verdicts(50), seed=0)]
    alone = judge_claim(TABLE, PGD, "g", records)
    both = judge_claim(TABLE, PGD, "g", [*records, by_hand("B", verdicts(50), seed=1)])
    assert alone.seeds == (0,)
    assert both.seeds == (0, 1)
    assert both.difference == pytest.approx(0.06)
    assert both.p == pytest.approx(alone.p)  # the same six points differ: seeds are no new points
    against = judge_claim(TABLE, PGD, "g", [*records, by_hand("B", verdicts(62), seed=1)])
    assert against.difference == pytest.approx(0)
    assert against.status == "undecided"


@pytest.mark.parametrize("column", ["Tail-30", "worst"])
def test_the_lowest_classes_are_compared_by_their_intervals(column: str) -> None:
    n = 400
    worst = [i % 10 not in (0, 1, 2) for i in range(n)]  # three classes are lost
    half = [i % 10 > 2 or i % 20 < 10 for i in range(n)]
    records = [by_hand("A", half), by_hand("B", worst)]
    verdict = judge_claim(TABLE, Claim("A", "B", column), "g", records)
    assert verdict.difference == pytest.approx(0.5)
    assert verdict.status == "confirmed"
    assert judge_claim(TABLE, Claim("B", "A", column), "g", records).status == "not confirmed"


def test_few_measured_times_decide_nothing() -> None:
    claim = Claim("A", "B", "s/epoch", lower=True)
    fast, slow = (
        [by_hand(row, verdicts(5, n), seed=s) for s in range(6)] for row, n in (("A", 10), ("B", 20))
    )
    for seeds, status in ((1, "undecided"), (5, "undecided"), (6, "confirmed")):
        assert judge_claim(TABLE, claim, "g", [*fast[:seeds], *slow[:seeds]]).status == status


def test_a_claim_needs_the_exact_test_and_the_interval() -> None:
    """Six points that one seed of three moves: p = 0.03, but the interval has zero in it."""
    records = [
        by_hand("A", [True] * 6 + [False] * 94, seed=0),
        *(by_hand("A", [False] * 100, seed=s) for s in (1, 2)),
    ]
    records += [by_hand("B", [False] * 100, seed=s) for s in range(3)]
    verdict = judge_claim(TABLE, PGD, "g", records)
    assert verdict.p is not None
    assert verdict.p < 0.05
    assert verdict.interval_95 is not None
    assert verdict.interval_95[0] < 0 < verdict.interval_95[1]
    assert verdict.status == "undecided"
    assert judge_claim(TABLE, PGD, "g", [r for r in records if r.seed == 0]).status == "confirmed"


def test_more_seeds_narrow_the_interval() -> None:
    """30 points gained and 18 lost in each of five seeds, other ones each time."""
    records = []
    for s in range(5):
        a, b = np.zeros(1000, bool), np.zeros(1000, bool)
        a[100 * s : 100 * s + 30] = b[100 * s + 50 : 100 * s + 68] = True
        records += [by_hand("A", a.tolist(), seed=s), by_hand("B", b.tolist(), seed=s)]
    one = judge_claim(TABLE, PGD, "g", records[:2])
    five = judge_claim(TABLE, PGD, "g", records)
    assert (one.status, five.status) == ("undecided", "confirmed")
    assert five.difference == pytest.approx(0.012)
    low, high = five.interval_95 or (0, 0)
    assert (low, high) == pytest.approx((0.0048, 0.0191), abs=2e-4)


def test_no_difference_is_as_uncertain_with_three_seeds_as_with_one() -> None:
    records = [by_hand(row, [True] * 1000, seed=s) for row in "AB" for s in range(3)]
    one = judge_claim(TABLE, PGD, "g", [r for r in records if r.seed == 0]).interval_95
    assert judge_claim(TABLE, PGD, "g", records).interval_95 == pytest.approx(one, rel=0.02)


def test_the_interval_of_several_seeds_covers() -> None:
    """Of 2000 draws with a true gain of 2 points, at most one in twenty misses it."""
    generator = np.random.default_rng(3)
    chance = generator.choice([0.95, 0.05], (2000, 1, 200), p=[0.8, 0.2])  # of being withstood, by either
    a = generator.random((2000, 3, 200)) < np.clip(chance + 0.02, 0, 1)
    b = generator.random((2000, 3, 200)) < chance
    found = np.array([score_interval(gains) for gains in a.astype(float) - b])
    assert ((found[:, 0] > 0.02) | (found[:, 1] < 0.02)).sum() <= 100
    assert (found[:, 1] - found[:, 0]).mean() < 0.08  # and does not cover by its width alone
    for draw in range(3):  # it is the interval of a claim
        records = [by_hand("A", v.tolist(), seed=s) for s, v in enumerate(a[draw])]
        records += [by_hand("B", v.tolist(), seed=s) for s, v in enumerate(b[draw])]
        assert judge_claim(TABLE, PGD, "g", records).interval_95 == pytest.approx(tuple(found[draw]))


def test_sign_flip_is_mcnemars_test_for_one_seed() -> None:
    generator = np.random.default_rng(0)
    for n in (5, 40):
        a, b = generator.random((2, n)) < np.array([[0.7], [0.4]])
        assert sign_flip(a.astype(int) - b) == pytest.approx(mcnemar(a, b))
    assert sign_flip(np.zeros(4, int)) == 1.0


def test_sign_flip_counts_every_sign() -> None:
    sums = np.array([2, 1, -1, 2, 0])
    signs = np.array(np.meshgrid(*[[-1, 1]] * 4)).reshape(4, -1).T
    totals = np.abs(signs @ np.abs(sums[sums != 0]))
    assert sign_flip(sums) == pytest.approx(float((totals >= abs(sums.sum())).mean()))


def guessing(record: Record, given: np.ndarray, labels: np.ndarray | None = None) -> Record:
    """The record with other predictions on clean images, of its PGD evaluation; right ones stay robust."""
    kept = record.entry["scores"]["pgd-20"]["points"]
    y = torch.arange(len(given)) % 10 if labels is None else torch.tensor(labels)
    right = torch.tensor(given) == y
    kept |= {
        "y": pack(y.short()),
        "stage": pack(-right.char()),
        "predicted": pack(torch.tensor(given).short()),
    }
    record.entry["columns"]["PGD"]["value"] = float(right.double().mean())
    return record


CONSTANT, SOME = np.zeros(100, int), np.arange(100) % 10 * (np.arange(100) < 30)  # 10 and 37 of 100 right
UNEQUAL = np.arange(100) % 10 * (np.arange(100) % 4 == 0)  # most labels are 0


@pytest.mark.parametrize(
    ("given", "labels", "status"),
    [
        (SOME, None, "confirmed"),
        (CONSTANT, None, "undecided"),
        (CONSTANT, UNEQUAL, "undecided"),  # 80 of 100 right, and yet a guess
        (UNEQUAL, UNEQUAL, "confirmed"),
    ],
)
def test_who_has_learnt_nothing_is_no_rival(
    given: np.ndarray, labels: np.ndarray | None, status: str
) -> None:
    records = [by_hand("A", verdicts(100)), guessing(by_hand("B", verdicts(0)), given, labels)]
    verdict = judge_claim(TABLE, Claim("A", "B", "PGD", margin=1.0), "g", records)
    assert (verdict.status, verdict.at_chance) == (status, ("B",) if status == "undecided" else ())


@pytest.mark.parametrize(
    ("column", "score", "chance"),
    [("PGD", "fgsm-of-last", ()), ("PGD", "pgd-20-from-standard", ("B",)), ("s/epoch", "pgd-20", ())],
)
def test_a_guess_is_of_the_network_that_the_claim_is_on(column: str, score: str, chance: tuple) -> None:
    """Examples of another network are wrong for an attack's sake; other weights are another network."""
    b = guessing(by_hand("B", verdicts(0)), CONSTANT)
    b.entry["columns"]["PGD"]["score"] = score
    b.entry["scores"].setdefault(score, guessing(by_hand("B", verdicts(0)), SOME).entry["scores"]["pgd-20"])
    claim = Claim("A", "B", column, lower=column == "s/epoch")
    assert judge_claim(TABLE, claim, "g", [by_hand("A", verdicts(60)), b]).at_chance == chance


@pytest.mark.parametrize(("guesses", "chance"), [(1, ()), (2, ("B",))])
def test_half_of_the_seeds_make_a_guess(guesses: int, chance: tuple) -> None:
    records = [by_hand(row, verdicts(60), seed=seed) for row in "AB" for seed in range(3)]
    for record in records:
        guessing(record, CONSTANT if record.row == "B" and record.seed < guesses else SOME)
    assert judge_claim(TABLE, PGD, "g", records).at_chance == chance


def test_what_an_attack_makes_of_right_images_is_no_guess() -> None:
    """All clean images are right, and the attack turns every one into class 0."""
    b = guessing(by_hand("B", verdicts(0)), CONSTANT)
    b.entry["scores"]["pgd-20"]["points"]["stage"] = pack(torch.ones(100, dtype=torch.int8))
    assert judge_claim(TABLE, PGD, "g", [by_hand("A", verdicts(60)), b]).at_chance == ()


@pytest.mark.parametrize(
    "predicted",
    [torch.zeros(99), torch.zeros(100) - 1, torch.zeros(100) + 2**20],
    ids=["few", "below", "above"],
)
def test_a_record_of_impossible_predictions_is_refused(predicted: torch.Tensor, tmp_path: Path) -> None:
    kept = keep(guessing(by_hand("B", verdicts(0)), SOME), tmp_path, "cpu", "b")
    entry = json.loads(kept.read_text(encoding="utf-8"))
    read_record(kept)
    entry["scores"]["pgd-20"]["points"]["predicted"] = pack(predicted.int())
    kept.write_text(json.dumps(entry), encoding="utf-8")
    with pytest.raises(UserError, match="predicted"):
        read_record(kept)
