"""L1-APGD on one image at a time: Croce and Hein (Mind the box, ICML 2021), algorithm 2 and section 4.3."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

Look = Callable[[Tensor], tuple[float, float, Tensor]]  # image (n,) -> loss, margin, gradient (n,)


def projected(u: Tensor, x: Tensor, eps: float) -> Tensor:
    """The nearest point of ball and box (proposition 2.1), by trying every piece of the broken line."""
    room = torch.where(u > 0, 1 - x, x)

    def at(lam: float) -> Tensor:
        return torch.minimum((u.abs() - lam).clamp(min=0), room)

    if float(at(0.0).sum()) <= eps:
        return u.sign() * at(0.0)
    bends = sorted({0.0, *(u.abs() - room).clamp(min=0).tolist(), *u.abs().tolist()})
    for low, high in pairwise(bends):
        above, below = float(at(low).sum()), float(at(high).sum())
        if above >= eps >= below:
            lam = low if above == below else low + (above - eps) / (above - below) * (high - low)
            return u.sign() * at(lam)
    raise AssertionError("the line ends at zero")


def run(look: Look, x: Tensor, delta: Tensor, eps: float, steps: int) -> tuple[Tensor, Tensor | None]:
    """(point of highest loss, misclassified point of lowest margin) of the steps within one ball."""
    n = len(x)
    loss, margin, grad = look(x + delta)
    best, best_loss, best_grad = delta, loss, grad
    fooling, lowest = (delta, margin) if margin < 0 else (None, 0.0)
    moved = int((delta != 0).sum())
    share, step = moved / n / 1.5, eps
    period = max(int(0.04 * steps), 1)
    for i in range(steps):
        threshold = grad.abs().sort().values[int(min(max((1 - share) * n, 0), n - 1))]
        signs = torch.where(grad.abs() >= threshold, grad.sign(), torch.zeros_like(grad))
        delta = projected(delta + step * signs / max(float(signs.abs().sum()), 1.0), x, eps)
        loss, margin, grad = look(x + delta)
        if margin < 0 and margin < lowest:
            fooling, lowest = delta, margin
        if loss > best_loss:
            best, best_loss, best_grad = delta, loss, grad
        if (i + 1) % period == 0:
            now = int((best != 0).sum())
            if now / moved < 0.95:
                step, delta, grad = eps, best, best_grad
            else:
                step = max(step / 1.5, eps / 10)
            share, moved = now / n / 1.5, now
    return best, fooling


def attack(look: Look, x: Tensor, noise: Tensor, eps: float, steps: int) -> Tensor:
    """The perturbation of one image; noise: its Gaussian draw (n,)."""
    early = math.ceil(0.3 * steps)
    delta = noise
    fooling = None
    for factor, count in ((3, early), (2, early), (1, steps - 2 * early)):
        delta = projected(delta, x, factor * eps)
        delta, fooling = run(look, x, delta, factor * eps, count)
    return delta if fooling is None else fooling
