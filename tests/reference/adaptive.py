"""Attacks whose length adapts: Dynamic AT (M10), Curriculum AT (M11), friendly AT (M12), written out."""

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
    dot,
    kl,
    rows,
    sgd,
    still,
)
from torch import Tensor, nn


def fosc_box(g: Tensor, delta: Tensor, lo: Tensor, up: Tensor) -> Tensor:
    """(B,) max over the box of <d - delta, g> = sum_j max(g_j (up_j - delta_j), g_j (lo_j - delta_j))."""
    return torch.maximum(g * (up - delta), g * (lo - delta)).flatten(1).sum(1)


def fosc_ball(g: Tensor, moved: Tensor, eps: float) -> Tensor:
    """(B,) eps ||g||_1 - <moved, g> (S4, section 3.1); moved is x^k minus the centre of the ball."""
    return eps * g.abs().flatten(1).sum(1) - dot(moved, g)


def dynamic(
    model: nn.Module,
    batches: Sequence[MiniBatch],
    draws: Draws,
    *,
    eps: float,
    lr: Rate,
    epochs: Sequence[int],
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    c_max: float = 0.5,
    control_epoch: int = 100,
    steps: int = 10,
    alpha: float | None = None,
    form: str = "ball",
    fosc_origin: str = "clean",
    loss_reweight: bool = False,
    attack_mode: str = "eval",
) -> list[dict[str, float]]:
    """Algorithm 1: K sign steps of alpha (eps/4), each sample until its FOSC is at most c_t = max(c_max (1 -
    t/T'), 0).

    epochs: t of each minibatch; control_epoch: T'. The control vector starts at 1, so that every sample takes
    one step even if c_max is large. form: "ball" (eq. 4) or "box". fosc_origin (ball): "clean", or "start" as
    in the public code. loss_reweight: as the public code, from epoch 1 on each CE is multiplied by its own
    value in the attack's mode, a constant. Draws: "start:uniform" like x.
    """
    step_size = eps / 4 if alpha is None else alpha
    params = list(model.parameters())
    buffers: list[Tensor] = []
    log = []
    for t, (x, y, index) in enumerate(batches):
        c_t = max(c_max * (1 - epochs[t] / control_epoch), 0.0)
        lo, up = box(x, eps)
        delta = clip(eps * (2 * draws("start:uniform", t, x, index) - 1), lo, up)
        origin = delta.clone() if fosc_origin == "start" else torch.zeros_like(delta)
        V = torch.ones(len(x), dtype=x.dtype)
        taken = torch.zeros(len(x), dtype=x.dtype)
        c = torch.zeros(len(x), dtype=x.dtype)
        with still(model, attack_mode):
            for _ in range(steps):
                delta = delta.detach().requires_grad_()
                (g,) = torch.autograd.grad(cross_entropy(model(x + delta), y).sum(), delta)
                delta = clip(delta.detach() + rows(V, x) * step_size * g.sign(), lo, up)
                taken = taken + V
                delta = delta.detach().requires_grad_()
                (g,) = torch.autograd.grad(cross_entropy(model(x + delta), y).sum(), delta)
                delta = delta.detach()
                c = fosc_box(g, delta, lo, up) if form == "box" else fosc_ball(g, delta - origin, eps)
                V = V * (c > c_t).to(x.dtype)
                if V.sum() == 0:
                    break
            own = cross_entropy(model(x + delta), y).detach()

        model.train()
        losses = cross_entropy(model(x + delta), y)
        loss = (own * losses).mean() if loss_reweight and epochs[t] >= 1 else losses.mean()
        grads = torch.autograd.grad(loss, params)
        sgd(params, grads, buffers, at(lr, t), momentum, weight_decay)
        log.append({"loss": loss.item(), "c_t": c_t, "fosc": c.mean().item(), "steps": taken.mean().item()})
    return log


