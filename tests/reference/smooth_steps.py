"""Single-step methods that smooth the network, written out: GAT, NuAT, ELLE, AAER, FGSM-PGI, LIET, SORA."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tests.reference.plainsgd import Draws, MiniBatch, Rate, at, box, clip, cross_entropy, rows, sgd, still
from torch import Tensor, nn


def _apart(kind: str, a: Tensor, b: Tensor) -> Tensor:
    """Summed over the rows: squared distance of predictions, or the nuclear norm of the logits' change."""
    if kind == "nuclear":
        return torch.linalg.svdvals(a - b).sum()
    return ((a.softmax(1) - b.softmax(1)) ** 2).sum()


def guided(
    model: nn.Module,
    batches: Sequence[MiniBatch],
    draws: Draws,
    *,
    eps: float,
    lr: Rate,
    weights: Sequence[float],
    kind: str = "softmax",
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    noise: float = 0.5,
) -> None:
    """One step of eps from a corner of noise eps, on CE or, in odd minibatches, CE + weight distance; loss
    CE(x) + weight distance(x, x'). weights: of every minibatch."""
    params, buffers = list(model.parameters()), []
    for t, (x, y, index) in enumerate(batches):
        lo, up = box(x, eps)
        delta = clip(noise * eps * draws("start:sign", t, x, index), lo, up).requires_grad_()
        with still(model, "eval"):
            clean = model(x).detach()
            logits = model(x + delta)
            objective = cross_entropy(logits, y).sum()
            if t % 2 == 1:
                objective = objective + weights[t] * _apart(kind, clean, logits)
            (g,) = torch.autograd.grad(objective, delta)
        delta = clip(delta.detach() + eps * g.sign(), lo, up)
        model.train()
        adv, clean = model(x + delta), model(x)
        loss = cross_entropy(clean, y).mean() + weights[t] * _apart(kind, clean, adv) / len(y)
        sgd(params, torch.autograd.grad(loss, params), buffers, at(lr, t), momentum, weight_decay)


def elle(
    model: nn.Module,
    batches: Sequence[MiniBatch],
    draws: Draws,
    *,
    eps: float,
    lr: Rate,
    coefficient: float,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
) -> None:
    """FGSM-AT + coefficient times the mean squared error of linearity of CE on a random triplet."""
    params, buffers = list(model.parameters()), []
    for t, (x, y, index) in enumerate(batches):
        lo, up = box(x, eps)
        zero = torch.zeros_like(x).requires_grad_()
        with still(model, "train"):
            (g,) = torch.autograd.grad(cross_entropy(model(x + zero), y).sum(), zero)
        delta = clip(eps * g.sign(), lo, up)
        model.train()
        adversarial = cross_entropy(model(x + delta), y).mean()
        one = x + eps * (2 * draws("triplet/a:uniform", t, x, index) - 1)
        two = x + eps * (2 * draws("triplet/b:uniform", t, x, index) - 1)
        share = draws("triplet/share:uniform", t, y, index)
        three = (1 - rows(share, x)) * one + rows(share, x) * two
        each = cross_entropy(model(torch.cat([one, two, three])), torch.cat([y, y, y]))
        a, b, c = each[: len(y)], each[len(y) : 2 * len(y)], each[2 * len(y) :]
        loss = adversarial + coefficient * ((c - ((1 - share) * a + share * b)) ** 2).mean()
        sgd(params, torch.autograd.grad(loss, params), buffers, at(lr, t), momentum, weight_decay)


