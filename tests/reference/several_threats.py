"""Training against several threats, written out: MAX, MSD, E-AT, in Linf, L2 and L1."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from tests.reference.plainsgd import Draws, MiniBatch, Rate, at, box, clip, cross_entropy, rows, sgd, still
from torch import Tensor, nn

Balls = Sequence[tuple[str, float]]


def onto(norm: str, v: Tensor, x: Tensor, eps: float) -> Tensor:
    """The Euclidean projection of v on the ball and the box, an example at a time; L2 and L1 by bisection."""
    if norm == "linf":
        return clip(v, *box(x, eps))
    out = []
    for one, image in zip(v, x, strict=True):

        def point(strength: float, one: Tensor = one, image: Tensor = image) -> Tensor:
            moved = one / (1 + strength) if norm == "l2" else one.sign() * (one.abs() - strength).clamp(min=0)
            return torch.minimum(torch.maximum(moved, -image), 1 - image)

        def beyond(strength: float, point=point) -> bool:
            size = point(strength).norm() if norm == "l2" else point(strength).abs().sum()
            return float(size) > eps

        low, high = 0.0, 1.0
        if not beyond(low):
            out.append(point(low))
            continue
        while beyond(high):
            high *= 2
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if beyond(middle) else (low, middle)
        out.append(point(high))
    return torch.stack(out)


def towards(norm: str, g: Tensor, eps: float) -> Tensor:
    """The steepest direction; in L1 the signs of the ceil(2 eps) largest coordinates, shared equally."""
    if norm == "linf":
        return g.sign()
    if norm == "l2":
        return g / rows(g.flatten(1).norm(dim=1), g)
    out = torch.zeros_like(g).flatten(1)
    for i, one in enumerate(g.flatten(1)):
        top = one.abs().topk(math.ceil(2 * eps)).indices
        out[i, top] = one[top].sign() / len(top)
    return out.view_as(g)


def started(norm: str, draws: Draws, t: int, x: Tensor, index: Tensor, eps: float) -> Tensor:
    """A uniform point of the ball."""
    scalar = x[:, 0, 0, 0]
    if norm == "linf":
        return eps * (2 * draws("start:uniform", t, x, index) - 1)
    if norm == "l2":
        v = draws("start:normal", t, x, index)
        v = v / rows(v.flatten(1).norm(dim=1), x)
    else:
        v = -draws("start:uniform", t, x, index).log()
        v = v / rows(v.flatten(1).sum(1), x) * draws("start/sign:sign", t, x, index)
    return eps * rows(draws("start/radius:uniform", t, scalar, index) ** (1 / x[0].numel()), x) * v


def slope(model: nn.Module, x: Tensor, y: Tensor, delta: Tensor) -> Tensor:
    """d CE_i / d delta_i."""
    point = delta.detach().requires_grad_()
    return torch.autograd.grad(cross_entropy(model(x + point), y).sum(), point)[0]


def pgd(norm, model, x, y, start, eps, steps, size):
    """PGD with steps of size eps from `start`."""
    delta = onto(norm, start, x, eps)
    for _ in range(steps):
        delta = onto(norm, delta + size * eps * towards(norm, slope(model, x, y, delta), eps), x, eps)
    return delta


def highest(model: nn.Module, x: Tensor, y: Tensor, points: list[Tensor]) -> tuple[Tensor, list[int]]:
    """For each example the point of the highest loss, and which it was."""
    with torch.no_grad():
        losses = [cross_entropy(model(x + p), y) for p in points]
    which = [max(range(len(points)), key=lambda k: float(losses[k][i])) for i in range(len(y))]
    return torch.stack([points[k][i] for i, k in enumerate(which)]), which


def worst(model, balls, draws, t, x, y, index, steps, size):
    """MAX: PGD within each ball; the point of the highest loss."""
    with still(model, "eval"):
        found = [pgd(n, model, x, y, started(n, draws, t, x, index, e), e, steps, size) for n, e in balls]
        return highest(model, x, y, found)


def steepest(model, balls, draws, t, x, y, index, steps, size):
    """MSD: from zero, at each step that of the ball which leads highest."""
    delta, chosen = torch.zeros_like(x), []
    with still(model, "eval"):
        for _ in range(steps):
            g = slope(model, x, y, delta)
            points = [onto(n, delta + size * e * towards(n, g, e), x, e) for n, e in balls]
            delta, which = highest(model, x, y, points)
            chosen += which
    return delta, chosen


def several(
    model: nn.Module,
    batches: Sequence[MiniBatch],
    draws: Draws,
    *,
    eps: float,
    lr: Rate,
    others: Balls,
    attack,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    steps: int = 10,
    size: float = 0.25,
) -> list[int]:
    """CE at the points of `attack`; returns which ball they were of."""
    params, buffers, log = list(model.parameters()), [], []
    for t, (x, y, index) in enumerate(batches):
        delta, which = attack(model, [("linf", eps), *others], draws, t, x, y, index, steps, size)
        log += which
        model.train()
        loss = cross_entropy(model(x + delta), y).mean()
        sgd(params, torch.autograd.grad(loss, params), buffers, at(lr, t), momentum, weight_decay)
    return log


def drawn(
    model: nn.Module,
    batches: Sequence[MiniBatch],
    draws: Draws,
    *,
    eps: float,
    lr: Rate,
    others: Balls,
    chances: Sequence[float],
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    steps: int = 10,
    size: float = 0.25,
    balanced: bool = True,
) -> list[int]:
    """E-AT: one ball a minibatch; chances: a uniform number for each minibatch. Returns the balls drawn."""
    balls = [("linf", eps), *others]
    params, buffers, log = list(model.parameters()), [], []
    right, seen = [0] * len(balls), [0] * len(balls)
    for t, (x, y, index) in enumerate(batches):
        wrong = [1.0] * len(balls)
        if balanced and all(seen) and right != seen:
            wrong = [1 - a / b for a, b in zip(right, seen, strict=True)]
        k, left = 0, chances[t] * sum(wrong)
        while left >= wrong[k]:
            left -= wrong[k]
            k += 1
        norm, radius = balls[k]
        with still(model, "eval"):
            delta = pgd(norm, model, x, y, started(norm, draws, t, x, index, radius), radius, steps, size)
        model.train()
        logits = model(x + delta)
        right[k] += int((logits.argmax(1) == y).sum())
        seen[k] += len(y)
        log.append(k)
        loss = cross_entropy(logits, y).mean()
        sgd(params, torch.autograd.grad(loss, params), buffers, at(lr, t), momentum, weight_decay)
    return log
