"""Scores, intervals and comparisons agree with values computed by hand."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
from scipy.stats import t as student
from tests.evaluation.conftest import affine

import bivallate as bv
from bivallate.errors import UserError
from bivallate.evaluation import (
    Attack,
    Identity,
    Score,
    attack_and_score,
    attack_named,
    attacks,
    evaluation_name,
    over_seeds,
    rank,
)
from bivallate.evaluation.metrics import TrainingCost
from bivallate.evaluation.statistics import bootstrap_tail, holm, mcnemar, tail, welch, wilson


def made(y, stage, predicted, *, name="pgd-20", seed=0) -> Score:
    """A score from columns."""
    n = len(y)
    return Score(
        attack=name,
        detail=attack_named("pgd-20"),
        threat=bv.Linf(0.1),
        classes=4,
        y=torch.tensor(y),
        predicted=torch.tensor(predicted),
        margin=torch.zeros(n),
        broken_at=torch.tensor(stage),
        index=torch.arange(n),
        stage_names=("pgd-20",),
        passes={"forward": 1.0, "backward": 1.0},
        seconds=1.0,
        seed=seed,
        data_fingerprint="d",
        model_fingerprint="m",
    )


HAND = made(
    y=[0, 0, 0, 0, 1, 1, 2, 2], stage=[-1, -1, -1, 1, -1, 0, 1, 1], predicted=[0, 0, 0, 1, 1, 2, 0, 1]
)


def test_scores_of_a_hand_made_evaluation():
    assert HAND.robust_accuracy == 0.5
    assert HAND.clean_accuracy == 0.875
    assert HAND.per_class == [0.75, 0.5, 0.0, None]
    assert HAND.per_class_clean == [1.0, 0.5, 1.0, None]
    assert HAND.worst_class == (2, 0.0)
    assert HAND.class_gini == pytest.approx((0.25 + 0.75 + 0.5) * 2 / (2 * 9 * 1.25 / 3))
    assert made(y=[0, 1], stage=[0, 1], predicted=[1, 0]).class_gini is None
    assert HAND.tail(30) == 0.0  # ceil(.3 * 3) = 1 class
    assert HAND.tail(60) == 0.25
    assert HAND.tail(60, pooled=True) == 0.25
    assert HAND.tail(100) == pytest.approx((0.75 + 0.5) / 3)
    assert HAND.tail(100, pooled=True) == 0.5
    assert HAND.confusion.tolist() == [[3, 1, 0, 0], [0, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    assert HAND.broken_by == [None, None, None, "pgd-20", None, "clean", "pgd-20", "pgd-20"]
    assert HAND.stages == {"clean": 0.875, "pgd-20": 0.5}


def test_the_tail_of_43_classes_takes_13():
    counts = np.full(43, 10)
    hits = np.arange(43) % 11
    low = np.sort(hits / 10)[:13]
    assert tail(hits, counts, 30)[0] == pytest.approx(low.mean())


def test_wilson_agrees_with_its_equation():
    for hits, n in ((1, 30), (15, 30), (29, 30)):
        for bound in wilson(hits, n):
            assert abs(hits / n - bound) == pytest.approx(
                1.959964 * math.sqrt(bound * (1 - bound) / n), rel=1e-4
            )
    assert wilson(0, 20)[0] == 0
    assert wilson(20, 20)[1] == 1


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (1, 1), (0, 20), (7, 20), (999, 1000), (1000, 1000)])
def test_wilson_agrees_with_scipy(hits: int, n: int) -> None:
    there = scipy.stats.binomtest(hits, n).proportion_ci(0.95, method="wilson")
    assert wilson(hits, n) == pytest.approx((there.low, there.high), abs=1e-12)


def test_the_tail_interval_covers_its_value_and_shrinks_with_points():
    few = made(y=[0, 1, 2, 3] * 10, stage=[-1, 1] * 20, predicted=[0] * 40)
    low, high = few.tail_interval(50)
    assert low <= few.tail(50) <= high
    mixed = [-1 if i % 3 else 1 for i in range(400)]
    many = made(y=[0, 1, 2, 3] * 100, stage=mixed, predicted=[0] * 400)
    fewer = made(y=[0, 1, 2, 3] * 10, stage=mixed[:40], predicted=[0] * 40)
    assert np.diff(many.tail_interval(50)) < np.diff(fewer.tail_interval(50))


CLASSES = {
    "equal": np.full(10, 0.5),
    "one clearly worst": np.array([0.2] + [0.6] * 9),
    "zero": np.array([0.0] * 3 + [0.4] * 7),
    "near zero": np.full(10, 0.02),
}


@pytest.mark.parametrize("k", [10, 30])
@pytest.mark.parametrize("name", CLASSES)
def test_the_tail_interval_covers_as_often_as_it_says(name, k):
    """60 samples of 10 classes of 100 points: 95 % promised, at least 90 % asked for here."""
    truth, counts = CLASSES[name], np.full(10, 100)
    target, generator = np.sort(truth)[: k // 10].mean(), np.random.default_rng(0)
    inside = 0
    for _ in range(60):
        hits = generator.binomial(counts, truth)
        low, high = bootstrap_tail(hits, counts, k, draws=200)
        assert low <= tail(hits, counts, k)[0] <= high
        inside += low <= target <= high
    assert inside >= 54


@pytest.mark.parametrize("pooled", [False, True])
def test_the_tail_interval_contains_its_score_and_is_never_a_point(pooled):
    counts = np.full(10, 100)
    for hits in (0, 50, 100):
        low, high = bootstrap_tail(np.full(10, hits), counts, 30, pooled=pooled)
        assert low <= hits / 100 <= high
        assert high - low > 0.005
    uneven = np.array([5, 50, 0, 200])
    low, high = bootstrap_tail(np.array([1, 20, 0, 90]), uneven, 50, pooled=pooled)
    assert low <= tail(np.array([1, 20, 0, 90]), uneven, 50)[int(pooled)] <= high


def test_mcnemar_is_the_binomial_test_of_the_discordant():
    a = np.array([True] * 9 + [False] * 3)
    b = np.array([False] * 8 + [True] + [False] * 3)
    assert mcnemar(a, b) == pytest.approx(2 * 0.5**8)
    assert mcnemar(a, a) == 1


def test_comparison_ranks_and_tests_on_the_same_points():
    good = made(y=[0, 1, 2, 3] * 5, stage=[-1] * 18 + [1] * 2, predicted=[0] * 20)
    bad = made(y=[0, 1, 2, 3] * 5, stage=[-1] * 4 + [1] * 16, predicted=[0] * 20)
    rows = rank(bad, good, names=["bad", "good"])
    assert [row.name for row in rows] == ["good", "bad"]
    assert rows[0].p_value is None
    assert rows[1].p_value == pytest.approx(2 * 0.5**14)
    assert rows[1].significant
    other = Score.from_json({**bad.to_json(), "data_fingerprint": "elsewhere"})
    assert rank(good, other)[1].p_value is None
    with pytest.raises(UserError, match="one attack and threat"):
        rank(good, made([0], [-1], [0], name="fgsm"))
    with pytest.raises(UserError, match="did you mean"):
        rank(good, sort="robust_acuracy")


def test_marks_are_corrected_for_all_pairs():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1, 1])
    assert holm([]) == []
    made_of = {k: made([0] * 20, [-1] * k + [1] * (20 - k), [0] * 20) for k in (20, 12, 6)}
    rows = rank(*made_of.values(), names=list(map(str, made_of)))
    raw = [2 * 0.5**8, 2 * 0.5**6, 2 * 0.5**14]  # 20 against 12, 12 against 6, 20 against 6
    assert [row.p_value for row in rows[1:]] == pytest.approx([raw[0], raw[2]])
    assert [row.p_adjusted for row in rows[1:]] == pytest.approx([2 * raw[0], 3 * raw[2]])
    costs = [TrainingCost(2, 2, 9.0), None, TrainingCost(1, 1, 1.0)]
    cheap = rank(*made_of.values(), training=costs, sort="training_passes")
    assert [row.training_passes for row in cheap] == [2, 4, math.inf]
    dear = rank(*made_of.values(), training=costs, sort="training_passes", descending=True)
    assert [row.training_passes for row in dear] == [4, 2, math.inf], "an unknown value stands last"
    with pytest.raises(UserError, match="as many training costs"):
        rank(*made_of.values(), training=costs[:2])


def test_welchs_test_of_two_methods_over_seeds():
    first, second = (0.50, 0.52, 0.54), (0.40, 0.44, 0.48)
    squared = 0.02**2 / 3 + 0.04**2 / 3
    freedom = squared**2 / ((0.02**2 / 3) ** 2 / 2 + (0.04**2 / 3) ** 2 / 2)
    assert welch(first, second) == pytest.approx(2 * student.sf(0.08 / squared**0.5, freedom))
    assert welch(first, second[:1]) is None
    assert welch((0.5, 0.5), (0.6, 0.6)) is None, "nothing to judge a difference by"


def test_spread_over_seeds_is_students():
    scores = [made([0] * 10, [-1] * k + [1] * (10 - k), [0] * 10) for k in (4, 5, 6)]
    spread = over_seeds(scores)["robust_accuracy"]
    assert spread.mean == pytest.approx(0.5)
    assert spread.std == pytest.approx(0.1)
    assert spread.interval_95 == pytest.approx((0.5 - 4.302653 * 0.1 / 3**0.5, 0.5 + 4.302653 * 0.1 / 3**0.5))
    assert over_seeds(scores[:1])["tail_30"].std is None
    for stranger, said in (
        (made([0] * 10, [-1] * 10, [0] * 10, name="fgsm"), "one attack and threat"),
        (replace(scores[0], threat=bv.L2(0.1)), "one attack and threat"),
        (replace(scores[0], index=torch.arange(1, 11)), "the same rows of the data"),
        (made([0] * 9, [-1] * 9, [0] * 9), "the same rows of the data"),
    ):
        with pytest.raises(UserError, match=said):
            over_seeds([*scores, stranger])


def test_json_holds_everything_and_returns(robust_model, held_out, tmp_path):
    score = attack_and_score(robust_model, held_out, bv.L2(0.5), "pgd-3-2", n=30, seed=2)
    content = json.loads(json.dumps(score.to_json(), allow_nan=False))
    again = Score.from_json(content)
    assert again.to_json() == score.to_json()
    assert again.threat == bv.L2(0.5)
    assert again.detail == score.detail
    assert again.identity == Identity(weights="", split="", n=30), "nobody says which weights these are"
    path = tmp_path / "evaluation" / evaluation_name("best", score.threat, score.attack, score.seed)
    score.save(path)
    assert Score.load(path).robust_accuracy == score.robust_accuracy
    path.write_text("{")
    with pytest.raises(UserError, match="not a readable evaluation"):
        Score.load(path)
    required = (
        "schema attack threat n clean_accuracy robust_accuracy interval_95 per_class tail_30 stages passes"
    )
    assert set(required.split()) <= set(content)
    threats = (bv.Linf(0.1), bv.L2(0.1), bv.L2(0.2))
    every = itertools.product(("best", "last"), threats, ("pgd-20", "pgd-2"), (0, 1))
    names = {evaluation_name(*one) for one in every}
    assert len(names) == 24


def test_every_accuracy_has_an_interval():
    """Wilson's for proportions; that of the worst class allows for its choice, so it is no narrower."""
    content = json.loads(json.dumps(HAND.to_json(), allow_nan=False))
    accuracies = [k for k in content if f"{k}_interval_95" in content]
    assert set(accuracies) == {"per_class", "per_class_clean", "worst_class", "tail_30", "tail_30_pooled"}
    assert content["per_class_interval_95"][:2] == [list(wilson(3, 4)), list(wilson(1, 2))]
    assert content["per_class_clean_interval_95"][2:] == [list(wilson(2, 2)), None]
    assert HAND.worst_class_interval_95[0] == 0
    shares = HAND.confusion_interval_95
    assert shares[0, 1].tolist() == list(wilson(1, 4))
    assert shares[3].tolist() == [[0, 1]] * 4
    chance = made(y=list(range(4)) * 100, stage=([-1] * 4 + [1] * 4) * 50, predicted=[0] * 400)
    assert chance.worst_class_interval_95[1] > wilson(50, 100)[1], "four equal classes: one is lowest by luck"