def aaer(
    model: nn.Module,
    batches: Sequence[MiniBatch],
    draws: Draws,
    *,
    eps: float,
    lr: Rate,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    noise: float = 2.0,
    alpha: float | None = None,
    ball: bool = False,
    lambda2: float = 1.5,
    lambda3: float = 0.15,
    constant: bool = True,
) -> list[int]:
    """N-FGSM (ball: Fast-AT) + n_A / B (lambda2 mean_A (before - after) + lambda3 max(V_A - V_rest, 0)).
    Returns how many were abnormal."""
    params, buffers, log = list(model.parameters()), [], []
    step = eps if alpha is None else alpha
    for t, (x, y, index) in enumerate(batches):
        lo, up = box(x, eps) if ball else (-x, 1 - x)
        delta = clip(noise * eps * (2 * draws("start:uniform", t, x, index) - 1), lo, up).requires_grad_()
        with still(model, "train"):
            first = model(x + delta)
            before = cross_entropy(first, y)
            (g,) = torch.autograd.grad(before.sum(), delta)
        first, before = first.detach(), before.detach()
        delta = clip(delta.detach() + step * g.sign(), lo, up)
        model.train()
        adv = model(x + delta)
        after = cross_entropy(adv, y)
        odd = before > after
        loss = after.mean()
        if 0 < int(odd.sum()) < len(y):
            ce = (before - (after.detach() if constant else after))[odd].mean()
            v_odd = ((first[odd] - adv[odd]) ** 2).sum(1).mean()
            v_rest = ((first[~odd] - adv[~odd]) ** 2).sum(1).mean().item()
            loss = loss + int(odd.sum()) / len(y) * (lambda2 * ce + lambda3 * torch.relu(v_odd - v_rest))
        sgd(params, torch.autograd.grad(loss, params), buffers, at(lr, t), momentum, weight_decay)
        log.append(int(odd.sum()))
    return log


def fgsm_pgi(
    model: nn.Module,
    batches: Sequence[MiniBatch],
    draws: Draws,
    *,
    eps: float,
    lr: Rate,
    epochs: Sequence[int],
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    weight: float = 10.0,
    smoothing: float = 0.4,
    decay: float = 0.3,
    reset: int = 40,
) -> None:
    """One step from the stored eta; eta follows the momentum of the gradients; loss smoothed CE + weight MSE
    of the logits at eta and delta. epochs: of every minibatch."""
    params, buffers = list(model.parameters()), []
    etas: dict[int, Tensor] = {}
    momenta: dict[int, Tensor] = {}
    began: dict[int, int] = {}

    def smooth(logits: Tensor, y: Tensor) -> Tensor:
        log_p = logits - torch.logsumexp(logits, 1, keepdim=True)
        return (1 - smoothing) * cross_entropy(logits, y) - smoothing * log_p.mean(1)

    for t, (x, y, index) in enumerate(batches):
        since = epochs[t] - epochs[t] % reset
        corner = eps * draws("start:sign", t, x, index)
        for i, row in enumerate(index.tolist()):
            if began.get(row) != since:
                etas[row], momenta[row], began[row] = corner[i], torch.zeros_like(x[i]), since
        lo, up = box(x, eps)
        eta = clip(torch.stack([etas[r] for r in index.tolist()]), lo, up).requires_grad_()
        with still(model, "train"):
            first = model(x + eta)
            (g,) = torch.autograd.grad(smooth(first, y).sum(), eta, retain_graph=True)
        eta = eta.detach()
        m = torch.stack([momenta[r] for r in index.tolist()])
        m = g / rows(g.abs().flatten(1).sum(1), g) + decay * m
        after = clip(eta + eps * m.sign(), lo, up)
        delta = clip(eta + eps * g.sign(), lo, up)
        model.train()
        adv = model(x + delta)
        loss = smooth(adv, y).mean() + weight * ((adv - first) ** 2).mean()
        sgd(params, torch.autograd.grad(loss, params), buffers, at(lr, t), momentum, weight_decay)
        for i, row in enumerate(index.tolist()):
            etas[row], momenta[row] = after[i], m[i]


