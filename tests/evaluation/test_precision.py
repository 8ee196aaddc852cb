"""A search in another number format: verdicts stay float32's, and it finds what the usual search finds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.evaluation.conftest import affine, cloud

import bivallate as bv
from bivallate.cli import run as command_line
from bivallate.errors import UserError
from bivallate.evaluation import attack_and_score
from bivallate.evaluation.score import Score
from bivallate.evaluation.search import Fooled, ScaledPGD, Search, stage_bears_rounding
from bivallate.evaluation.search_model import LowerPrecision
from bivallate.evaluation.verify import logits_of
from bivallate.lower.apgd import APGD
from bivallate.lower.direction import Adam, Raw
from bivallate.lower.fab import FAB
from bivallate.lower.objective import clearly_fooled, cross_entropy
from bivallate.lower.problem import LowerProblem
from bivallate.lower.solver import Solver
from bivallate.lower.square import Square
from bivallate.reports.collect import collect
from bivallate.reports.comparison.compare_runs import compare
from bivallate.types import Batch, Clock, Passes


@pytest.fixture(scope="module")
def withstands():
    """A network on digits that withstands about half of what is tried."""
    data = bv.data.load("digits")
    model = bv.models.create("tiny-cnn", num_classes=10, shape=data.shape, seed=0)
    bv.train(model, data, bv.methods.at(bv.Linf(0.1), steps=3), epochs=6, seed=0, threads=1)
    return model.eval(), data.test


ATTACKS = ["pgd-10", "pgd-best-10", "cw-10-1", "apgd-ce-20", "apgd-t-10-3", "fab-t-10-3", "square-100"]


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_search_in_bfloat16_finds_what_one_in_float32_finds(withstands, attack: str) -> None:
    model, test = withstands
    usual = attack_and_score(model, test, bv.Linf(0.1), attack, n=200)
    lowered = attack_and_score(model, test, bv.Linf(0.1), attack, n=200, search_precision="bf16")
    assert 0.1 < usual.robust_accuracy < usual.clean_accuracy
    assert abs(usual.robust_accuracy - lowered.robust_accuracy) <= 0.01
    assert lowered.clean_accuracy == usual.clean_accuracy
    assert "bf16" in Score.from_json(lowered.to_json()).warnings[-1]
    assert [Score.from_json(s.to_json()).search_precision for s in (usual, lowered)] == ["float32", "bf16"]
    assert Score.from_json({k: v for k, v in usual.to_json().items() if k != "search_precision"})


@pytest.mark.parametrize(
    ("solver", "lowered"),
    [
        (ScaledPGD(), True),
        (APGD(), True),
        (ScaledPGD(stop=Fooled()), False),
        (ScaledPGD(direction=Raw()), False),
        (ScaledPGD(direction=Adam()), False),
        (FAB(), False),
        (Square(), False),
    ],
    ids=str,
)
def test_a_search_is_lowered_only_where_rounding_does_not_mislead_it(solver: Solver, lowered: bool) -> None:
    assert stage_bears_rounding(Search("own", solver)) == lowered


def test_no_point_counts_as_broken_that_float32_does_not_confirm(withstands) -> None:
    model, test = withstands
    x, y = test.tensors(torch.arange(100))
    score = attack_and_score(model, (x, y), bv.Linf(0.1), "pgd-10", search_precision="bf16")
    clean = logits_of(model, x, Passes()).argmax(1) == y
    assert torch.equal(score.broken_at == 0, ~clean)


def test_a_search_is_not_led_astray_by_its_own_rounding() -> None:
    coarse = LowerPrecision(affine(64, 4), "bf16")
    x = cloud(12, (1, 8, 8))
    exact, rounded = affine(64, 4)(x), coarse(x)
    assert (exact - rounded).abs().max() > 1e-5
    assert (exact - rounded).abs().max() <= coarse.rounding * exact.abs().max()


def test_a_copy_in_another_precision_states_its_rounding_at_other_parameters_too() -> None:
    coarse = LowerPrecision(affine(64, 4), "bf16")
    x, y = cloud(12, (1, 8, 8)), torch.zeros(12, dtype=torch.long)
    problem = LowerProblem(coarse, Batch(x, y, y), cross_entropy, bv.Linf(0.1), Clock())
    # wrong by less than the rounding, and by more
    logits = torch.tensor([[1.0, 1.01, 0, 0], [1.0, 2.0, 0, 0]])
    for each in (problem, problem.at(dict(coarse.named_parameters()))):
        assert each.forward.rounding == coarse.rounding
        assert clearly_fooled(each, logits, y[:2]).tolist() == [False, True]


def test_other_precisions_are_refused() -> None:
    x = cloud(4, (1, 8, 8))
    y = affine(64, 4)(x).argmax(1)
    for wrong, said in (("bf61", "did you mean 'bf16'"), ("tf32", "is of CUDA devices")):
        with pytest.raises(UserError, match=said):
            attack_and_score(affine(64, 4), (x, y), bv.Linf(0.1), "pgd-2", search_precision=wrong)


def test_the_command_searches_in_it_and_no_other_evaluation_is_overwritten(tmp_path, capsys) -> None:
    run = tmp_path / "run"
    bv.train("linear", "digits", "plain", eps=0.1, epochs=1, out=run, threads=1)
    for options in ([], ["--search-precision", "bf16"]):
        capsys.readouterr()
        asked = ["evaluate", str(run), "--attack", "pgd-2", "--first", "20", "--json", *options]
        assert command_line(asked) == 0
    assert json.loads(capsys.readouterr().out)["search_precision"] == "bf16"
    with pytest.deprecated_call(match="precision of evaluate is now called search_precision"):
        bv.evaluate(run, attack="pgd-2", first=20, precision="bf16")
    kept = {p.name: Score.load(p).search_precision for p in (run / "evaluation").glob("*.json")}
    name = "best-linf-0.1-pgd-2-seed0-first20"
    assert kept == {f"{name}.json": "float32", f"{name}-bf16.json": "bf16"}
    assert {e.identity.first for e in collect([run])[0].evaluations} == {20}
    assert Path(compare([run]).rows[0]["evaluation"]).name == f"{name}.json", "of equals the exact one"
    assert command_line(["evaluate", str(run), "--search-precision", "bf61"]) == 2
