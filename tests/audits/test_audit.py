"""The audit's arithmetic, its budget, its record, and that it leaves no trace."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tests.audits.villains import LARGE, THREAT, NoGraph, digits, model_of, thermometer
from torch import nn

import bivallate as bv
from bivallate.audits import Audit, Check, audit, battery
from bivallate.audits.attack_checks import _collapse as collapse
from bivallate.audits.exact_tests import below, excess, gap
from bivallate.audits.plan import LEVELS, choose
from bivallate.audits.result import AuditProgress
from bivallate.audits.surrogates import StraightThrough, SurrogateSearch, linear_imitation
from bivallate.cli import run
from bivallate.evaluation import Attack, Search, attack_and_score
from bivallate.evaluation.named_attacks import noise as draws
from bivallate.learnable import copied
from bivallate.run.config import Validation


def points(n=60):
    x, y = digits()[1]
    return x[:n], y[:n]


def first(n, count):
    """(n,) bool with so many leading True."""
    return torch.arange(n) < count


def test_gaps_are_flagged_by_exact_tests_only():
    everything = first(200, 200)
    assert not gap(everything, first(200, 190), 0.05).significant, "exactly the tolerance"
    assert not gap(everything, first(200, 184), 0.05).significant, "8 % of 200 points may be noise"
    assert gap(everything, first(200, 176), 0.05).significant
    found = gap(everything, first(200, 150), 0.05)
    assert (found.count, found.share) == (50, 0.25)
    assert found.interval[0] < 0.25 < found.interval[1]


class Dead(nn.Module):
    """One class for every image; `hidden` is a model that answers where an attack has moved the image."""

    def __init__(self, hidden: nn.Module | None = None) -> None:
        super().__init__()
        self.bias, self.hidden = nn.Parameter(torch.arange(10.0)), hidden

    def forward(self, x):
        logits = self.bias.expand(len(x), -1) + 0 * x.flatten(1).sum(1, keepdim=True)
        if self.hidden is None:
            return logits
        moved = ((16 * x).frac().flatten(1) > 0).any(1, keepdim=True)  # the images are whole sixteenths
        return torch.where(moved, self.hidden(x), logits)


def test_a_model_that_has_learned_nothing_is_no_liar():
    found = audit(Dead(), points(), THREAT, budget_passes=1e5)
    assert not found.is_suspicious
    assert found.named("gradients").outcome == "note"
    assert "learned nothing" in found.named("gradients").finding
    moved = audit(Dead(model_of("at", 0)), points(), THREAT, budget_passes=1e5)
    assert moved.named("gradients").outcome == "flag", "attacks change something that no gradient shows"


def skewed():
    """60 points, half of them of class 9."""
    x, y = digits()[1]
    rows = torch.cat([(y == 9).nonzero()[:30, 0], (y != 9).nonzero()[:30, 0]])
    return x[rows], y[rows]


class Drifting(Dead):
    """Class 9 for nearly every image: another one for those that are all bright, which attacks may reach."""

    def forward(self, x):
        bright = x.flatten(1).mean(1, keepdim=True) ** 2
        return super().forward(x) + torch.eye(10)[0] * (18 * bright)


@pytest.mark.parametrize("model", [Dead(), Drifting()])
def test_what_has_learned_nothing_is_not_suspect(model):
    """Though half of its answers stay right where every image may become any other."""
    found = audit(model, skewed(), THREAT, budget_passes=1e5)
    assert found.verdict == "weak but honest"
    assert found.named("learned").outcome == "note"
    assert audit(model_of("at", 0), points(), THREAT, budget_passes=1e5).named("learned").outcome == "pass"


def test_an_excess_counts_both_ways():
    a, b = first(200, 120), first(200, 150)
    assert excess(a, b, 0.01).significant
    assert excess(a, b, 0.01).share == pytest.approx(0.15)
    assert not excess(b, a, 0.01).significant
    assert not excess(a, a, 0.01).significant
    assert not excess(a, b, 0.2).significant, "below the tolerance"


def test_the_tests_accuse_a_model_on_the_border_no_more_often_than_they_say():
    """Of 2,000 honest audits whose true gap is the tolerance, at most about 0.5 % are accused."""
    generator = torch.Generator().manual_seed(0)
    broken = torch.rand(2000, 300, generator=generator) < 0.05
    whole = torch.ones(300, dtype=torch.bool)
    accused = sum(gap(whole, ~row, 0.05).significant for row in broken)
    assert 0 < accused <= 20
    lucky = torch.rand(2, 1000, 300, generator=generator) < 0.5
    assert sum(excess(a, b, 0.0).significant for a, b in zip(*lucky, strict=True)) <= 12


def test_a_claim_is_refuted_only_by_evidence():
    assert below(30, 100, 0.5)
    assert not below(45, 100, 0.5)
    assert not below(0, 100, 0.0)


def test_a_larger_budget_buys_strength_and_a_smaller_one_fewer_points():
    assert [choose(500, budget).level for budget in (1e9, 3e6, 6e5)] == ["full", "standard", "quick"]
    few = choose(500, 1e5)
    assert few.level == "quick"
    assert 50 <= few.n < 500
    assert few.cost() <= 1e5
    with pytest.raises(bv.UserError, match="too small"):
        choose(500, 1e4)


def test_gradients_pass_through_rounding_detaching_and_comparing():
    x = torch.rand(4, 1, 8, 8, requires_grad=True)

    class Hides(nn.Module):
        def forward(self, v):
            return thermometer(v) + (3 * v).round() / 3 + v.detach()

    values = Hides()(x)
    straight = StraightThrough(Hides())(x)
    assert torch.equal(values, straight), "the values are the model's own"
    assert not values.requires_grad or not bool(torch.autograd.grad(values.sum(), x)[0].any())
    assert bool((torch.autograd.grad(straight.sum(), x)[0] > 1.5).all())


def test_attacks_on_a_linear_imitation_transfer_to_a_model_without_gradients():
    model, (x, y) = NoGraph(model_of("plain", 0)).eval(), points(200)
    copy = linear_imitation(model, x, LARGE.eps)
    part = SurrogateSearch("imitation", copy, Search("pgd"))
    imitated = attack_and_score(model, (x, y), LARGE, Attack("imitation", (part,)))
    noise = attack_and_score(model, (x, y), LARGE, Attack("noise", (draws(10),)))
    assert excess(imitated.robust, noise.robust, 0.05).significant


def test_the_spent_passes_stay_within_the_plan_that_was_announced():
    said, seen = [], []
    found = audit(
        model_of("plain", 0),
        points(),
        THREAT,
        budget_passes=8e4,
        announce=lambda plan, seconds: said.append((plan, seconds)),
        progress=seen.append,
    )
    plan, seconds = said[0]
    assert plan.cost() <= 8e4
    assert 0 < found.passes <= plan.cost()
    assert seconds > 0
    assert seen[-1].attack == "done"
    assert [m.passes for m in seen] == sorted(m.passes for m in seen)


def test_an_audit_repeats_and_leaves_everything_as_found(tmp_path):
    model = model_of("plain", 0).train()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    generator = torch.get_rng_state()
    first_time, second = (audit(model, points(), THREAT, budget_passes=8e4, seed=3) for _ in range(2))
    assert torch.equal(generator, torch.get_rng_state())
    assert model.training
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in state.items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    model.eval()
    assert first_time.accuracy == second.accuracy
    first_time.save(tmp_path / "audit" / "a.json")
    entry = json.loads((tmp_path / "audit" / "a.json").read_text())
    assert entry["schema"] == "bivallate-audit-1"
    assert entry["verdict"] == first_time.verdict
    assert entry["plan"]["passes"] >= entry["passes"]
    assert {check["name"] for check in entry["checks"]} == {c.name for c in first_time.checks}


def test_a_model_in_train_mode_is_audited_in_eval_mode(monkeypatch):
    layers = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(0.5), model_of("plain", 0))
    state, generator = {k: v.clone() for k, v in layers.state_dict().items()}, torch.get_rng_state()
    numbers = [
        audit(layers.train(mode), points(), THREAT, budget_passes=8e4).named("learned").numbers
        for mode in (False, True)
    ]
    assert numbers[0] == numbers[1]
    assert torch.equal(generator, torch.get_rng_state())
    assert all(torch.equal(v, layers.state_dict()[k]) for k, v in state.items())
    with monkeypatch.context() as patch, torch.inference_mode():
        patch.setattr(torch.cuda, "manual_seed_all", None)  # nobody seeds a card
        assert audit(layers, points(), THREAT, budget_passes=8e4).named("learned").numbers == numbers[0]


class Particular(nn.Module):
    """A model that insists on the type of its own mask."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x):
        mask = x > 0.5
        assert mask.dtype == torch.bool
        return self.inner(torch.where(mask, x, x))


