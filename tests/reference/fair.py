"""Class-wise methods written out: FAAL, WAT, CFOL, DAFA, CFA."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from tests.reference.plainsgd import (
    Draws,
    MiniBatch,
    Rate,
    at,
    box,
    clip,
    cross_entropy,
    kl,
    rows,
    sgd,
    still,
)
from torch import Tensor, nn


def worst_classes(a: Tensor, tau: float) -> Tensor:
    """argmax <p, a> with sum p = 1 and sum_c u log(u / p_c) = tau, u = 1 / K, by the norm's multiplier."""
    k, top = len(a), float(a.max())

    def shares(log_gap: float) -> Tensor:
        p = 1 / (math.exp(log_gap) + (top - a))
        return p / p.sum()

    def excess(log_gap: float) -> float:
        p = shares(log_gap)
        return float((1 / k * (1 / k / p).log()).sum()) - tau

    inside, outside = 20.0, -25.0  # the nearer the multiplier is to the largest a, the further p from uniform
    for _ in range(80):
        middle = 0.5 * (inside + outside)
        inside, outside = (inside, middle) if excess(middle) > 0 else (middle, outside)
    return shares(inside)


def _attack(model, x, y, start, alpha, steps, lo, up, mode, divergence=False, scale=None):
    """Sign steps from `start`, on the cross-entropy or the divergence from the clean prediction."""
    delta = clip(start, lo, up)
    with still(model, mode):
        clean = model(x).detach() if divergence else None
        for _ in range(steps):
            delta = delta.detach().requires_grad_()
            logits = model(x + delta)
            objective = kl(clean, logits) if divergence else cross_entropy(logits, y)
            (g,) = torch.autograd.grad(objective.sum(), delta)
            step = alpha * g.sign() if scale is None else alpha * rows(scale, x) * g.sign()
            delta = clip(delta.detach() + step, lo, up)
    return delta.detach()


def faal(
    model: nn.Module,
    batches: Sequence[MiniBatch],
    draws: Draws,
    *,
    eps: float,
    lr: Rate,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    alpha: float | None = None,
    steps: int = 10,
    tau: float = 0.5,
    beta: float | None = None,
) -> list[Tensor]:
    """w_i = K p_y, p from the summed margins max p_k - p_y of the classes; beta: of TRADES, None for AT."""
    step_size, params, log = eps / 4 if alpha is None else alpha, list(model.parameters()), []
    buffers: list[Tensor] = []
    for t, (x, y, index) in enumerate(batches):
        lo, up = box(x, eps)
        if beta is None:
            start = eps * (2 * draws("start:uniform", t, x, index) - 1)
        else:
            start = 0.001 * draws("start:normal", t, x, index)
        delta = _attack(model, x, y, start, step_size, steps, lo, up, "eval", beta is not None)
        model.train()
        clean = None if beta is None else model(x)
        adv = model(x + delta)
        prob = adv.detach().softmax(1)
        k = prob.shape[1]
        a = torch.zeros(k, dtype=x.dtype)
        for i in range(len(y)):
            others = [float(prob[i, j]) for j in range(k) if j != int(y[i])]
            a[y[i]] += max(others) - prob[i, y[i]]
        p = worst_classes(a, tau)
        each = cross_entropy(adv, y) if clean is None else cross_entropy(clean, y) + beta * kl(clean, adv)
        loss = (k * p[y] * each).sum() / len(y)
        sgd(params, torch.autograd.grad(loss, params), buffers, at(lr, t), momentum, weight_decay)
        log.append(p)
    return log


def wat(
    model: nn.Module,
    batches: Sequence[MiniBatch],
    draws: Draws,
    *,
    eps: float,
    lr: Rate,
    epochs: Sequence[int],
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    alpha: float = 0.0,
    steps: int = 10,
    beta: float = 6.0,
    eta: float = 0.1,
    classes: int = 3,
) -> list[Tensor]:
    """q = K softmax(eta sum of class losses of finished epochs), the mean of all as the last entry; example
    weight q_y + q_K. epochs: of every minibatch."""
    params, log, seen = list(model.parameters()), [], []
    buffers: list[Tensor] = []
    history, now = torch.zeros(classes + 1, dtype=torch.float64), None
    for t, (x, y, index) in enumerate(batches):
        if now is not None and epochs[t] != now:
            for c in range(classes):
                own = [value for label, value in seen if label == c]
                history[c] += sum(own) / max(1, len(own))
            history[classes] += sum(value for _, value in seen) / len(seen)
            seen = []
        now = epochs[t]
        lo, up = box(x, eps)
        start = 0.001 * draws("start:normal", t, x, index)
        delta = _attack(model, x, y, start, alpha, steps, lo, up, "eval", True)
        model.train()
        clean, adv = model(x), model(x + delta)
        each = cross_entropy(clean, y) + beta * kl(clean, adv)
        seen += list(zip(y.tolist(), each.detach().tolist(), strict=True))
        q = classes * (eta * history).exp() / (eta * history).exp().sum()
        loss = sum((q[c] * each[y == c]).sum() for c in range(classes)) / len(y) + q[classes] * each.mean()
        sgd(params, torch.autograd.grad(loss, params), buffers, at(lr, t), momentum, weight_decay)
        log.append(q)
    return log


