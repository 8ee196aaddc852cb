"""Attacks of one step: FGSM-AT and Fast-AT (M2), GradAlign (M3), N-FGSM (M3b), Backward Smoothing (M7),
written out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from tests.reference.plainsgd import Draws, MiniBatch, Rate, at, box, clip, cross_entropy, kl, sgd, still
from torch import Tensor, nn


def fgsm_at(
    model: nn.Module,
    batches: Sequence[MiniBatch],
    draws: Draws,
    *,
    eps: float,
    lr: Rate,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    attack_mode: str = "train",
) -> list[dict[str, float]]:
    """delta = Pi(eps sign grad CE(x)). Draws nothing."""
    params = list(model.parameters())
    buffers: list[Tensor] = []
    log = []
    for t, (x, y, _) in enumerate(batches):
        lo, up = box(x, eps)
        with still(model, attack_mode):
            zero = torch.zeros_like(x).requires_grad_()
            (g,) = torch.autograd.grad(cross_entropy(model(x + zero), y).sum(), zero)
        delta = clip(eps * g.sign(), lo, up)

        model.train()
        loss = cross_entropy(model(x + delta), y).mean()
        grads = torch.autograd.grad(loss, params)
        sgd(params, grads, buffers, at(lr, t), momentum, weight_decay)
        log.append({"loss": loss.item()})
    return log


def fast_at(
    model: nn.Module,
    batches: Sequence[MiniBatch],
    draws: Draws,
    *,
    eps: float,
    lr: Rate,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    alpha: float | None = None,
    attack_mode: str = "train",
) -> list[dict[str, float]]:
    """z uniform; delta = Pi(z + alpha sign grad CE(z)), alpha 1.25 eps (pixels). Draws: "start:uniform" like
    x.
    """
    step_size = 1.25 * eps if alpha is None else alpha
    params = list(model.parameters())
    buffers: list[Tensor] = []
    log = []
    for t, (x, y, index) in enumerate(batches):
        lo, up = box(x, eps)
        z = clip(eps * (2 * draws("start:uniform", t, x, index) - 1), lo, up)
        with still(model, attack_mode):
            z = z.requires_grad_()
            (g,) = torch.autograd.grad(cross_entropy(model(x + z), y).sum(), z)
        delta = clip(z.detach() + step_size * g.sign(), lo, up)

        model.train()
        loss = cross_entropy(model(x + delta), y).mean()
        grads = torch.autograd.grad(loss, params)
        sgd(params, grads, buffers, at(lr, t), momentum, weight_decay)
        log.append({"loss": loss.item()})
    return log


def grad_align(
    model: nn.Module,
    batches: Sequence[MiniBatch],
    draws: Draws,
    *,
    eps: float,
    lr: Rate,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    coefficient: float | None = None,
    alpha: float | None = None,
    attack_mode: str = "train",
) -> list[dict[str, float]]:
    """mean CE(x + delta) + ga (1 - mean_i cos(g_i(0), g_i(eta))), g(0) detached, eta uniform and not clipped
    to [0, 1].

    Both gradients of the penalty are taken in train mode and move no running statistics. Samples with a
    gradient of zero norm are left out of the mean. Draws: "eta:uniform" like x.
    """
    step_size = 1.25 * eps if alpha is None else alpha
    ga = math.exp(255 * eps * math.log(10) / 8 + math.log(0.02)) if coefficient is None else coefficient
    params = list(model.parameters())
    buffers: list[Tensor] = []
    log = []
    for t, (x, y, index) in enumerate(batches):
        lo, up = box(x, eps)
        with still(model, attack_mode):
            zero = torch.zeros_like(x).requires_grad_()
            (g,) = torch.autograd.grad(cross_entropy(model(x + zero), y).sum(), zero)
        delta = clip(step_size * g.sign(), lo, up)

        eta = eps * (2 * draws("eta:uniform", t, x, index) - 1)
        with still(model, "train"):
            zero = torch.zeros_like(x).requires_grad_()
            (g0,) = torch.autograd.grad(cross_entropy(model(x + zero), y).sum(), zero)
            eta = eta.requires_grad_()
            (g1,) = torch.autograd.grad(cross_entropy(model(x + eta), y).sum(), eta, create_graph=True)
        a, b = g0.detach().flatten(1), g1.flatten(1)
        kept = (a.square().sum(1) > 0) & (b.detach().square().sum(1) > 0)
        a, b = a[kept], b[kept]
        cos = (a * b).sum(1) / (a.square().sum(1).sqrt() * b.square().sum(1).sqrt())
        penalty = 1 - cos.mean() if bool(kept.any()) else torch.zeros((), dtype=x.dtype)

        model.train()
        ce = cross_entropy(model(x + delta), y).mean()
        loss = ce + ga * penalty
        grads = torch.autograd.grad(loss, params)
        sgd(params, grads, buffers, at(lr, t), momentum, weight_decay)
        log.append({"loss": loss.item(), "ce": ce.item(), "penalty": penalty.item()})
    return log


def n_fgsm(
    model: nn.Module,
    batches: Sequence[MiniBatch],
    draws: Draws,
    *,
    eps: float,
    lr: Rate,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    k: float = 2.0,
    alpha: float | None = None,
    attack_mode: str = "train",
) -> list[dict[str, float]]:
    """eta = uniform in +-k eps, x + eta clipped to [0, 1]; delta = eta + alpha sign grad CE(x + eta), clipped
    to [0, 1] only.

    alpha: eps (pixels). Draws: "start:uniform" like x.
    """
    step_size = eps if alpha is None else alpha
    params = list(model.parameters())
    buffers: list[Tensor] = []
    log = []
    for t, (x, y, index) in enumerate(batches):
        eta = k * eps * (2 * draws("start:uniform", t, x, index) - 1)
        eta = clip(eta, -x, 1 - x)
        with still(model, attack_mode):
            eta = eta.requires_grad_()
            (g,) = torch.autograd.grad(cross_entropy(model(x + eta), y).sum(), eta)
        delta = clip(eta.detach() + step_size * g.sign(), -x, 1 - x)

        model.train()
        loss = cross_entropy(model(x + delta), y).mean()
        grads = torch.autograd.grad(loss, params)
        sgd(params, grads, buffers, at(lr, t), momentum, weight_decay)
        log.append({"loss": loss.item(), "delta_max": delta.abs().max().item()})
    return log


def backward_smoothing(
    model: nn.Module,
    batches: Sequence[MiniBatch],
    draws: Draws,
    *,
    eps: float,
    lr: Rate,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    alpha: float | None = None,
    gamma: float = 1.0,
    beta: float = 10.0,
    steps: int = 1,
    attack_mode: str = "eval",
) -> list[dict[str, float]]:
    """One step from x towards the logits q + psi, then `steps` KL ascent steps; outer loss CE(x) + beta
    KL(p(x) || p(x')).

    psi = gamma times uniform in [-1, 1]; alpha: eps (pixels). Draws: "psi:uniform" like the logits (B, K).
    """
    step_size = eps if alpha is None else alpha
    params = list(model.parameters())
    buffers: list[Tensor] = []
    log = []
    for t, (x, y, index) in enumerate(batches):
        lo, up = box(x, eps)
        with still(model, attack_mode):
            q = model(x).detach()
            psi = gamma * (2 * draws("psi:uniform", t, q, index) - 1)
            delta = torch.zeros_like(x).requires_grad_()
            (g,) = torch.autograd.grad(-kl(q + psi, model(x + delta)).sum(), delta)
            delta = clip(delta.detach() + step_size * g.sign(), lo, up)
            for _ in range(steps):
                delta = delta.detach().requires_grad_()
                (g,) = torch.autograd.grad(kl(q, model(x + delta)).sum(), delta)
                delta = clip(delta.detach() + step_size * g.sign(), lo, up)

        model.train()
        clean = model(x)
        adv = model(x + delta.detach())
        loss = cross_entropy(clean, y).mean() + beta * kl(clean, adv).mean()
        grads = torch.autograd.grad(loss, params)
        sgd(params, grads, buffers, at(lr, t), momentum, weight_decay)
        log.append({"loss": loss.item()})
    return log