def test_a_model_that_checks_its_masks_can_be_audited():
    assert not audit(Particular(model_of("plain", 0)), points(), THREAT, budget_passes=8e4).is_suspicious


def test_plain_training_at_a_radius_that_fgsm_hardly_crosses_claims_nothing():
    """FGSM leaves two fifths of the clean accuracy, PGD next to nothing, and nobody has claimed anything."""
    clean = torch.ones(200, dtype=torch.bool)
    left = {"fgsm": first(200, 84), "pgd": first(200, 10), "fgsm-short": first(200, 40)}
    run = SimpleNamespace(scores={"fgsm": SimpleNamespace(clean=clean)}, left=left)
    assert collapse(run, claimed=False).outcome == "note"
    assert collapse(run, claimed=True).outcome == "broken"
    run.left["fgsm"] = first(200, 150)
    assert collapse(run, claimed=False).outcome == "broken"


def test_surrogates_are_used_and_history_is_read():
    history = [{"epoch": 1, "robust": 0.6}, {"epoch": 2, "robust": 0.1}]
    surrogate = model_of("plain", 1)
    found = audit(
        model_of("plain", 0), points(), THREAT, budget_passes=1e5, surrogates=[surrogate], history=history
    )
    assert found.named("transfer").outcome == "pass"
    assert found.named("transfer").numbers["transfer"] < found.clean
    assert found.named("history").outcome == "note"
    assert "epoch 2" in found.named("history").finding
    assert not found.is_suspicious
    for dtype, most in ((torch.float64, 0.0), (torch.float16, 0.05)):  # rounding may turn a point
        other = audit(
            model_of("plain", 0),
            points(),
            THREAT,
            budget_passes=1e5,
            surrogates=[copied(surrogate).to(dtype)],
        )
        assert abs(other.accuracy["transfer"] - found.accuracy["transfer"]) <= most
    assert next(surrogate.parameters()).dtype == torch.float32


