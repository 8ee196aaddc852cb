"""HAT written out: TRADES and helper examples, after epochs of plain training whose network labels them."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from tests.reference.plainsgd import Draws, MiniBatch, Rate, at, box, clip, cross_entropy, kl, sgd, still
from torch import nn


def hat(
    model: nn.Module,
    batches: Sequence[MiniBatch],
    draws: Draws,
    *,
    eps: float,
    lr: Rate,
    epochs: Sequence[int],
    begin: int,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    step: float = 0.0,
    steps: int = 10,
    beta: float = 2.5,
    gamma: float = 0.5,
    h: float = 2.0,
) -> list[float]:
    """CE(x) before the epoch `begin`; from it on CE(x) + beta KL + gamma CE(x + h r) with the label that the
    plain network gives x + r. Returns the share of such labels that are not the image's own, by minibatch."""
    params, buffers, plain, wrong = list(model.parameters()), [], None, []
    for t, (x, y, index) in enumerate(batches):
        if epochs[t] < begin:
            model.train()
            # its two passes, of which the divergence is zero, both move the running statistics
            model(x)
            loss = cross_entropy(model(x), y).mean()
            sgd(params, torch.autograd.grad(loss, params), buffers, at(lr, t), momentum, weight_decay)
            continue
        if plain is None:
            plain = copy.deepcopy(model).eval()
        lo, up = box(x, eps)
        delta = clip(0.001 * draws("start:normal", t, x, index), lo, up)
        with still(model, "eval"):
            clean = model(x).detach()
            for _ in range(steps):
                delta = delta.detach().requires_grad_()
                (g,) = torch.autograd.grad(kl(clean, model(x + delta)).sum(), delta)
                delta = clip(delta.detach() + step * g.sign(), lo, up)
        r = delta.detach()
        with torch.no_grad():
            label = plain(x + r).argmax(1)
        wrong.append(float((label != y).double().mean()))
        model.train()
        natural, adv, beyond = model(x), model(x + r), model(x + h * r)
        loss = (
            cross_entropy(natural, y) + beta * kl(natural, adv) + gamma * cross_entropy(beyond, label)
        ).mean()
        sgd(params, torch.autograd.grad(loss, params), buffers, at(lr, t), momentum, weight_decay)
    return wrong