def test_a_class_without_points_is_null_and_noted(robust_model, held_out):
    x, y = held_out
    score = attack_and_score(robust_model, (x[y != 3], y[y != 3]), bv.Linf(0.1), "fgsm")
    assert score.per_class[3] is None
    assert "class 3" in score.warnings[0]
    assert json.loads(json.dumps(score.to_json()))["per_class"][3] is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda c: c["points"]["y"].update(zlib=c["points"]["y"]["zlib"][:8]),
        lambda c: c["points"]["y"].update(dtype="none"),
        lambda c: c.update(points=[]),
        lambda c: c.update(schema="other"),
    ],
)
def test_a_damaged_score_is_named(tmp_path, damage):
    content, path = HAND.to_json(), tmp_path / "score.json"
    damage(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"score.json is not a readable evaluation"):
        Score.load(path)


def test_a_score_of_many_parts_keeps_their_numbers():
    many = replace(HAND, broken_at=torch.full((8,), 200), stage_names=tuple(map(str, range(200))))
    assert Score.from_json(many.to_json()).broken_by == ["199"] * 8


BAD = [
    ({"data": (torch.rand(4, 1, 8, 8) * 3, torch.zeros(4).long())}, r"\[0, 1\], got values"),
    ({"data": (torch.full((4, 1, 8, 8), torch.nan), torch.zeros(4).long())}, r"\[0, 1\]"),
    ({"data": (torch.zeros(4, 1, 8, 8).byte(), torch.zeros(4).long())}, "floating point"),
    ({"data": (torch.zeros(0, 1, 8, 8), torch.zeros(0).long())}, "empty"),
    ({"data": (torch.zeros(4, 1, 8, 8), torch.zeros(3).long())}, "labels for the N images"),
    ({"data": (torch.zeros(4, 1, 8, 8), torch.full((4,), 10))}, "labels must lie in 0..9"),
    ({"data": (torch.zeros(4, 1, 8, 8), torch.full((4,), -1))}, "labels must lie in 0..9"),
    ({"data": (torch.zeros(4, 1, 8, 8), torch.zeros(4))}, "labels must be integers"),
    ({"data": 7}, "a split, a pair"),
    ({"attack": "pdg-20"}, "did you mean"),
    ({"attack": "pgd-0"}, "at least 1, got 0"),
    ({"attack": "pgd-20-0"}, "at least 1, got 0"),
    ({"attack": "pgd"}, "must be written pgd-N"),
    ({"attack": "fgsm-3"}, "must be written fgsm"),
    ({"attack": "pgd-1-2-3"}, "must be written pgd-N"),
    ({"attack": 3}, "a name or an Attack"),
    ({"n": 5}, "the data has 4 points"),
    ({"n": 0}, "at least 1"),
    ({"n": 1, "first": 1}, "not both"),
    ({"batch_size": 0}, "batch_size"),
]


