"""Bastion, written out: TRADES' loss, and an attack that grows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tests.reference.plainsgd import Draws, MiniBatch, Rate, at, box, clip, cross_entropy, kl, sgd, still
from torch import Tensor, nn


def bastion(
    model: nn.Module,
    batches: Sequence[MiniBatch],
    draws: Draws,
    *,
    eps: float,
    lr: Rate,
    epochs: Sequence[int],
    run: int,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    beta: float = 6.0,
    steps: int = 3,
    alpha: float | None = None,
    until: float = 2 / 3,
    attack_mode: str = "eval",
) -> list[dict[str, float]]:
    """mean CE(f(x), y) + beta mean KL(p(x) || p(x')), x' by k sign steps of alpha on the cross-entropy.

    k = floor(1 + (K - 1) min(1, t / (until T))) in epoch t of T = run; alpha is 0.75 eps unless given. The
    outer passes: first x, then x', both in train mode. epochs: t of each minibatch. Draws: "start:uniform"
    like x.
    """
    step_size = 0.75 * eps if alpha is None else alpha
    params = list(model.parameters())
    buffers: list[Tensor] = []
    log = []
    for t, (x, y, index) in enumerate(batches):
        k = int(1 + (steps - 1) * min(1.0, epochs[t] / (until * run)))
        lo, up = box(x, eps)
        delta = clip(eps * (2 * draws("start:uniform", t, x, index) - 1), lo, up)
        with still(model, attack_mode):
            for _ in range(k):
                delta = delta.detach().requires_grad_()
                (g,) = torch.autograd.grad(cross_entropy(model(x + delta), y).sum(), delta)
                delta = clip(delta.detach() + step_size * g.sign(), lo, up)

        model.train()
        clean = model(x)
        adv = model(x + delta.detach())
        loss = cross_entropy(clean, y).mean() + beta * kl(clean, adv).mean()
        grads = torch.autograd.grad(loss, params)
        sgd(params, grads, buffers, at(lr, t), momentum, weight_decay)
        log.append({"loss": loss.item(), "level": float(k)})
    return log