class Pair(nn.Module):
    """A model that returns its logits and something else."""

    def forward(self, x):
        return x.flatten(1)[:, :10], x


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"surrogates": [Pair()]}, "model 1 to transfer from: the model must return logits"),
        ({"n": 0}, "n must be a whole number of at least 1, got 0"),
        ({"n": "5"}, "n must be a whole number"),
        ({"minutes": "10"}, "minutes must be a number"),
        ({"surrogates": Pair()}, "surrogates are a list of models"),
    ],
)
def test_what_cannot_be_audited_is_refused(options, words):
    with pytest.raises(bv.UserError, match=words):
        audit(model_of("plain", 0), points(), THREAT, budget_passes=1e5, **options)


def test_a_linear_copy_of_many_points_is_fitted_to_some_of_them(monkeypatch):
    fitted = []

    def imitation(model, x, spread, seed):
        fitted.append(x)
        return linear_imitation(model, x, spread, seed)

    monkeypatch.setattr(battery, "IMITATED", 25)
    monkeypatch.setattr(battery, "linear_imitation", imitation)
    found = audit(model_of("plain", 0), points(), THREAT, budget_passes=1e5)
    assert [len(x) for x in fitted] == [20], "every third of sixty"
    assert found.accuracy["imitation"] < found.clean


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"claimed": 50.0}, "fraction"),
        ({"threat": bv.Linf(0.0)}, "radius above 0"),
        ({"threat": 8 / 255}, "threat must be a threat model"),
        ({"minutes": -1.0}, "positive"),
        ({"points": (255 * points()[0], points()[1])}, "divide by 255"),
        ({"points": (points()[0], points()[1] + 10)}, "labels"),
    ],
    ids=["claimed", "eps", "threat", "minutes", "bytes", "labels"],
)
def test_what_cannot_be_audited_is_said(change, words):
    where, threat = change.pop("points", points()), change.pop("threat", THREAT)
    with pytest.raises(bv.UserError, match=words):
        audit(model_of("plain", 0), where, threat, **change)


