"""TRADES (M13) and MART (M14), written out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tests.reference.plainsgd import Draws, MiniBatch, Rate, at, box, clip, cross_entropy, kl, sgd, still
from torch import Tensor, nn


def trades(
    model: nn.Module,
    batches: Sequence[MiniBatch],
    draws: Draws,
    *,
    eps: float,
    lr: Rate,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    beta: float = 6.0,
    steps: int = 10,
    alpha: float = 0.007,
    project_start: bool = True,
    attack_mode: str = "eval",
) -> list[dict[str, float]]:
    """mean CE(f(x), y) + beta mean KL(p(x) || p(x')), x' by K sign steps on the KL from 0.001 times normal
    noise.

    The target of the attack is p(x) in the attack's mode, a constant. The outer passes: first x, then x',
    both in train mode; the gradient flows through both. Draws: "start:normal" like x.
    """
    params = list(model.parameters())
    buffers: list[Tensor] = []
    log = []
    for t, (x, y, index) in enumerate(batches):
        lo, up = box(x, eps)
        delta = 0.001 * draws("start:normal", t, x, index)
        if project_start:
            delta = clip(delta, lo, up)
        with still(model, attack_mode):
            target = model(x).detach()
            for _ in range(steps):
                delta = delta.detach().requires_grad_()
                (g,) = torch.autograd.grad(kl(target, model(x + delta)).sum(), delta)
                delta = clip(delta.detach() + alpha * g.sign(), lo, up)

        model.train()
        clean = model(x)
        adv = model(x + delta.detach())
        natural = cross_entropy(clean, y).mean()
        robust = kl(clean, adv).mean()
        loss = natural + beta * robust
        grads = torch.autograd.grad(loss, params)
        sgd(params, grads, buffers, at(lr, t), momentum, weight_decay)
        log.append({"loss": loss.item(), "natural": natural.item(), "kl": robust.item()})
    return log


def mart_terms(clean: Tensor, adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) boosted cross-entropy and (B,) KL(p(x) || p(x')) (1 - p_y(x) + 1e-7), nothing detached."""
    n = torch.arange(len(y))
    p, q = clean.softmax(1), adv.softmax(1)
    others = q.clone()
    others[n, y] = -1.0
    wrong = others.max(1).values
    bce = cross_entropy(adv, y) - torch.log(1.0001 - wrong + 1e-12)
    divergence = (p * (torch.log(p) - torch.log(q + 1e-12))).sum(1)
    return bce, divergence * (1 - p[n, y] + 1e-7)


def mart(
    model: nn.Module,
    batches: Sequence[MiniBatch],
    draws: Draws,
    *,
    eps: float,
    lr: Rate,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    beta: float = 5.0,
    steps: int = 10,
    alpha: float = 0.007,
    project_start: bool = True,
    attack_mode: str = "eval",
) -> list[dict[str, float]]:
    """mean BCE(x') + beta mean KL (1 - p_y), x' by K sign steps on CE from 0.001 times normal noise.

    The outer passes: first x, then x', both in train mode. Draws: "start:normal" like x.
    """
    params = list(model.parameters())
    buffers: list[Tensor] = []
    log = []
    for t, (x, y, index) in enumerate(batches):
        lo, up = box(x, eps)
        delta = 0.001 * draws("start:normal", t, x, index)
        if project_start:
            delta = clip(delta, lo, up)
        with still(model, attack_mode):
            for _ in range(steps):
                delta = delta.detach().requires_grad_()
                (g,) = torch.autograd.grad(cross_entropy(model(x + delta), y).sum(), delta)
                delta = clip(delta.detach() + alpha * g.sign(), lo, up)

        model.train()
        clean = model(x)
        adv = model(x + delta.detach())
        bce, weighted_kl = mart_terms(clean, adv, y)
        loss = bce.mean() + beta * weighted_kl.mean()
        grads = torch.autograd.grad(loss, params)
        sgd(params, grads, buffers, at(lr, t), momentum, weight_decay)
        log.append({"loss": loss.item(), "bce": bce.mean().item(), "kl": weighted_kl.mean().item()})
    return log
