"""IKL written out with all pairs of classes, the minibatch's sums and the epochs' tables."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tests.reference.plainsgd import Draws, MiniBatch, Rate, at, box, clip, cross_entropy, kl, sgd, still
from torch import Tensor, nn


def distance(clean: Tensor, adv: Tensor, w: Tensor, alpha: float, beta: float, gamma: float) -> Tensor:
    """Mean of alpha H(p, q) + beta times the weighted squares of all pairs' differences."""
    p, log_q = clean.detach().softmax(1), adv - torch.logsumexp(adv, 1, keepdim=True)
    total, norm = clean.new_zeros(()), clean.new_zeros(())
    for i in range(len(clean)):
        for j in range(clean.shape[1]):
            for k in range(clean.shape[1]):
                pair = w[i, j] ** gamma * w[i, k] ** gamma
                total = total + pair * ((clean[i, j] - clean[i, k]) - (adv[i, j] - adv[i, k])) ** 2
                norm = norm + pair
    return beta * 0.25 * total / norm - alpha * (p * log_q).sum() / len(clean)


def ikl(
    model: nn.Module,
    batches: Sequence[MiniBatch],
    draws: Draws,
    *,
    eps: float,
    lr: Rate,
    epochs: Sequence[int],
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    step: float = 0.0,
    steps: int = 10,
    alpha: float = 4.0,
    beta: float = 20.0,
    gamma: float = 1.0,
    temperature: float = 4.0,
    classes: int = 3,
) -> Tensor:
    """CE(x) + the decoupled divergence; the table of a class is its mean prediction of the epoch before, of
    clean images in eval mode at the temperature. Returns the last table."""
    params, buffers = list(model.parameters()), []
    table = torch.full((classes, classes), 1 / classes, dtype=torch.float64)
    now, seen = epochs[0], []
    for t, (x, y, index) in enumerate(batches):
        if epochs[t] != now:
            for c in range(classes):
                own = [p for label, p in seen if label == c]
                table[c] = torch.stack(own).mean(0) if own else 1 / classes
            now, seen = epochs[t], []
        lo, up = box(x, eps)
        delta = clip(0.001 * draws("start:normal", t, x, index), lo, up)
        with still(model, "eval"):
            clean = model(x).detach()
            for _ in range(steps):
                delta = delta.detach().requires_grad_()
                (g,) = torch.autograd.grad(kl(clean, model(x + delta)).sum(), delta)
                delta = clip(delta.detach() + step * g.sign(), lo, up)
        delta = delta.detach()
        seen += [(int(label), p) for label, p in zip(y, (clean / temperature).softmax(1), strict=True)]
        model.train()
        natural, adv = model(x), model(x + delta)
        loss = cross_entropy(natural, y).mean() + distance(natural, adv, table[y], alpha, beta, gamma)
        sgd(params, torch.autograd.grad(loss, params), buffers, at(lr, t), momentum, weight_decay)
    return table