def test_a_verdict_follows_from_the_checks():
    def verdict(worst, *outcomes):
        checks = tuple(Check("c", "?", outcome, {}, "") for outcome in outcomes)
        interval = (0.0, 1.0)
        made = Audit(checks, {}, 0.9, interval, worst, interval, 0.5, "", 1, 0, THREAT, {}, 0, 0.0, "", "")
        return made.verdict

    assert verdict(0.5, "pass", "note", "skipped") == "believable"
    assert verdict(0.1, "pass") == "weak but honest"
    assert verdict(0.5, "pass", "flag") == "suspect"
    assert verdict(0.5, "flag", "broken") == "not robust as claimed"


def test_a_model_that_guesses_is_weak():
    torch.manual_seed(0)
    untrained = bv.models.create("fc1", num_classes=10, shape=(1, 8, 8), hidden=64).eval()
    found = audit(untrained, points(), bv.Linf(0.01), n=100, budget_passes=1e5)
    assert found.verdict == "weak but honest"


def test_the_command_keeps_its_result_and_holds_the_runs_evaluation_against_it(tmp_path, capsys):
    folder = tmp_path / "run"
    method = bv.methods.plain(bv.Linf(0.2))
    bv.train("linear", "digits", method, epochs=1, out=folder, validation=Validation(1, 20))
    capsys.readouterr()
    assert run(["evaluate", str(folder), "--attack", "fgsm", "--n", "60"]) == 0
    assert "pre-flight: all is well" in capsys.readouterr().err
    assert run(["evaluate", str(folder), "--attack", "fgsm", "--n", "60", "--no-preflight"]) == 0
    assert "pre-flight" not in capsys.readouterr().err
    assert run(["evaluate", str(folder), "--attack", "noise", "--n", "60"]) == 0  # no attack, and no claim
    capsys.readouterr()
    assert run(["audit", str(folder), "--n", "20", "--json", "--against", str(folder)]) == 0
    shown = json.loads(capsys.readouterr().out)
    kept = json.loads((folder / "audit" / "best-linf-0.2-audit-seed0.json").read_text())
    assert shown == kept
    assert kept["claim"] == "evaluation fgsm, 60 points"
    assert kept["n"] == 20
    assert "transfer" in kept["accuracy"]
    assert run(["audit", str(folder), "--n", "20", "--claimed", "0.9"]) == 0
    printed = capsys.readouterr()
    assert "not robust as claimed" in printed.out
    assert "what to do" in printed.out
    assert "passes, about" in printed.err
    assert run(["audit", str(folder), "--weights", "bets"]) == 2
    assert "did you mean 'best'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fraction", "seconds", "likely", "left"),
    [
        (0.0, 3.0, 60.0, 60.0),  # nothing spent yet: what was measured before
        (0.001, 3.0, 60.0, 75.0),  # what begins slowly does not become hours
        (0.5, 40.0, 60.0, 40.0),
        (0.0, 3.0, None, None),
        (0.25, 10.0, None, 30.0),
    ],
)
def test_the_time_left_follows_the_outlook_until_there_is_a_pace(fraction, seconds, likely, left):
    told = AuditProgress("pgd", fraction, 0, seconds, likely).seconds_left
    assert told == (left if left is None else pytest.approx(left, rel=0.05))


@pytest.mark.parametrize("plan", LEVELS)
def test_a_plan_costs_most_where_nothing_breaks(plan):
    plan = replace(plan, n=10)
    assert plan.expected(1, 1) == plan.cost()
    assert plan.expected(0.9, 0.0) < 0.6 * plan.cost()
    assert plan.expected(0.0, 0.0) == 0


def test_a_true_difference_at_the_tolerance_is_rarely_an_excess():
    """At most once in 200 times, by a score test of the difference itself."""
    draw = torch.Generator().manual_seed(0)
    accused = 0
    for _ in range(1000):
        u = torch.rand(500, generator=draw)
        by, than = u >= 0.07, (u < 0.07) | (u >= 0.09)  # breaks 7 % and 2 %: 5 points more
        accused += excess(by, than, 0.05).significant
    assert accused <= 12
    assert excess(torch.arange(500) >= 60, torch.ones(500, dtype=torch.bool), 0.05).significant
