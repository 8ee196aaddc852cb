"""Which points count as robust; an evaluation leaves the model as it was."""

from __future__ import annotations

import itertools

import pytest
import torch
from tests.evaluation.conftest import affine, cloud
from torch import nn

import bivallate as bv
from bivallate.errors import UserError
from bivallate.evaluation import Attack, Score, attack, attack_and_score, attack_named
from bivallate.evaluation.inference import for_inference
from bivallate.evaluation.named_attacks import noise as draws
from bivallate.evaluation.new_runner import new_runner
from bivallate.evaluation.points import as_points
from bivallate.evaluation.state import Position
from bivallate.evaluation.verify import judge
from bivallate.lower.objective import cross_entropy
from bivallate.parts import part
from bivallate.types import Passes

FAST = ("clean", "fgsm", "pgd-3", "pgd-2-2", "cw-3-1", "noise-2", "apgd-ce-5", "apgd-dlr-5", "apgd-t-5")
SLOW = ("fab-t-4", "fab-3-2", "square-20", "multitargeted-3", "pgd-best-3", "pgd-zero-3")


@part
class Liar:
    """Claims points outside the threat, of which every model would be fooled."""

    name: str = "liar"

    def count(self, classes: int) -> int:
        return 1

    def cost(self) -> float:
        return 1

    def search(self, problem, turn):
        return torch.full_like(problem.x, torch.nan)


@part
class Raises:
    """Fails in the middle of its work."""

    name: str = "raises"

    def count(self, classes: int) -> int:
        return 1

    def cost(self) -> float:
        return 1

    def search(self, problem, turn):
        problem.but(cross_entropy).logits_and_gradient(torch.zeros_like(problem.x))
        raise RuntimeError("in the middle")


@part
class Aimless(Liar):
    """Forgets to say what it maximises."""

    def search(self, problem, turn):
        return problem.logits_and_gradient(torch.zeros_like(problem.x))[1]


@pytest.mark.parametrize("name", FAST + SLOW)
@pytest.mark.parametrize("threat", [bv.Linf(0.1), bv.L2(0.5), bv.L1(2.0)], ids=["linf", "l2", "l1"])
def test_every_attack_returns_points_of_the_threat_that_are_no_better_than_clean(
    robust_model, held_out, name, threat
):
    x, y = held_out[0][:24], held_out[1][:24]
    score = attack_and_score(robust_model, (x, y), threat, name)
    assert score.robust_accuracy <= score.clean_accuracy
    assert bool((score.robust <= score.clean).all())
    found = attack(robust_model, x, y, threat, name)
    assert found.shape == x.shape
    assert found.dtype == x.dtype
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    assert float(threat.size(found - x).max()) <= threat.eps + 1e-6
    robust_model.eval()
    with torch.no_grad():
        predicted = robust_model(found).argmax(1)
    robust_model.train()
    assert torch.equal((predicted == y) & score.clean, score.robust), "verdicts are those of the points"


def test_the_model_is_left_as_found_also_when_the_attack_raises(robust_model, held_out):
    model = nn.Sequential(robust_model, nn.Dropout(0.5))
    model.train()
    robust_model.network.body[0].eval()
    frozen = next(robust_model.parameters())
    frozen.requires_grad_(False)
    last = list(robust_model.parameters())[-1]
    last.grad = torch.full_like(last, 7.0)
    modes = [m.training for m in model.modules()]
    wants = [p.requires_grad for p in model.parameters()]
    before = torch.get_rng_state()
    try:
        for chosen in ("pgd-2", "apgd-t-3", "fab-t-2", "square-5"):
            attack_and_score(model, held_out, bv.Linf(0.1), chosen, first=8)
        with pytest.raises(RuntimeError, match="in the middle"):
            attack_and_score(model, held_out, bv.Linf(0.1), Raises(), first=8)
        assert [m.training for m in model.modules()] == modes
        assert [p.requires_grad for p in model.parameters()] == wants
        assert bool((last.grad == 7).all())
        assert torch.equal(torch.get_rng_state(), before)
    finally:
        frozen.requires_grad_(True)
        last.grad = None
        robust_model.train()


def test_a_claim_outside_the_threat_is_not_believed(robust_model, held_out):
    score = attack_and_score(robust_model, held_out, bv.Linf(0.1), Liar())
    assert score.robust_accuracy == score.clean_accuracy


def test_clean_wrong_points_count_as_not_robust_and_stay_in_the_denominator(robust_model, held_out):
    x, y = held_out
    wrong = (y + 1) % 10
    score = attack_and_score(robust_model, (x, torch.cat([y[:60], wrong[60:]])), bv.Linf(0.05), "fgsm")
    assert score.n == 120
    assert score.robust_accuracy <= 0.55
    assert score.broken_by.count("clean") == 120 - int(score.clean.sum())


