"""Adversarial weight perturbation: references, reductions, and what its extra pass may change."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.methods.glue import EPS, Net, agree, asked, gap, minibatches, train
from tests.reference import awp as reference

from bivallate import Linf, UserError, methods
from bivallate.upper.awp import AWP
from bivallate.upper.loss import Adversarial, Loss, Mart, Trades, adversarial
from bivallate.weighting.rules import MAIL

THREAT = Linf(EPS)


@pytest.mark.parametrize("decay", [0.0, 5e-4])
@pytest.mark.parametrize("gamma", [0.01, 0.1])
def test_at_awp(decay, gamma) -> None:
    decay_at = "perturbed" if decay else "plain"
    method = methods.at_awp(THREAT, gamma=gamma, decay=decay)
    agree(method, reference.awp, gamma=gamma, alpha=EPS / 4, decay_at=decay_at)


@pytest.mark.parametrize("decay", [0.0, 5e-4])
def test_trades_awp(decay) -> None:
    decay_at = "perturbed" if decay else "plain"
    method = methods.trades_awp(THREAT, warm_up=0, decay=decay)
    agree(method, reference.awp, host="trades", alpha=EPS / 4, decay_at=decay_at)


def test_the_two_weight_decays_differ() -> None:
    ends = [
        train(Net(), methods.at_awp(THREAT, gamma=0.1, decay=d), minibatches()).model for d in (0.0, 0.05)
    ]
    assert gap(*ends) > 1e-5


def test_warms_up() -> None:
    method = methods.trades_awp(THREAT)
    trained = agree(
        method,
        reference.awp,
        host="trades",
        epoch=[0, 9, 10],
        epochs=20,
        alpha=EPS / 4,
        decay_at="plain",
        active=[False, False, True],
    )
    per_example = [r.passes.forward / r.examples for r in trained.records]
    assert per_example == [13, 13, 15]


@pytest.mark.parametrize("loss", [adversarial, Adversarial(0.1), Trades(6.0), Mart()], ids=str)
def test_without_gamma_it_is_the_host(loss) -> None:
    host = methods.at(THREAT).but(loss=loss)
    a, b = train(Net(), host, minibatches()), train(Net(), host.but(loss=AWP(loss, 0.0)), minibatches())
    assert gap(a.model, Net()) > 1e-3
    assert gap(a.model, b.model) <= 1e-12
    assert [r.passes.forward for r in a.records] == [r.passes.forward for r in b.records]


def perturbation(net: Net, loss: Loss, gamma: float = 0.01) -> dict[str, torch.Tensor]:
    """v at the first minibatch."""
    x, y, _ = minibatches()[0]
    return AWP(loss, gamma)._perturbation(asked(net.train(), x, y), (x + 0.01).clamp(0, 1))


def test_size_and_kind_of_the_perturbation() -> None:
    net = Net()
    v = perturbation(net, adversarial, 0.03)
    parameters = {n: p.detach() for n, p in net.named_parameters()}
    assert set(v) == {"stem.weight", "conv.weight", "head.weight"}
    for name, v_l in v.items():
        assert v_l.norm() / parameters[name].norm() == pytest.approx(0.03, rel=1e-7)
        assert not v_l.requires_grad


def test_the_perturbation_knows_no_scale_and_climbs() -> None:
    net = Net()

    class Scaled(Loss):
        def __call__(self, *args: Any):
            terms = adversarial(*args)
            return type(terms)(1e3 * terms.robust, terms.anchor, terms.logits)

    one, thousand = perturbation(net, adversarial), perturbation(net, Scaled())
    for name in one:
        torch.testing.assert_close(one[name], thousand[name], rtol=1e-9, atol=1e-15)
    x, y, _ = minibatches()[0]
    problem, x_adv = asked(net, x, y), (x + 0.01).clamp(0, 1)
    values = [float(AWP(adversarial, g)(problem, x_adv).robust.mean().detach()) for g in (0.0, 1e-3, 1e-2)]
    assert values[0] < values[1] < values[2]


def test_only_the_perturbed_pass_moves_the_statistics() -> None:
    net, (x, y, _) = Net().train(), minibatches()[0]
    found = copy.deepcopy(net.state_dict())
    perturbation(net, adversarial)
    assert all(torch.equal(v, found[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    AWP(adversarial)(asked(net, x, y), x)
    assert int(net.norm1.num_batches_tracked) == int(found["norm1.num_batches_tracked"]) + 1
    assert not torch.equal(net.norm2.running_mean, found["norm2.running_mean"])


def test_the_gradient_is_the_hosts_at_the_perturbed_weights() -> None:
    net, (x, y, _) = Net().train(), minibatches()[0]
    v = perturbation(net, adversarial, 0.05)
    x_adv = (x + 0.01).clamp(0, 1)
    other = copy.deepcopy(net)
    AWP(adversarial, 0.05)(asked(net, x, y), x_adv).robust.mean().backward()
    with torch.no_grad():
        for name, p in other.named_parameters():
            p.add_(v.get(name, torch.zeros_like(p)))
    adversarial(asked(other, x, y), x_adv).robust.mean().backward()
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-10, atol=1e-13)


def test_wraps_weighted_methods_too() -> None:
    method = methods.mail_trades(THREAT, burn_in=0.0).but(loss=AWP(Trades(5.0)))
    assert isinstance(method.weighting.rule, MAIL)
    assert gap(train(Net(), method, minibatches()).model, Net()) > 1e-3


def test_bad_values_are_refused() -> None:
    for fields, message in (
        ({"gamma": -1.0}, "at least 0"),
        ({"warm_up": 0.5}, "warm_up must be a whole number"),
    ):
        with pytest.raises(UserError, match=message):
            AWP(adversarial, **fields)  # pyright: ignore
