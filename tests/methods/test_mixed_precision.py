"""Under autocast, passes of which more than a gradient's signs is used keep full precision."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.methods.glue import CLASSES, EPS, SHAPE, Net, gap, minibatches, train

import bivallate as bv
from bivallate import L2, Linf, methods
from bivallate.lower import forward
from bivallate.lower.problem import LowerProblem
from bivallate.types import Batch, Facts

THREAT = Linf(EPS)
FACTS = Facts(15, SHAPE, CLASSES, dtype=torch.float32)


def batch() -> Batch:
    x, y, index = minibatches()[0]
    return Batch(x.float(), y, index)


def net(norm: bool = True) -> tuple[Net, list[str]]:
    """A network that asks for bfloat16, and a letter for each of its passes: h(alf) or f(ull)."""
    model, seen = Net(norm).float(), list[str]()
    model.autocast_dtype = torch.bfloat16  # pyright: ignore
    model.stem.register_forward_hook(lambda _, __, out: seen.append("fh"[out.dtype == torch.bfloat16]))
    return model, seen


@pytest.mark.parametrize(
    ("method", "passes"),
    [
        (methods.plain(THREAT), "h"),
        (methods.at(THREAT, steps=2), "hhh"),
        (methods.at(L2(0.3), steps=2), "ffh"),
        (methods.n_fgsm(THREAT), "hh"),
        (methods.fat(THREAT, steps=2, tau=2), "hhh"),
        (
            methods.trades(THREAT, steps=2),
            "ffhhh",
        ),  # f: the first step, at nearly no slope, and the constant target
        (methods.lbgat(THREAT, steps=2), "ffhhh"),
        (methods.free_at(THREAT, replays=2), "hh"),
        (methods.dynamic(THREAT, steps=2, c_max=0), "ffh"),
        (methods.fast_at_ga(THREAT), "fhf"),  # the attack's gradient is the penalty's first
        (methods.at_awp(THREAT, steps=1), "hhh"),
        (methods.fast_bat(THREAT), "fff"),
        (methods.fast_bat(THREAT, cross_at="delta", curvature_steps=1), "fffff"),
        (methods.fast_bat(THREAT).but(loss=bv.Trades()), "ffhf"),
        (methods.fast_bat(THREAT).but(loss=bv.AWP(bv.Adversarial())), "ffhf"),
        (methods.done_gd(THREAT, steps=2), "fff"),
        (methods.done_adam(THREAT, steps=2), "fff"),
        (methods.done_pgd(THREAT, steps=2), "hhf"),
        (methods.done_pgd(THREAT, steps=2).but(attack_mode="eval"), "hhff"),
    ],
    ids=lambda value: value.name if isinstance(value, bv.Method) else value,
)
def test_where_sizes_count_precision_is_full(method: bv.Method, passes: str) -> None:
    model, seen = net()
    train(model, method, [batch()], facts=FACTS)
    assert "".join(seen) == passes


def test_fast_bat_does_not_change_under_autocast() -> None:
    half, whole = net()[0], Net().float()
    for model in (half, whole):
        train(model, methods.fast_bat(THREAT), [batch()], facts=FACTS)
    assert gap(half, whole) == 0
    assert gap(half, Net().float()) > 1e-4


def test_the_gradient_is_exact_unless_only_its_signs_are_asked_for() -> None:
    model, _ = net(norm=False)
    plain = copy.deepcopy(model)
    plain.autocast_dtype = None  # pyright: ignore
    delta = torch.zeros_like(batch().x)
    problems = [
        LowerProblem(m.eval(), batch(), bv.methods.at(THREAT).objective, THREAT) for m in (model, plain)
    ]
    exact, expected = (problem.logits_and_gradient(delta)[1] for problem in problems)
    assert torch.equal(exact, expected)
    coarse = problems[0].logits_and_gradient(delta, signs=True)[1]
    assert not torch.equal(coarse, expected)
    assert (coarse.sign() == expected.sign()).double().mean() > 0.9
    products = [problem.curvature(delta)(torch.ones_like(delta)) for problem in problems]
    assert torch.equal(*products)


def test_frozen_weights_are_cast_once_and_to_the_same_values(monkeypatch) -> None:
    method = methods.at(THREAT, steps=3)
    cast, (model, _) = copy.deepcopy(net()[0]), net()
    model.load_state_dict(cast.state_dict())
    made = []
    of = forward.CastWeight.of
    monkeypatch.setattr(forward.CastWeight, "of", lambda *given: made.append(given[1]) or of(*given))
    train(cast, method, [batch()])
    weights = [n for n, m in cast.named_modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert 0 < made.count("weight") <= len(weights)
    monkeypatch.setattr(forward, "castable", lambda model: [])
    train(model, method, [batch()])
    for (name, p), q in zip(cast.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(p, q), name
        assert isinstance(p, torch.nn.Parameter), "what was lent is given back"


def test_a_weight_that_has_moved_is_cast_anew() -> None:
    model, _ = net()
    model.eval().requires_grad_(False)
    asked, x = forward.Forward(model), batch().x
    before = asked(x)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    assert not torch.equal(asked(x), before)
    assert torch.equal(asked(x), forward.Forward(model)(x))
