"""LBGAT written out: at attacked points a network follows the clean logits of another that learns along."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from tests.reference.plainsgd import Draws, MiniBatch, Rate, at, box, clip, cross_entropy, kl, sgd, still
from torch import nn


def lbgat(
    model: nn.Module,
    batches: Sequence[MiniBatch],
    draws: Draws,
    *,
    eps: float,
    lr: Rate,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    step: float = 0.0,
    steps: int = 10,
    alpha: float = 0.0,
    gamma: float = 1.0,
    guide_lr: float | None = None,
    guide_momentum: float = 0.9,
    guide_decay: float = 5e-4,
) -> nn.Module:
    """mean over rows and classes of (z(x') - g(x))^2, plus gamma CE(g(x)), plus alpha KL(p(x) || p(x')); one
    gradient in the weights of z and g. x' by sign steps on the divergence of z. The outer passes in train
    mode: first x' and with alpha then x through z, x through g. Returns g, which begins as z."""
    guide = copy.deepcopy(model)
    own, others = list(model.parameters()), list(guide.parameters())
    buffers, running = [], []
    for t, (x, y, index) in enumerate(batches):
        lo, up = box(x, eps)
        delta = clip(0.001 * draws("start:normal", t, x, index), lo, up)
        with still(model, "eval"):
            target = model(x).detach()
            for _ in range(steps):
                delta = delta.detach().requires_grad_()
                (slope,) = torch.autograd.grad(kl(target, model(x + delta)).sum(), delta)
                delta = clip(delta.detach() + step * slope.sign(), lo, up)
        model.train()
        guide.train()
        adv = model(x + delta.detach())
        clean = model(x) if alpha else None
        taught = guide(x)
        n, k = adv.shape
        loss = ((adv - taught) ** 2).sum() / (n * k) + gamma * cross_entropy(taught, y).sum() / n
        if clean is not None:
            loss = loss + alpha * kl(clean, adv).sum() / n
        grads = torch.autograd.grad(loss, [*own, *others])
        rate = at(lr, t)
        sgd(own, grads[: len(own)], buffers, rate, momentum, weight_decay)
        theirs = rate if guide_lr is None else guide_lr
        sgd(others, grads[len(own) :], running, theirs, guide_momentum, guide_decay)
    return guide