def test_results_depend_on_rows_and_not_on_batches_or_order(robust_model, held_out):
    threat, names = bv.Linf(0.1), ("pgd-4-2", "apgd-t-8-3", "square-30")
    for name in names:
        whole = attack_and_score(robust_model, held_out, threat, name, first=40)
        small = attack_and_score(robust_model, held_out, threat, name, first=40, batch_size=7)
        assert torch.equal(whole.robust, small.robust)
        assert torch.allclose(whole.margin, small.margin, atol=1e-3)
    subset = attack_and_score(robust_model, held_out, threat, "pgd-4-2", n=20, seed=3)
    assert len(set(subset.index.tolist())) == 20
    again = attack_and_score(robust_model, held_out, threat, "pgd-4-2", seed=3)
    assert torch.equal(again.robust[subset.index], subset.robust)


def test_a_seed_repeats_and_another_differs(robust_model, held_out):
    first = attack_and_score(robust_model, held_out, bv.Linf(0.1), "pgd-2", seed=1)
    again = attack_and_score(robust_model, held_out, bv.Linf(0.1), "pgd-2", seed=1)
    other = attack_and_score(robust_model, held_out, bv.Linf(0.1), "pgd-2", seed=2)
    assert torch.equal(first.margin, again.margin)
    assert not torch.equal(first.margin, other.margin)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("own", "own-20", True),
        ("own-20", "own-50-10", True),
        ("own-l1", "own-l2", False),
        ("own-l2", "own-l", False),
        ("own2", "own", False),
    ],
)
def test_noise_belongs_to_the_name_of_a_stage_without_the_numbers_at_its_end(
    robust_model, held_out, one, other, same
):
    data = held_out[0][:2], held_out[1][:2]
    made = [attack(robust_model, *data, bv.Linf(0.1), draws(1, name)) for name in (one, other)]
    assert torch.equal(*made) == same


def test_a_stage_that_sets_no_objective_is_told_so(robust_model, held_out):
    with pytest.raises(UserError, match=r"problem\.but\(objective\)"):
        attack_and_score(robust_model, held_out, bv.Linf(0.1), Aimless(), first=10)


def test_a_search_from_the_clean_image_draws_nothing(robust_model, held_out):
    first, other = (
        attack_and_score(robust_model, held_out, bv.Linf(0.1), "pgd-zero-2", seed=seed) for seed in (1, 2)
    )
    assert torch.equal(first.margin, other.margin)
    one = attack_and_score(robust_model, held_out, bv.Linf(0.1), "pgd-zero-1")
    fgsm = attack_and_score(robust_model, held_out, bv.Linf(0.025), "fgsm")  # the same step of eps/4
    assert torch.equal(one.margin, fgsm.margin)


@pytest.mark.parametrize("name", ["pgd-best-{}", "apgd-ce-20"])
def test_accuracy_does_not_rise_with_eps(robust_model, held_out, name):
    radii = (0.0, 0.02, 0.06, 0.12, 0.3)
    found = [
        attack_and_score(robust_model, held_out, bv.Linf(e), name.format(10)).robust_accuracy for e in radii
    ]
    assert found == sorted(found, reverse=True)
    assert found[0] > found[-1], "the radii reach from harmless to harmful"


def test_accuracy_does_not_rise_with_steps_restarts_or_attacks(robust_model, held_out):
    threat = bv.Linf(0.1)
    steps = [attack_and_score(robust_model, held_out, threat, f"pgd-best-{k}") for k in (1, 3, 9)]
    restarts = [attack_and_score(robust_model, held_out, threat, f"pgd-4-{r}") for r in (1, 2, 4)]
    for chain in (steps, restarts):
        for weaker, stronger in itertools.pairwise(chain):
            assert bool((stronger.robust <= weaker.robust).all())
    assert steps[0].robust_accuracy > steps[-1].robust_accuracy


def test_parts_run_on_what_is_left_and_cost_nothing_for_the_broken(robust_model, held_out):
    both = Attack("both", (*attack_named("apgd-ce-10").stages, *attack_named("apgd-t-10-3").stages))
    score = attack_and_score(robust_model, held_out, bv.Linf(0.12), both)
    left = list(score.stages.values())
    assert left == sorted(left, reverse=True)
    assert list(score.stages) == ["clean", "apgd-ce", "apgd-t"]
    assert score.stages["apgd-t"] == score.robust_accuracy
    living = score.stages["clean"] + 3 * score.stages["apgd-ce"]
    assert score.passes["backward"] <= 11 * living + 1e-6