def liet(
    model: nn.Module,
    batches: Sequence[MiniBatch],
    draws: Draws,
    *,
    eps: float,
    lr: Rate,
    weights: Sequence[float],
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    smoothing: float = 0.6,
    every: int = 10,
    least: float = 0.1,
    most: float = 0.5,
    classes: int = 3,
) -> None:
    """One step from +- (sgn of the class's gradient at grey, with noise in a share of the pixels); loss
    randomly smoothed CE + weight JS. weights: of every minibatch."""
    params, buffers, told = list(model.parameters()), [], None

    def noisy(logits: Tensor, y: Tensor, index: Tensor, t: int, purpose: str) -> Tensor:
        u = draws(f"{purpose}:uniform", t, logits, index)
        out = []
        for i, label in enumerate(y.tolist()):
            target = u[i].clone()
            target[label] = 0
            target = smoothing * target / target.sum()
            target[label] = 1 - smoothing
            out.append(-(target * (logits[i] - torch.logsumexp(logits[i], 0))).sum())
        return torch.stack(out)

    for t, (x, y, index) in enumerate(batches):
        if t % every == 0:
            labels = torch.arange(classes)
            grey = torch.full((classes, *x.shape[1:]), 0.5, dtype=x.dtype).requires_grad_()
            with still(model, "eval"):
                (g,) = torch.autograd.grad(
                    noisy(model(grey), labels, -1 - labels, t, "smoothing").sum(), grey
                )
            told = g.sign()
        assert told is not None
        lo, up = box(x, eps)
        share = least + (most - least) * draws("share:uniform", t, y, index)
        noise = eps * (2 * draws("start:uniform", t, x, index) - 1)
        start = torch.where(draws("mask:uniform", t, x, index) < rows(share, x), noise, eps * told[y])
        eta = clip(rows(draws("side:sign", t, y, index), x) * start, lo, up).requires_grad_()
        with still(model, "train"):
            first = model(x + eta)
            (g,) = torch.autograd.grad(noisy(first, y, index, t, "smoothing").sum(), eta, retain_graph=True)
        delta = clip(eta.detach() + eps * g.sign(), lo, up)
        model.train()
        adv = model(x + delta)
        p, q = first.softmax(1), adv.softmax(1)
        m = (p + q) / 2
        js = ((p * (p / m).log()).sum(1) + (q * (q / m).log()).sum(1)) / 2
        loss = noisy(adv, y, index, t, "smoothing of the loss").mean() + weights[t] * js.mean()
        sgd(params, torch.autograd.grad(loss, params), buffers, at(lr, t), momentum, weight_decay)


def sora(
    model: nn.Module,
    batches: Sequence[MiniBatch],
    draws: Draws,
    *,
    eps: float,
    lr: Rate,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    longest: float = 2.0,
    bend: float = 0.02,
    theta: float = 0.05,
    c: float = 0.99,
) -> list[float]:
    """delta = eta + a u sgn g with a = longest eps min(1, bend / (1 - c)), c the running mean of
    <sgn g, g'> / ||g||_1. Returns the lengths a."""
    params, buffers, log = list(model.parameters()), [], []
    for t, (x, y, index) in enumerate(batches):
        a = longest * eps * min(1.0, bend / (1 - c))
        eta = clip(eps * (2 * draws("start:uniform", t, x, index) - 1), -x, 1 - x).requires_grad_()
        with still(model, "train"):
            (g,) = torch.autograd.grad(cross_entropy(model(x + eta), y).mean(), eta)
        delta = eta.detach() + a * draws("length:uniform", t, x, index) * g.sign()
        delta = clip(delta, -x, 1 - x).requires_grad_()
        model.train()
        loss = cross_entropy(model(x + delta), y).mean()
        *grads, end = torch.autograd.grad(loss, [*params, delta])
        sgd(params, grads, buffers, at(lr, t), momentum, weight_decay)
        one = (g.sign() * end).flatten(1).sum(1) / g.abs().flatten(1).sum(1)
        c = (1 - theta) * c + theta * max(-1.0, min(1.0, float(one.mean())))
        log.append(a)
    return log
