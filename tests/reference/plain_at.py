"""Plain training (M0) and adversarial training by projected gradient ascent (M1), written out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tests.reference.plainsgd import Draws, MiniBatch, Rate, at, box, clip, cross_entropy, sgd, still
from torch import Tensor, nn


def plain(
    model: nn.Module,
    batches: Sequence[MiniBatch],
    draws: Draws,
    *,
    lr: Rate,
    eps: float = 0.0,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
) -> list[dict[str, float]]:
    """min mean CE(f(x), y). Draws nothing; eps is ignored."""
    params = list(model.parameters())
    buffers: list[Tensor] = []
    log = []
    for t, (x, y, _) in enumerate(batches):
        model.train()
        loss = cross_entropy(model(x), y).mean()
        grads = torch.autograd.grad(loss, params)
        sgd(params, grads, buffers, at(lr, t), momentum, weight_decay)
        log.append({"loss": loss.item()})
    return log


def pgd_at(
    model: nn.Module,
    batches: Sequence[MiniBatch],
    draws: Draws,
    *,
    eps: float,
    lr: Rate,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    steps: int = 10,
    alpha: float | None = None,
    start: str = "uniform",
    attack_mode: str = "eval",
) -> list[dict[str, float]]:
    """K sign steps of size alpha (pixels; default eps/4), then one SGD step on mean CE at the last iterate.

    Draws: "start:uniform" (start="uniform"), "start:normal" (start="gauss"), "start:sign" (start="corner"),
    each like x; nothing for start="zero". Every start is projected.
    """
    step_size = eps / 4 if alpha is None else alpha
    params = list(model.parameters())
    buffers: list[Tensor] = []
    log = []
    for t, (x, y, index) in enumerate(batches):
        lo, up = box(x, eps)
        if start == "uniform":
            delta = eps * (2 * draws("start:uniform", t, x, index) - 1)
        elif start == "gauss":
            delta = 0.001 * draws("start:normal", t, x, index)
        elif start == "corner":
            delta = eps * draws("start:sign", t, x, index)
        elif start == "zero":
            delta = torch.zeros_like(x)
        else:
            raise ValueError(start)
        delta = clip(delta, lo, up)

        with still(model, attack_mode):
            for _ in range(steps):
                delta = delta.detach().requires_grad_()
                objective = cross_entropy(model(x + delta), y).sum()
                (g,) = torch.autograd.grad(objective, delta)
                delta = clip(delta.detach() + step_size * g.sign(), lo, up)

        model.train()
        loss = cross_entropy(model(x + delta.detach()), y).mean()
        grads = torch.autograd.grad(loss, params)
        sgd(params, grads, buffers, at(lr, t), momentum, weight_decay)
        log.append({"loss": loss.item(), "delta_max": delta.abs().max().item()})
    return log


def fgsm_then_pgd(
    model: nn.Module,
    batches: Sequence[MiniBatch],
    draws: Draws,
    *,
    eps: float,
    lr: Rate,
    epochs: Sequence[int],
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    fgsm_epochs: int = 20,
    steps: int = 10,
    alpha: float | None = None,
    attack_mode: str = "eval",
) -> list[dict[str, float]]:
    """FGSM-PGD (Dynamic AT, section 3.2): one step of eps from zero in epochs 0, ..., fgsm_epochs - 1, then
    PGD-K.

    epochs: the epoch of each minibatch. Draws: "start:uniform" like x, from epoch fgsm_epochs on.
    """
    step_size = eps / 4 if alpha is None else alpha
    params = list(model.parameters())
    buffers: list[Tensor] = []
    log = []
    for t, (x, y, index) in enumerate(batches):
        lo, up = box(x, eps)
        with still(model, attack_mode):
            if epochs[t] < fgsm_epochs:
                delta = torch.zeros_like(x).requires_grad_()
                (g,) = torch.autograd.grad(cross_entropy(model(x + delta), y).sum(), delta)
                delta = clip(eps * g.sign(), lo, up)
            else:
                delta = clip(eps * (2 * draws("start:uniform", t, x, index) - 1), lo, up)
                for _ in range(steps):
                    delta = delta.detach().requires_grad_()
                    (g,) = torch.autograd.grad(cross_entropy(model(x + delta), y).sum(), delta)
                    delta = clip(delta.detach() + step_size * g.sign(), lo, up)

        model.train()
        loss = cross_entropy(model(x + delta.detach()), y).mean()
        grads = torch.autograd.grad(loss, params)
        sgd(params, grads, buffers, at(lr, t), momentum, weight_decay)
        log.append({"loss": loss.item()})
    return log