def test_eps_zero_is_no_attack(robust_model, held_out):
    for name in ("pgd-3", "apgd-ce-3", "square-5"):
        score = attack_and_score(robust_model, held_out, bv.Linf(0.0), name, first=10)
        assert score.robust_accuracy == score.clean_accuracy
        assert torch.equal(attack(robust_model, *held_out, bv.Linf(0.0), name), held_out[0])


@pytest.mark.parametrize("eps", [0.0, 0.1])
@pytest.mark.parametrize("name", ["clean", "apgd-t-1-2"])
def test_an_evaluation_that_has_ended_stands_after_its_last_stage(robust_model, held_out, name, eps):
    with for_inference(robust_model, None) as (model, where, dtype):
        options = bv.Linf(eps), attack_named(name), 0, None, where, dtype
        runner = new_runner(model, as_points(held_out), torch.arange(10), *options)
        assert not runner.state.begun
        runner.run()
    assert runner.state.begun
    assert runner.state.position == Position(len(runner.attack.stages) + 1)


@pytest.mark.parametrize(("classes", "shape"), [(2, (1, 6, 6)), (3, (3, 6, 6)), (43, (3, 5, 5)), (4, (7,))])
@pytest.mark.parametrize("threat", [bv.Linf(0.05), bv.L2(0.3), bv.L1(1.0)], ids=["linf", "l2", "l1"])
def test_any_number_of_classes_and_channels(classes, shape, threat):
    x = cloud(12, shape)
    model = affine(x[0].numel(), classes)
    with torch.no_grad():
        y = model(x).argmax(1)
    chain = Attack("all", tuple(p for name in FAST + SLOW for p in attack_named(name).stages))
    score = attack_and_score(model, (x, y), threat, chain)
    assert score.clean_accuracy == 1
    assert score.robust_accuracy < 1
    assert len(score.per_class) == classes
    one = attack_and_score(model, (x[:1], y[:1]), threat, chain)
    assert one.n == 1


def test_a_model_without_a_single_correct_point(robust_model, held_out):
    x = held_out[0]
    robust_model.eval()
    with torch.no_grad():
        wrong = (robust_model(x).argmax(1) + 1) % 10
    robust_model.train()
    for name in ("autoattack", "pgd-5"):
        score = attack_and_score(robust_model, (x, wrong), bv.Linf(0.1), name)
        assert score.robust_accuracy == score.clean_accuracy == 0
        assert score.passes == {"forward": 1.0, "backward": 0.0}


def test_double_precision_and_functions_are_welcome(held_out):
    x, y = held_out[0][:10].double(), held_out[1][:10]
    model = affine(64, 10).double()
    score = attack_and_score(model, (x, y), bv.Linf(0.1), "pgd-3")
    found = attack(lambda images: model(images.double()), x, y, bv.Linf(0.1), "fgsm")
    assert score.n == 10
    assert found.dtype == torch.float64


def test_noise_is_weaker_than_pgd(robust_model, held_out):
    noise = attack_and_score(robust_model, held_out, bv.Linf(0.1), draws(5))
    pgd = attack_and_score(robust_model, held_out, bv.Linf(0.1), "pgd-10")
    assert isinstance(noise, Score)
    assert pgd.robust_accuracy < noise.robust_accuracy <= noise.clean_accuracy


@pytest.mark.parametrize("threat", [bv.L2(10.0), bv.L2(40.0), bv.Linf(0.9), bv.L1(400.0)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_in_a_large_ball_hides_no_success_and_lets_none_out(threat, dtype):
    x = cloud(40, (3, 64, 64)).to(dtype)
    model = affine(3 * 64 * 64, 4).to(dtype)
    y = model(x).argmax(1)
    far = 5 * (cloud(40, (3, 64, 64), seed=1).to(dtype) - 0.5)
    passes = Passes()
    verdict = judge(model, x, y, threat.project(far, x), threat, passes)
    assert torch.equal(verdict.fooled, verdict.predicted != y), "no candidate is refused for its rounding"
    assert int(verdict.fooled.sum()) > 0
    size = threat.size(verdict.x_adv.double() - x.double())
    assert float(size.max()) <= threat.eps + 1e-6
    assert float(size.min()) >= threat.eps - 1e-4


@pytest.mark.parametrize("threat", [bv.L2(10.0), bv.Linf(0.1), bv.L1(12.0)], ids=str)
def test_a_candidate_that_the_projection_leaves_outside_is_not_a_success(threat):
    x = cloud(10, (3, 64, 64))
    model = affine(3 * 64 * 64, 4)
    verdict = judge(model, x, model(x).argmax(1), torch.full_like(x, 1e30), threat, Passes())
    assert float(threat.size(verdict.x_adv.double() - x.double()).max()) <= threat.eps + 1e-6