@pytest.mark.parametrize(("changed", "message"), BAD, ids=[f"{i}" for i in range(len(BAD))])
def test_bad_input_is_refused_with_a_clear_message(changed, message):
    usual = {"data": (torch.rand(4, 1, 8, 8), torch.zeros(4).long()), "attack": "fgsm"}
    given = {**usual, **changed}
    with pytest.raises(UserError, match=message):
        attack_and_score(affine(64, 10), given.pop("data"), bv.Linf(0.1), **given)


def test_models_that_cannot_be_scored_are_refused():
    data = torch.rand(4, 1, 8, 8), torch.zeros(4).long()
    broken = affine(64, 10)
    with torch.no_grad():
        broken[1].weight[0, 0] = torch.nan
    with pytest.raises(UserError, match="NaN or infinite logits"):
        attack_and_score(broken, data, bv.Linf(0.1), "fgsm")
    with pytest.raises(UserError, match="at least two classes"):
        attack_and_score(affine(64, 1), data, bv.Linf(0.1), "fgsm")
    with pytest.raises(UserError, match="logits of shape"):
        attack_and_score(torch.nn.Flatten(0), data, bv.Linf(0.1), "fgsm")


def test_every_listed_attack_can_be_parsed():
    for written in attacks():
        name = written.split("[")[0].replace("-N", "-2")
        assert isinstance(attack_named(name), Attack)


def test_welch_with_one_method_whose_seeds_agree():
    p = welch([0.87, 0.87], [0.85, 0.852])
    assert p is not None
    assert 0 < p < 0.1


def test_the_former_name_of_the_stage_still_works() -> None:
    with pytest.deprecated_call(match="broken_at"):
        assert HAND.stage is HAND.broken_at