def cfol(
    model: nn.Module,
    batches: Sequence[MiniBatch],
    draws: Draws,
    *,
    eps: float,
    lr: Rate,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    alpha: float | None = None,
    steps: int = 7,
    eta: float = 5e-6,
    gamma: float = 0.5,
    classes: int = 3,
) -> list[Tensor]:
    """p = gamma / K + (1 - gamma) softmax(s); loss K p_y CE; then s_c += eta K for every error of class c."""
    step_size = 2.5 * eps / steps if alpha is None else alpha
    params, log, s = list(model.parameters()), [], torch.zeros(classes, dtype=torch.float64)
    buffers: list[Tensor] = []
    for t, (x, y, index) in enumerate(batches):
        lo, up = box(x, eps)
        start = eps * (2 * draws("start:uniform", t, x, index) - 1)
        delta = _attack(model, x, y, start, step_size, steps, lo, up, "eval")
        model.train()
        adv = model(x + delta)
        p = gamma / classes + (1 - gamma) * s.exp() / s.exp().sum()
        loss = (classes * p[y] * cross_entropy(adv, y)).mean()
        sgd(params, torch.autograd.grad(loss, params), buffers, at(lr, t), momentum, weight_decay)
        for i in range(len(y)):
            if int(adv[i].argmax()) != int(y[i]):
                s[y[i]] += eta / (1 / classes)
        log.append(p)
    return log


def dafa(
    model: nn.Module,
    batches: Sequence[MiniBatch],
    draws: Draws,
    *,
    eps: float,
    lr: Rate,
    epochs: Sequence[int],
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    alpha: float = 0.0,
    steps: int = 10,
    beta: float = 6.0,
    scale: float = 1.0,
    warm_up: int = 1,
    classes: int = 3,
) -> list[Tensor]:
    """TRADES with W_y on CE(x), on the radius and on the steps, W from the mean predictions of the epoch that
    the warm-up (in epochs) ends with."""
    params, log, seen = list(model.parameters()), [], []
    buffers: list[Tensor] = []
    w, now, fixed = torch.ones(classes, dtype=torch.float64), None, False
    for t, (x, y, index) in enumerate(batches):
        if now is not None and epochs[t] != now:
            if epochs[t] >= warm_up and not fixed:
                mean = torch.zeros(classes, classes, dtype=torch.float64)
                for c in range(classes):
                    own = [p for label, p in seen if label == c]
                    mean[c] = torch.stack(own).mean(0) if own else 0
                for c in range(classes):
                    for j in range(classes):
                        if c != j and mean[c, c] < mean[j, j]:
                            w[c] += scale * mean[c, j] * mean[j, j]
                        elif c != j:
                            w[c] -= scale * mean[c, j] * mean[j, j]
                fixed = True
            seen = []
        now, mine = epochs[t], w[y]
        radius = (eps * rows(mine, x)).expand_as(x)
        lo, up = torch.maximum(-radius, -x), torch.minimum(radius, 1 - x)
        start = 0.001 * draws("start:normal", t, x, index)
        delta = _attack(model, x, y, start, alpha, steps, lo, up, "eval", True, mine)
        model.train()
        clean, adv = model(x), model(x + delta)
        seen += [(int(label), p) for label, p in zip(y, adv.detach().softmax(1), strict=True)]
        loss = (mine * cross_entropy(clean, y)).mean() + beta * kl(clean, adv).mean()
        sgd(params, torch.autograd.grad(loss, params), buffers, at(lr, t), momentum, weight_decay)
        log.append(w.clone())
    return log


def cfa(
    model: nn.Module,
    batches: Sequence[MiniBatch],
    draws: Draws,
    *,
    eps: float,
    lr: Rate,
    epochs: Sequence[int],
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    alpha: float | None = None,
    steps: int = 10,
    lambda1: float = 0.5,
    lambda2: float = 0.5,
    begin: int = 1,
    beta: float | None = None,
    classes: int = 3,
) -> list[Tensor]:
    """Radius (lambda1 + r_y) eps, r the accuracies of the last epoch; with beta TRADES whose shares are
    (lambda2 + r) beta / (1 + (lambda2 + r) beta), beta / (1 + beta) at first."""
    step_size, params, log, seen = eps / 4 if alpha is None else alpha, list(model.parameters()), [], []
    buffers: list[Tensor] = []
    rate, now = None, None
    for t, (x, y, index) in enumerate(batches):
        if now is not None and epochs[t] != now:
            if epochs[t] >= begin:
                rate = torch.zeros(classes, dtype=torch.float64)
                for c in range(classes):
                    own = [right for label, right in seen if label == c]
                    rate[c] = sum(own) / max(1, len(own))
            seen = []
        now = epochs[t]
        factor = torch.ones(len(y), dtype=torch.float64) if rate is None else lambda1 + rate[y]
        radius = (eps * rows(factor, x)).expand_as(x)
        lo, up = torch.maximum(-radius, -x), torch.minimum(radius, 1 - x)
        if beta is None:
            start = radius * (2 * draws("start:uniform", t, x, index) - 1)
            delta = _attack(model, x, y, start, step_size, steps, lo, up, "train")
        else:
            start = 0.001 * draws("start:normal", t, x, index)
            delta = _attack(model, x, y, start, step_size, steps, lo, up, "eval", True)
        model.train()
        clean = None if beta is None else model(x)
        adv = model(x + delta)
        seen += list(zip(y.tolist(), (adv.argmax(1) == y).tolist(), strict=True))
        if clean is None:
            loss = cross_entropy(adv, y).mean()
        else:
            own = (
                torch.ones(len(y), dtype=torch.float64) * beta if rate is None else (lambda2 + rate[y]) * beta
            )
            share = own / (1 + own)
            loss = ((1 - share) * cross_entropy(clean, y) + share * kl(clean, adv)).mean()
        sgd(params, torch.autograd.grad(loss, params), buffers, at(lr, t), momentum, weight_decay)
        log.append(factor)
    return log
