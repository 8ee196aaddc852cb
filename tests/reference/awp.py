"""Adversarial weight perturbation (M23) around AT and TRADES, written out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tests.reference.plainsgd import Draws, MiniBatch, Rate, at, box, clip, cross_entropy, kl, sgd, still
from torch import Tensor, nn


def awp(
    model: nn.Module,
    batches: Sequence[MiniBatch],
    draws: Draws,
    *,
    eps: float,
    lr: Rate,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    host: str = "at",
    gamma: float | None = None,
    beta: float = 6.0,
    steps: int = 10,
    alpha: float = 2 / 255,
    copy_lr: float = 0.01,
    active: Sequence[bool] | None = None,
    decay_at: str = "perturbed",
    project_start: bool = True,
    attack_mode: str | None = None,
) -> list[dict[str, float]]:
    """The host's step at theta + gamma d, then gamma d taken back; d_l = ||theta_l|| diff_l / (||diff_l|| +
    1e-20).

    diff: one plain SGD step of copy_lr that climbs the host loss on a train-mode copy whose pass moves no
    running statistics; only tensors with more than one dimension are perturbed. gamma: 0.01 (at), 0.005
    (trades). active: of each minibatch, whether the perturbation is on (warm-up). decay_at: weight decay acts
    on theta + gamma d ("perturbed", as described) or on theta ("plain"). attack_mode: "train" (at), "eval"
    (trades). Draws: "start:uniform" (at) or "start:normal" times 0.001 (trades) like x.
    """
    size = (0.01 if host == "at" else 0.005) if gamma is None else gamma
    mode = ("train" if host == "at" else "eval") if attack_mode is None else attack_mode
    params = list(model.parameters())
    buffers: list[Tensor] = []
    log = []
    for t, (x, y, index) in enumerate(batches):
        # 1. x' at theta
        lo, up = box(x, eps)
        if host == "at":
            delta = clip(eps * (2 * draws("start:uniform", t, x, index) - 1), lo, up)
        else:
            delta = 0.001 * draws("start:normal", t, x, index)
            delta = clip(delta, lo, up) if project_start else delta
        with still(model, mode):
            target = model(x).detach()
            for _ in range(steps):
                delta = delta.detach().requires_grad_()
                logits = model(x + delta)
                objective = cross_entropy(logits, y) if host == "at" else kl(target, logits)
                (g,) = torch.autograd.grad(objective.sum(), delta)
                delta = clip(delta.detach() + alpha * g.sign(), lo, up)
        delta = delta.detach()

        # 2. the copy's ascent step
        with still(model, "train"):
            if host == "at":
                climbed = cross_entropy(model(x + delta), y).mean()
            else:
                clean, adv = model(x), model(x + delta)
                climbed = cross_entropy(clean, y).mean() + beta * kl(clean, adv).mean()
            up_grads = torch.autograd.grad(climbed, params)

        # 3. the perturbation of each tensor
        v = []
        for p, g in zip(params, up_grads, strict=True):
            diff = copy_lr * g
            d = p.detach().norm() * diff / (diff.norm() + 1e-20)
            on = p.ndim > 1 and (active is None or active[t])
            v.append(size * d if on else torch.zeros_like(p))

        # 4. the host's step at theta + gamma d
        with torch.no_grad():
            for p, v_p in zip(params, v, strict=True):
                p.copy_(p + v_p)
        model.train()
        if host == "at":
            loss = cross_entropy(model(x + delta), y).mean()
        else:
            clean = model(x)
            adv = model(x + delta)
            loss = cross_entropy(clean, y).mean() + beta * kl(clean, adv).mean()
        grads = list(torch.autograd.grad(loss, params))
        if decay_at == "plain":
            grads = [g - weight_decay * v_p for g, v_p in zip(grads, v, strict=True)]
        sgd(params, grads, buffers, at(lr, t), momentum, weight_decay)

        # 5. back
        with torch.no_grad():
            for p, v_p in zip(params, v, strict=True):
                p.copy_(p - v_p)
        log.append({"loss": loss.item(), "host_loss": climbed.item()})
    return log
