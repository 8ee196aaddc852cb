"""Evaluations within several threats, joined: each verdict as a loop over the points decides it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.evaluation.conftest import affine, cloud

import bivallate as bv
from bivallate.errors import UserError
from bivallate.evaluation import (
    Attack,
    Score,
    ThreatUnion,
    attack_and_score,
    attack_named,
    evaluation_name,
    rank,
    within_all,
)
from bivallate.evaluation.threat_union import radius, same_threat, spelt, union_of

THREATS = bv.Linf(0.03), bv.L2(0.25), bv.L1(1.0)


@pytest.fixture(scope="module")
def scores() -> list[Score]:
    """A linear model of 16 pixels and three classes on random points, attacked within each threat."""
    model, x = affine(16, 3), cloud(200, (1, 4, 4))
    with torch.no_grad():
        y = model(x).argmax(1)
    y[:20] = (y[:20] + 1) % 3  # wrong before any attack
    attack = Attack("two", (*attack_named("pgd-2").stages, *attack_named("cw-10").stages))
    return [attack_and_score(model, (x, y), threat, attack) for threat in THREATS]


def test_a_point_is_robust_if_it_withstands_every_attack(scores: list[Score]) -> None:
    joined = within_all(scores)
    names = [f"{name}, {radius(s.threat)}" for s in scores for name in s.stage_names]
    for k in range(joined.n):
        broken = [f"{s.broken_by[k]}, {radius(s.threat)}" for s in scores if not s.robust[k]]
        wrong = any(s.broken_by[k] == "clean" for s in scores)
        assert joined.broken_by[k] == ("clean" if wrong else broken[0] if broken else None)
        some = [s for s in scores if not s.robust[k]] or scores
        worst = min(some, key=lambda s: float(s.margin[k]))
        assert joined.margin[k] == worst.margin[k]
        assert joined.predicted[k] == worst.predicted[k]
    assert list(joined.stage_names) == names
    each = [int(s.robust.sum()) for s in scores]
    assert 0 < int(joined.robust.sum()) < min(each), f"no threat is redundant here: {each}"
    assert joined.stages[names[-1]] == joined.robust_accuracy
    assert joined.clean_accuracy == scores[0].clean_accuracy == 0.9
    assert joined.passes == {key: sum(s.passes[key] for s in scores) for key in scores[0].passes}


def test_the_order_of_the_threats_changes_no_verdict(scores: list[Score]) -> None:
    joined, turned = within_all(scores), within_all(scores[::-1])
    assert torch.equal(joined.robust, turned.robust)
    assert torch.equal(joined.margin, turned.margin)
    assert same_threat(joined.threat, turned.threat)
    assert len(rank(joined, turned)) == 2


def test_a_joined_score_is_kept_like_any_other(scores: list[Score], tmp_path) -> None:
    joined = within_all(scores)
    joined.save(tmp_path / "all.json")
    again = Score.load(tmp_path / "all.json")
    assert again.to_json() == joined.to_json()
    assert again.threat == ThreatUnion(THREATS)
    assert "all of Linf 0.03, L2 0.25, L1 1 on 200 points" in repr(again)


def test_scores_that_do_not_belong_together_are_refused(scores: list[Score]) -> None:
    first, second, third = scores
    for wrong, said in (
        ([first], "two or more"),
        ([first, first], "names a threat twice: Linf 0.03, Linf 0.03"),
        ([within_all([first, second]), third], "a union holds threats"),
        ([first, replace(second, model_fingerprint="other")], "one model"),
        ([first, replace(second, data_fingerprint="other")], "one data"),
        ([first, replace(second, index=second.index.flip(0))], "same points in the same order"),
    ):
        with pytest.raises(UserError, match=said):
            within_all(wrong)
    with pytest.raises(UserError, match="of one attack and threat"):
        rank(within_all(scores), first)


def test_different_attacks_are_joined_under_both_names_and_their_warnings_say_the_threat(scores) -> None:
    first, second, third = scores
    noted = [replace(first, warnings=("same", "own")), replace(second, attack="fgsm", warnings=("same",))]
    joined = within_all([*noted, replace(third, warnings=("same",))])
    assert joined.attack == joined.detail.name == "two + fgsm"
    assert joined.warnings == ("same", "Linf 0.03: own")
    assert torch.equal(joined.robust, within_all(scores).robust)


def test_unions_are_no_threats_to_train_or_attack_under() -> None:
    with pytest.raises(UserError, match="two or more"):
        ThreatUnion((bv.Linf(0.1),))
    with pytest.raises(UserError, match="twice"):
        ThreatUnion((bv.Linf(0.1), bv.L2(0.5), bv.Linf(0.1 + 1e-9)))
    with pytest.raises(UserError):
        bv.methods.at(ThreatUnion(THREATS))  # pyright: ignore[reportArgumentType]


def test_threats_are_equal_up_to_rounding_and_order() -> None:
    one, other = union_of([bv.Linf(8 / 255), bv.L2(0.5)]), union_of([bv.L2(0.5), bv.Linf(0.031372549)])
    assert same_threat(one, other)
    assert not same_threat(one, bv.Linf(8 / 255))
    assert not same_threat(one, union_of([bv.Linf(8 / 255), bv.L2(0.6)]))
    assert union_of([bv.L2(0.5)]) == bv.L2(0.5)
    assert spelt(one) == ["linf:0.03137254901960784", "l2:0.5"]


@pytest.mark.parametrize("eps", [8 / 255, 0.1, 1.0, 12.0, 0.999995])
def test_threats_whose_files_have_one_name_are_one_threat(eps: float) -> None:
    written = float(f"{eps:.6g}")
    assert evaluation_name("best", bv.L2(eps), "fgsm", 0) == evaluation_name(
        "best", bv.L2(written), "fgsm", 0
    )
    assert same_threat(bv.L2(eps), bv.L2(written))
    nearest = written * (1 + 0.9e-5)
    if evaluation_name("best", bv.L2(nearest), "fgsm", 0) == evaluation_name("best", bv.L2(eps), "fgsm", 0):
        assert same_threat(bv.L2(eps), bv.L2(nearest))
    assert not same_threat(bv.L2(eps), bv.L2(1.001 * eps))
