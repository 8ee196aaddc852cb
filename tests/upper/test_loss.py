"""The losses computed by hand, and the gradients that flow through them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from tests.coupling.differences import gradient, relative
from tests.methods.glue import EPS, Net, asked, minibatches
from torch import nn

from bivallate import Adversarial, Linf, Trades, methods
from bivallate.types import Batch

BATCH = Batch(*minibatches((6,))[0])


def test_adversarial_is_cross_entropy() -> None:
    z = torch.tensor([[1.0, 0.0, -1.0], [0.5, 0.5, 3.0]], dtype=torch.float64)
    y = torch.tensor([0, 1])
    terms = Adversarial()(asked(nn.Identity(), z * 0, y), z)
    by_hand = [
        math.log(math.e + 1 + math.exp(-1)) - 1,
        math.log(2 * math.exp(0.5) + math.exp(3)) - 0.5,
    ]
    assert terms.robust.tolist() == pytest.approx(by_hand, rel=1e-12)
    assert terms.anchor.tolist() == [0, 0]
    assert torch.equal(terms.logits, z)
    smooth = Adversarial(0.3)(asked(nn.Identity(), z, y), z).robust
    everywhere = -z.log_softmax(1).mean(1)
    assert torch.allclose(smooth, 0.7 * terms.robust + 0.3 * everywhere)


def test_trades_by_hand() -> None:
    clean = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).log()
    adv = torch.tensor([[0.25, 0.5, 0.25]], dtype=torch.float64).log()
    terms = Trades(beta=3.0)(asked(nn.Identity(), clean, torch.tensor([0])), adv)
    assert float(terms.robust) == pytest.approx(3 * 0.25 * math.log(2))
    assert float(terms.anchor) == pytest.approx(math.log(2))
    assert torch.equal(terms.logits, adv)
    swapped = Trades(beta=3.0)(asked(nn.Identity(), adv, torch.tensor([0])), clean)
    assert float(swapped.anchor) == pytest.approx(math.log(4)), "the anchor is of the clean point"


def test_trades_lets_the_gradient_through_both_branches() -> None:
    model = Net().eval()
    found, _ = gradient(model, methods.trades(Linf(EPS), steps=2), BATCH)
    detached = Trades(6.0)
    x_adv = 1 - BATCH.x
    clean, adv = model(BATCH.x), model(x_adv)
    both = F.kl_div(adv.log_softmax(1), clean.softmax(1), reduction="batchmean")
    one = F.kl_div(adv.log_softmax(1), clean.detach().softmax(1), reduction="batchmean")
    parameters = list(model.parameters())
    flat = [
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, retain_graph=True)])
        for loss in (both, one, (detached(asked(model, BATCH.x, BATCH.y), x_adv).robust / 6).mean())
    ]
    assert relative(flat[2], flat[0]) < 1e-12
    assert relative(flat[2], flat[1]) > 1e-2
    assert found.norm() > 0


def test_limits_of_trades() -> None:
    model = Net().eval()
    plain, _ = gradient(model, methods.plain(Linf(EPS)), BATCH)
    for method in (methods.trades(Linf(EPS), beta=0.0), methods.trades(Linf(0.0))):
        assert relative(gradient(model, method, BATCH)[0], plain) < 1e-12


def test_divergence_is_never_negative_and_vanishes_only_at_equality() -> None:
    generator = torch.Generator().manual_seed(0)
    clean, adv = (5 * torch.randn(50, 4, generator=generator) for _ in range(2))
    y = torch.zeros(50, dtype=torch.long)
    assert (Trades()(asked(nn.Identity(), clean, y), adv).robust > 0).all()
    assert Trades()(asked(nn.Identity(), clean, y), clean).robust.abs().max() < 1e-6
