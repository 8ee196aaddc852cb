"""Attacks that share or keep work: Free-AT (M4), YOPO (M5), ATTA (M6), written out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tests.reference.plainsgd import Draws, MiniBatch, Rate, at, box, clip, cross_entropy, kl, sgd, still
from torch import Tensor, nn

View = tuple[Tensor, Tensor, Tensor]


def free(
    model: nn.Module,
    batches: Sequence[MiniBatch],
    draws: Draws,
    *,
    eps: float,
    lr: Rate,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    replays: int = 8,
    alpha: float | None = None,
    reclip: bool = True,
) -> list[dict[str, float]]:
    """One forward and backward at x + delta moves theta and then delta by eps sign, m times on each
    minibatch.

    delta is one buffer of the first minibatch's shape, zero only at the very start; a short minibatch uses
    and returns its first rows. reclip: carried rows are first clipped to the box of the new x. alpha: eps
    (pixels). lr as a list has one entry per update (minibatch times m plus replay). One log entry per update.
    Draws nothing.
    """
    step_size = eps if alpha is None else alpha
    params = list(model.parameters())
    buffers: list[Tensor] = []
    kept = torch.zeros_like(batches[0][0])
    log: list[dict[str, float]] = []
    for x, y, _ in batches:
        lo, up = box(x, eps)
        delta = kept[: len(x)].clone()
        if reclip:
            delta = clip(delta, lo, up)
        for _ in range(replays):
            model.train()
            delta = delta.detach().requires_grad_()
            loss = cross_entropy(model(x + delta), y).mean()
            grads = torch.autograd.grad(loss, [*params, delta])
            sgd(params, grads[:-1], buffers, at(lr, len(log)), momentum, weight_decay)
            delta = clip(delta.detach() + step_size * grads[-1].sign(), lo, up)
            log.append({"loss": loss.item(), "delta_max": delta.abs().max().item()})
        kept[: len(x)] = delta
    return log


def yopo(
    model: nn.Module,
    batches: Sequence[MiniBatch],
    draws: Draws,
    *,
    eps: float,
    lr: Rate,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    m: int = 5,
    n: int = 3,
    sigma: float = 2 / 255,
    first_layer: str = "hamiltonian",
    beta: float | None = None,
    path: list[Tensor] | None = None,
) -> list[dict[str, float]]:
    """YOPO-m-n: m full passes whose parameter gradients add up, n first-layer steps after each, one SGD step.

    With f = f_rest o f_0, f_0 = model.stem: p = -d mean CE / d f_0(x + eta), a constant;
    eta <- Pi(eta - sigma sign grad_eta <p, f_0(x + eta)>), n times; then the stem's gradient of -<p, f_0(x +
    eta)>. first_layer: "hamiltonian" gives the stem that last gradient alone (the paper's scheme), "both"
    adds its part of the full passes (the public code). beta: the loss is TRADES', CE(x) + beta KL, whose part
    at x reaches the stem in either case. sigma is in pixels. lr: one entry per minibatch; the caller divides
    it by m. path: receives eta after each of the m rounds. Draws: "start:uniform" like x.
    """
    stem = model.stem
    assert isinstance(stem, nn.Module)
    stem_params = list(stem.parameters())
    params = list(model.parameters())
    buffers: list[Tensor] = []
    log = []
    for t, (x, y, index) in enumerate(batches):
        lo, up = box(x, eps)
        eta = clip(eps * (2 * draws("start:uniform", t, x, index) - 1), lo, up)
        total = {id(p): torch.zeros_like(p) for p in params}
        losses = []
        model.train()
        for _ in range(m):
            clean = model(x) if beta is not None else None
            caught: list[Tensor] = []

            def catch(_: nn.Module, __: object, out: Tensor) -> Tensor:
                caught.append(out if first_layer == "both" else out.detach().requires_grad_())  # noqa: B023
                return caught[-1]  # noqa: B023

            handle = stem.register_forward_hook(catch)
            adversarial = model(x + eta)
            handle.remove()
            if clean is None or beta is None:
                loss = cross_entropy(adversarial, y).mean()
            else:
                loss = (cross_entropy(clean, y) + beta * kl(clean, adversarial)).mean()
            losses.append(loss.item())
            grads = torch.autograd.grad(loss, [*params, caught[0]], materialize_grads=True)
            p = -grads[-1].detach()
            for weight, g in zip(params, grads[:-1], strict=True):
                total[id(weight)] += g
            for _ in range(n):
                eta = eta.detach().requires_grad_()
                (g_eta,) = torch.autograd.grad((p * stem(x + eta)).sum(), eta)
                eta = clip(eta.detach() - sigma * g_eta.sign(), lo, up)
            eta = eta.detach()
            if path is not None:
                path.append(eta.clone())
            for weight, g in zip(
                stem_params, torch.autograd.grad(-(p * stem(x + eta)).sum(), stem_params), strict=True
            ):
                total[id(weight)] += g
        sgd(params, [total[id(weight)] for weight in params], buffers, at(lr, t), momentum, weight_decay)
        log.append({"loss": sum(losses) / m, "last_loss": losses[-1]})
    return log


def cut(canvas: Tensor, view: View, size: int) -> Tensor:
    """The windows of canvases (B, C, S + 2p, S + 2p) at (top, left), mirrored left to right where flip is
    true.
    """
    out = []
    for i in range(len(canvas)):
        top, left = int(view[0][i]), int(view[1][i])
        window = canvas[i, :, top : top + size, left : left + size]
        out.append(window.flip(-1) if bool(view[2][i]) else window)
    return torch.stack(out)


def paste(canvas: Tensor, view: View, windows: Tensor) -> Tensor:
    """The canvases with the windows written back where `cut` took them, mirrored back."""
    out = canvas.clone()
    size = windows.shape[-1]
    for i in range(len(canvas)):
        top, left = int(view[0][i]), int(view[1][i])
        window = windows[i].flip(-1) if bool(view[2][i]) else windows[i]
        out[i, :, top : top + size, left : left + size] = window
    return out


def atta(
    model: nn.Module,
    batches: Sequence[MiniBatch],
    draws: Draws,
    *,
    eps: float,
    lr: Rate,
    canvases: Tensor,
    views: Sequence[View],
    epochs: Sequence[int],
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    steps: int = 1,
    alpha: float = 0.015,
    reset: int | None = 10,
    counts_from: int = 1,
    host: str = "mat",
    attack_loss: str = "ce",
    beta: float = 6.0,
    project_start: bool = True,
    attack_mode: str = "eval",
    bank: list[Tensor] | None = None,
) -> list[dict[str, float]]:
    """ATTA-k: k sign steps from the adversarial point that this image's last visit left, in the padded
    image's frame.

    canvases: (N, C, S + 2p, S + 2p), all padded natural images. views: (top, left, flip) of each minibatch,
    each (B,); its x is cut from the canvases, the batch's own x only gives the size. epochs: of each
    minibatch, from 0. The bank is canvases + 0.001 noise at the start, and anew when an epoch begins whose
    number, counted from counts_from, is a multiple of reset (None: never). host: "mat" (mean CE) or "trades"
    (CE(x) + beta KL); attack_loss: "ce", as the public code for both, or "kl". bank: receives the bank after
    the last minibatch. Draws: "bank:normal" like canvases, index 0, ..., N - 1, step = the epoch (not the
    minibatch).
    """
    params = list(model.parameters())
    buffers: list[Tensor] = []
    every = torch.arange(len(canvases))
    stored = canvases + 0.001 * draws("bank:normal", epochs[0], canvases, every)
    log = []
    for t, (batch_x, y, index) in enumerate(batches):
        begins = t > 0 and epochs[t] != epochs[t - 1]
        if begins and reset is not None and (epochs[t] + counts_from) % reset == 0:
            stored = canvases + 0.001 * draws("bank:normal", epochs[t], canvases, every)
        size = batch_x.shape[-1]
        x = cut(canvases[index], views[t], size)
        lo, up = box(x, eps)
        delta = cut(stored[index], views[t], size) - x
        if project_start:
            delta = clip(delta, lo, up)
        with still(model, attack_mode):
            target = model(x).detach()
            for _ in range(steps):
                delta = delta.detach().requires_grad_()
                logits = model(x + delta)
                objective = cross_entropy(logits, y) if attack_loss == "ce" else kl(target, logits)
                (g,) = torch.autograd.grad(objective.sum(), delta)
                delta = clip(delta.detach() + alpha * g.sign(), lo, up)
        delta = delta.detach()
        stored[index] = paste(stored[index], views[t], x + delta)

        model.train()
        if host == "mat":
            loss = cross_entropy(model(x + delta), y).mean()
        else:
            clean = model(x)
            adv = model(x + delta)
            loss = cross_entropy(clean, y).mean() + beta * kl(clean, adv).mean()
        grads = torch.autograd.grad(loss, params)
        sgd(params, grads, buffers, at(lr, t), momentum, weight_decay)
        log.append({"loss": loss.item(), "delta_mean": delta.abs().mean().item()})
    if bank is not None:
        bank.append(stored)
    return log