def curriculum(
    model: nn.Module,
    batches: Sequence[MiniBatch],
    draws: Draws,
    *,
    eps: float,
    lr: Rate,
    epochs: Sequence[int],
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    steps: int = 10,
    control_epoch: int = 100,
    alpha: float | None = None,
    attack_mode: str = "eval",
) -> list[dict[str, float]]:
    """Schedule mode: k(t) = min(K, floor(t (K + 1) / T')) sign steps of alpha (eps/4) from a uniform start.

    epochs: t of each minibatch; control_epoch: T'. k = 0 is plain training. Draws: "start:uniform" like x
    where k > 0.
    """
    step_size = eps / 4 if alpha is None else alpha
    params = list(model.parameters())
    buffers: list[Tensor] = []
    log = []
    for t, (x, y, index) in enumerate(batches):
        k = min(steps, (epochs[t] * (steps + 1)) // control_epoch)
        lo, up = box(x, eps)
        delta = torch.zeros_like(x)
        if k > 0:
            delta = clip(eps * (2 * draws("start:uniform", t, x, index) - 1), lo, up)
        with still(model, attack_mode):
            for _ in range(k):
                delta = delta.detach().requires_grad_()
                (g,) = torch.autograd.grad(cross_entropy(model(x + delta), y).sum(), delta)
                delta = clip(delta.detach() + step_size * g.sign(), lo, up)

        model.train()
        loss = cross_entropy(model(x + delta.detach()), y).mean()
        grads = torch.autograd.grad(loss, params)
        sgd(params, grads, buffers, at(lr, t), momentum, weight_decay)
        log.append({"loss": loss.item(), "level": float(k)})
    return log


def curriculum_cai(
    model: nn.Module,
    batches: Sequence[MiniBatch],
    draws: Draws,
    *,
    eps: float,
    lr: Rate,
    levels: Sequence[int],
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    attack_mode: str = "eval",
) -> list[dict[str, float]]:
    """Batch mixing: k + 1 equal parts of the shuffled minibatch, part j attacked with j steps (0 is clean).

    levels: k of each minibatch. The last part takes the remainder. Step size of part j: (2 eps / j) (1 + u
    (10/j - 1)), u in (0, 1). Parts are attacked one after the other. Draws: "part:uniform" like y as floats
    (rows in ascending order of their draw are the shuffled batch); "factor:uniform" like y (u of each row;
    equal rows of a part give the public code's one draw per call); "start:uniform" like x.
    """
    params = list(model.parameters())
    buffers: list[Tensor] = []
    log = []
    for t, (x, y, index) in enumerate(batches):
        B, k = len(x), levels[t]
        lo, up = box(x, eps)
        like = torch.zeros(B, dtype=x.dtype)
        order = torch.argsort(draws("part:uniform", t, like, index), stable=True)
        u = draws("factor:uniform", t, like, index)
        first = eps * (2 * draws("start:uniform", t, x, index) - 1)
        delta = torch.zeros_like(x)
        size = B // (k + 1)
        for j in range(1, k + 1):
            part = order[j * size : (j + 1) * size] if j < k else order[j * size :]
            if len(part) == 0:
                continue
            step_size = (2 * eps / j) * (1 + u[part] * (10 / j - 1))
            d = clip(first[part], lo[part], up[part])
            with still(model, attack_mode):
                for _ in range(j):
                    d = d.detach().requires_grad_()
                    (g,) = torch.autograd.grad(cross_entropy(model(x[part] + d), y[part]).sum(), d)
                    d = clip(d.detach() + rows(step_size, d) * g.sign(), lo[part], up[part])
            delta[part] = d.detach()

        model.train()
        loss = cross_entropy(model(x + delta), y).mean()
        grads = torch.autograd.grad(loss, params)
        sgd(params, grads, buffers, at(lr, t), momentum, weight_decay)
        log.append(
            {"loss": loss.item(), "level": float(k), "clean": float((delta.flatten(1) == 0).all(1).sum())}
        )
    return log


def cai_levels(
    train_accuracy: Sequence[float],
    validation_accuracy: Sequence[float],
    patience: int = 10,
    threshold: float = 0.9,
) -> list[tuple[int, int | None]]:
    """The level rule: after each epoch the level from then on, and the epoch whose checkpoint is reloaded (or
    None).

    k += 1 once the best validation accuracy at the present level is `patience` epochs old and train accuracy
    is above the threshold; the best checkpoint of the level is then reloaded and the search for the best
    begins anew.
    """
    level, best, best_epoch = 0, -math.inf, 0
    out: list[tuple[int, int | None]] = []
    for epoch, (train, validation) in enumerate(zip(train_accuracy, validation_accuracy, strict=True)):
        reloaded: int | None = None
        if validation > best:
            best, best_epoch = validation, epoch
        elif epoch - best_epoch >= patience and train > threshold:
            level, reloaded, best, best_epoch = level + 1, best_epoch, -math.inf, epoch
        out.append((level, reloaded))
    return out


def fat(
    model: nn.Module,
    batches: Sequence[MiniBatch],
    draws: Draws,
    *,
    eps: float,
    lr: Rate,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    tau: int | Sequence[int] = 0,
    steps: int = 10,
    alpha: float = 0.007,
    omega: float = 0.001,
    host: str = "at",
    beta: float = 6.0,
    project_start: bool = True,
    attack_mode: str = "eval",
) -> list[dict[str, float]]:
    """PGD-K-tau: each sample goes on until it is misclassified and has used up tau more steps since; checked
    before a step.

    tau: a number, or one per minibatch. delta <- Pi(delta + alpha sign g + omega n). host: "at" (uniform
    start, CE) or "trades" (0.001 normal start, KL to the clean prediction; outer loss CE(x) + beta KL).
    Draws: "start:uniform" (at) or "start:normal" (trades) like x; "omega-{k}:normal" like x for step k = 0,
    ..., K - 1.
    """
    params = list(model.parameters())
    buffers: list[Tensor] = []
    log = []
    for t, (x, y, index) in enumerate(batches):
        lo, up = box(x, eps)
        if host == "at":
            delta = clip(eps * (2 * draws("start:uniform", t, x, index) - 1), lo, up)
        else:
            delta = 0.001 * draws("start:normal", t, x, index)
            delta = clip(delta, lo, up) if project_start else delta
        left = torch.full((len(x),), tau if isinstance(tau, int) else tau[t])
        frozen = torch.zeros(len(x), dtype=torch.bool)
        taken = torch.zeros(len(x))
        with still(model, attack_mode):
            target = model(x).detach()
            for k in range(steps):
                noise = draws(f"omega-{k}:normal", t, x, index)
                delta = delta.detach().requires_grad_()
                logits = model(x + delta)
                objective = cross_entropy(logits, y) if host == "at" else kl(target, logits)
                (g,) = torch.autograd.grad(objective.sum(), delta)
                delta = delta.detach()
                moved = clip(delta + alpha * g.sign() + omega * noise, lo, up)
                for i in range(len(x)):
                    if bool(frozen[i]):
                        continue
                    wrong = int(logits[i].argmax()) != int(y[i])
                    if wrong and left[i] == 0:
                        frozen[i] = True
                        continue
                    if wrong:
                        left[i] -= 1
                    delta[i] = moved[i]
                    taken[i] += 1

        model.train()
        if host == "at":
            loss = cross_entropy(model(x + delta), y).mean()
        else:
            clean = model(x)
            adv = model(x + delta)
            loss = cross_entropy(clean, y).mean() + beta * kl(clean, adv).mean()
        grads = torch.autograd.grad(loss, params)
        sgd(params, grads, buffers, at(lr, t), momentum, weight_decay)
        log.append(
            {"loss": loss.item(), "frozen": frozen.double().mean().item(), "steps": taken.mean().item()}
        )
    return log
