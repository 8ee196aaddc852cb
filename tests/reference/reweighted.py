"""Fixed and learned example weights: GAIRAT (M15), WMMR (M16), MAIL (M17), BiLAW (M18-M20), written out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

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
    sgd,
    still,
)
from tests.reference.trades_mart import mart_terms
from torch import Tensor, nn
from torch.func import functional_call


def gairat_omega(kappa: Tensor, steps: int, shift: float) -> Tensor:
    """(1 + tanh(Lambda + 5 (1 - 2 kappa / K))) / 2, as sigmoid(2 z); 1 for Lambda = inf."""
    if math.isinf(shift):
        return torch.ones_like(kappa)
    return torch.sigmoid(2 * (shift + 5 * (1 - 2 * kappa / steps)))


def gairat(
    model: nn.Module,
    batches: Sequence[MiniBatch],
    draws: Draws,
    *,
    eps: float,
    lr: Rate,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    steps: int = 10,
    alpha: float = 0.007,
    shift: Rate = -1.0,
    attack_mode: str = "eval",
) -> list[dict[str, float]]:
    """mean_i w_i CE_i, w = omega(kappa) with mean 1; kappa counts the correct iterates k = 0, ..., K - 1.

    shift: Lambda, or one per minibatch; inf is the burn-in. Draws: "start:uniform" like x.
    """
    params = list(model.parameters())
    buffers: list[Tensor] = []
    log = []
    for t, (x, y, index) in enumerate(batches):
        lo, up = box(x, eps)
        delta = clip(eps * (2 * draws("start:uniform", t, x, index) - 1), lo, up)
        kappa = torch.zeros(len(x), dtype=x.dtype)
        with still(model, attack_mode):
            for _ in range(steps):
                delta = delta.detach().requires_grad_()
                logits = model(x + delta)
                kappa = kappa + (logits.argmax(1) == y).to(x.dtype)
                (g,) = torch.autograd.grad(cross_entropy(logits, y).sum(), delta)
                delta = clip(delta.detach() + alpha * g.sign(), lo, up)
        omega = gairat_omega(kappa, steps, at(shift, t))
        w = len(x) * omega / omega.sum()

        model.train()
        loss = (w * cross_entropy(model(x + delta.detach()), y)).mean()
        grads = torch.autograd.grad(loss, params)
        sgd(params, grads, buffers, at(lr, t), momentum, weight_decay)
        log.append({"loss": loss.item(), "kappa": kappa.mean().item(), "weight_max": w.max().item()})
    return log


def probability_margin(logits: Tensor, y: Tensor) -> Tensor:
    """(B,) p_y - max_{j != y} p_j."""
    n = torch.arange(len(y))
    p = logits.softmax(1)
    others = p.clone()
    others[n, y] = -1.0
    return p[n, y] - others.max(1).values


def wmmr(
    model: nn.Module,
    batches: Sequence[MiniBatch],
    draws: Draws,
    *,
    eps: float,
    lr: Rate,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    sharpness: float | None = None,
    host: str = "at",
    beta: float = 5.0,
    steps: int = 10,
    alpha: float | None = None,
    detach_weights: bool = False,
    weighted_attack: bool = True,
    project_start: bool = True,
    attack_mode: str | None = None,
) -> list[dict[str, float]]:
    """mean_i w_i CE_i, or CE(x) + beta mean_i w_i KL_i; w = exp(-alpha m), m the adversarial margin, not
    normalised.

    sharpness: the paper's alpha (0.5 on AT, 2 on TRADES); alpha: step size in pixels (2/255, 0.007).
    weighted_attack: the attack climbs w_i times the loss, w_i with its gradient unless detach_weights.
    attack_mode: "train" on AT, "eval" on TRADES. Draws: "start:uniform" (at) or "start:normal" (trades) like
    x.
    """
    on_at = host == "at"
    a = (0.5 if on_at else 2.0) if sharpness is None else sharpness
    step_size = (2 / 255 if on_at else 0.007) if alpha is None else alpha
    mode = ("train" if on_at else "eval") if attack_mode is None else attack_mode
    params = list(model.parameters())
    buffers: list[Tensor] = []
    log = []
    for t, (x, y, index) in enumerate(batches):
        lo, up = box(x, eps)
        if on_at:
            delta = clip(eps * (2 * draws("start:uniform", t, x, index) - 1), lo, up)
        else:
            delta = 0.001 * draws("start:normal", t, x, index)
            delta = clip(delta, lo, up) if project_start else delta
        with still(model, mode):
            target = model(x).detach()
            for _ in range(steps):
                delta = delta.detach().requires_grad_()
                logits = model(x + delta)
                objective = cross_entropy(logits, y) if on_at else kl(target, logits)
                if weighted_attack:
                    w = torch.exp(-a * probability_margin(logits, y))
                    objective = (w.detach() if detach_weights else w) * objective
                (g,) = torch.autograd.grad(objective.sum(), delta)
                delta = clip(delta.detach() + step_size * g.sign(), lo, up)
        delta = delta.detach()

        model.train()
        if on_at:
            adv = model(x + delta)
            robust = cross_entropy(adv, y)
            anchor = torch.zeros_like(robust)
        else:
            clean = model(x)
            adv = model(x + delta)
            robust = beta * kl(clean, adv)
            anchor = cross_entropy(clean, y)
        w = torch.exp(-a * probability_margin(adv, y))
        if detach_weights:
            w = w.detach()
        loss = (w * robust + anchor).mean()
        grads = torch.autograd.grad(loss, params)
        sgd(params, grads, buffers, at(lr, t), momentum, weight_decay)
        log.append({"loss": loss.item(), "weight_mean": w.mean().item()})
    return log


def mail(
    model: nn.Module,
    batches: Sequence[MiniBatch],
    draws: Draws,
    *,
    eps: float,
    lr: Rate,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    host: str = "at",
    slope: float | None = None,
    bias: float | None = None,
    beta: float = 5.0,
    steps: int = 10,
    alpha: float = 0.007,
    times_three: bool = False,
    burn_in: Sequence[bool] | None = None,
    project_start: bool = True,
    attack_mode: str = "eval",
) -> list[dict[str, float]]:
    """w = sigmoid(slope (max_{j != y} p_j - p_y + bias)) with mean 1 (or times 3), detached, from the outer
    pass' logits.

    host: "at": mean w CE; "trades": CE(x) + beta mean w KL; "mart": mean w BCE + beta KL (1 - p_y).
    slope, bias: (10, -0.5) on AT and MART, (2, 0) on TRADES. burn_in: of each minibatch, whether w = 1.
    Draws: "start:normal" like x.
    """
    if slope is None:
        slope = 2.0 if host == "trades" else 10.0
    if bias is None:
        bias = 0.0 if host == "trades" else -0.5
    params = list(model.parameters())
    buffers: list[Tensor] = []
    log = []
    for t, (x, y, index) in enumerate(batches):
        lo, up = box(x, eps)
        delta = 0.001 * draws("start:normal", t, x, index)
        if project_start:
            delta = clip(delta, lo, up)
        with still(model, attack_mode):
            target = model(x).detach()
            for _ in range(steps):
                delta = delta.detach().requires_grad_()
                logits = model(x + delta)
                objective = kl(target, logits) if host == "trades" else cross_entropy(logits, y)
                (g,) = torch.autograd.grad(objective.sum(), delta)
                delta = clip(delta.detach() + alpha * g.sign(), lo, up)
        delta = delta.detach()

        model.train()
        if host == "at":
            adv = model(x + delta)
            robust = cross_entropy(adv, y)
            anchor = torch.zeros_like(robust)
        else:
            clean = model(x)
            adv = model(x + delta)
            if host == "trades":
                robust, anchor = beta * kl(clean, adv), cross_entropy(clean, y)
            else:
                robust, weighted_kl = mart_terms(clean, adv, y)
                anchor = beta * weighted_kl
        omega = torch.sigmoid(slope * (-probability_margin(adv, y).detach() + bias))
        w = 3 * omega if times_three else omega / omega.mean()
        if burn_in is not None and burn_in[t]:
            w = torch.ones_like(w)
        loss = (w * robust + anchor).mean()
        grads = torch.autograd.grad(loss, params)
        sgd(params, grads, buffers, at(lr, t), momentum, weight_decay)
        log.append({"loss": loss.item(), "weight_mean": w.mean().item(), "weight_max": w.max().item()})
    return log


def omega_mu(mu: Sequence[Tensor], margins: Tensor) -> Tensor:
    """(B,) of a ReLU network with sigmoid output; mu = [W_1 (H, K), b_1 (H), W_2 (1, H), b_2 (1)], or more
    layers.
    """
    h = margins
    for i in range(0, len(mu) - 2, 2):
        h = (h @ mu[i].T + mu[i + 1]).clamp(min=0)
    return torch.sigmoid(h @ mu[-2].T + mu[-1])[:, 0]


def _attack(
    f: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    delta: Tensor,
    eps: float,
    step: float,
    steps: int,
    host: str,
) -> Tensor:
    """K sign steps on CE ("at") or on the KL to f(x) ("trades"), from delta."""
    lo, up = box(x, eps)
    delta = clip(delta, lo, up)
    target = f(x).detach()
    for _ in range(steps):
        delta = delta.detach().requires_grad_()
        objective = cross_entropy(f(x + delta), y) if host == "at" else kl(target, f(x + delta))
        (g,) = torch.autograd.grad(objective.sum(), delta)
        delta = clip(delta.detach() + step * g.sign(), lo, up)
    return delta.detach()


def bilaw(
    model: nn.Module,
    batches: Sequence[MiniBatch],
    draws: Draws,
    *,
    meta: Sequence[MiniBatch],
    mu: list[Tensor],
    eps: float,
    lr: Rate,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    host: str = "at",
    inverse_lambda: float = 6.0,
    steps: int = 10,
    alpha: float | None = None,
    mu_optimizer: str = "descent",
    mu_lr: float = 1.0,
    mu_weight_decay: float = 0.0,
    margins_from: str = "clean",
    buffers_seen: str = "before",
    attack_mode: str = "eval",
    record: list[dict[str, Tensor]] | None = None,
) -> list[dict[str, float]]:
    """BiLAW and, with host="trades", BiLAW-TRADES (eq. 5-8), the whole second-order graph kept.

    meta: the minibatch of the second stream for each step. mu: parameters of omega_mu, updated in place by
    mu <- mu - mu_lr grad ("descent", line 6 of Algorithm 1) or by Adam (betas 0.9 and 0.999, 1e-8), either
    with mu_weight_decay as an L2 term. Virtual step: theta - lr grad of the weighted loss, no
    momentum, no weight decay. Virtual and validation losses: train mode, running statistics untouched.
    margins_from: "clean" (eval mode) or "adv" (the outer pass' logits). buffers_seen: the running statistics
    that clean margins and the validation attack see: "before" the outer pass of this step (as Algorithm 1
    reads), or "after" it (an implementation that makes the outer pass first). Draws: "start:uniform" like x
    and "meta-start:uniform" like the second stream's x (with its index); for host="trades" "start:normal" and
    "meta-start:normal", times 0.001.
    """
    step_size = eps / 4 if alpha is None else alpha
    named = dict(model.named_parameters())
    names, params = list(named), list(named.values())
    buffers: list[Tensor] = []
    m1, m2 = [torch.zeros_like(p) for p in mu], [torch.zeros_like(p) for p in mu]
    kind = "uniform" if host == "at" else "normal"
    log = []

    def first(purpose: str, t: int, x: Tensor, index: Tensor) -> Tensor:
        drawn = draws(f"{purpose}:{kind}", t, x, index)
        return eps * (2 * drawn - 1) if host == "at" else 0.001 * drawn

    for t, (x, y, index) in enumerate(batches):
        n = torch.arange(len(x))
        beta = at(lr, t)

        # 1. the attack at theta_t, the margins
        with still(model, attack_mode):
            delta = _attack(model, x, y, first("start", t, x, index), eps, step_size, steps, host)
        if buffers_seen == "after":
            model.train()
            with torch.no_grad():
                if host == "trades":
                    model(x)
                model(x + delta)
        with still(model, "train"):
            adv = model(x + delta)
            if host == "at":
                robust = cross_entropy(adv, y)
                anchor = torch.zeros_like(robust)
            else:
                clean = model(x)
                robust, anchor = inverse_lambda * kl(clean, adv), cross_entropy(clean, y)
        if margins_from == "clean":
            with still(model, "eval"):
                p = model(x).detach().softmax(1)
        else:
            p = adv.detach().softmax(1)
        margins = p[n, y][:, None] - p

        # 2. the weights, with their graph in mu
        for leaf in mu:
            leaf.requires_grad_(True)
        omega = omega_mu(mu, margins)
        w = omega / omega.sum()

        # 3. the virtual step
        weighted = (w * robust).sum() + anchor.mean()
        g = torch.autograd.grad(weighted, params, create_graph=True)
        virtual = {name: p - beta * g_p for name, p, g_p in zip(names, params, g, strict=True)}
        fixed = {name: p.detach() for name, p in virtual.items()}

        # 4. the attack on the second stream at the virtual parameters, and the loss there
        xv, yv, index_v = meta[t]
        with still(model, attack_mode):
            delta_v = _attack(
                lambda z: functional_call(model, fixed, z),  # noqa: B023
                xv,
                yv,
                first("meta-start", t, xv, index_v),
                eps,
                step_size,
                steps,
                host,
            )
        with still(model, "train"):
            adv_v = functional_call(model, virtual, xv + delta_v)
            if host == "at":
                validation = cross_entropy(adv_v, yv).mean()
            else:
                clean_v = functional_call(model, virtual, xv)
                validation = (cross_entropy(clean_v, yv) + inverse_lambda * kl(clean_v, adv_v)).mean()

        # 5. descent, or Adam, on mu
        meta_gradient = torch.autograd.grad(validation, mu, materialize_grads=True)
        with torch.no_grad():
            for i, leaf in enumerate(mu):
                g_i = meta_gradient[i] + mu_weight_decay * leaf
                if mu_optimizer == "descent":
                    leaf.copy_(leaf - mu_lr * g_i)
                    continue
                m1[i] = 0.9 * m1[i] + 0.1 * g_i
                m2[i] = 0.999 * m2[i] + 0.001 * g_i * g_i
                first_hat, second_hat = m1[i] / (1 - 0.9 ** (t + 1)), m2[i] / (1 - 0.999 ** (t + 1))
                leaf.copy_(leaf - mu_lr * first_hat / (second_hat.sqrt() + 1e-8))

        # 6. the weights with the new mu
        omega = omega_mu(mu, margins).detach()
        w = omega / omega.sum()

        # 7. the update at theta_t with the same x'; its pass moves the running statistics, once
        if buffers_seen == "before":
            model.train()
            with torch.no_grad():
                if host == "trades":
                    model(x)
                model(x + delta)
        if record is not None:
            meta_vector = torch.cat([g_i.flatten() for g_i in meta_gradient])
            record.append({"weights": w, "meta_gradient": meta_vector, "delta": delta, "meta_delta": delta_v})
        loss = (w * robust).sum() + anchor.mean()
        grads = torch.autograd.grad(loss, params)
        sgd(params, grads, buffers, beta, momentum, weight_decay)
        log.append(
            {"loss": loss.item(), "validation": validation.item(), "weight_max": (len(x) * w).max().item()}
        )
    return log


def nonparametric(
    model: nn.Module,
    batches: Sequence[MiniBatch],
    draws: Draws,
    *,
    meta: Sequence[MiniBatch],
    eps: float,
    lr: Rate,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    steps: int = 10,
    alpha: float | None = None,
    buffers_seen: str = "before",
    attack_mode: str = "eval",
    record: list[dict[str, Tensor]] | None = None,
) -> list[dict[str, float]]:
    """w_j proportional to max(c_j, 0), c_j = <grad l_j(theta_t), grad Lval(theta~)>, sum 1; uniform if none
    is positive.

    theta~: one virtual step with uniform weights. Everything else as in bilaw, host "at"; record receives
    weights, correlations c, delta and meta_delta.
    Draws: "start:uniform" like x, "meta-start:uniform" like the second stream's x (with its index).
    """
    step_size = eps / 4 if alpha is None else alpha
    named = dict(model.named_parameters())
    names, params = list(named), list(named.values())
    buffers: list[Tensor] = []
    log = []
    for t, (x, y, index) in enumerate(batches):
        B = len(x)
        beta = at(lr, t)
        with still(model, attack_mode):
            u = draws("start:uniform", t, x, index)
            delta = _attack(model, x, y, eps * (2 * u - 1), eps, step_size, steps, "at")
        if buffers_seen == "after":
            model.train()
            with torch.no_grad():
                model(x + delta)
        with still(model, "train"):
            losses = cross_entropy(model(x + delta), y)
        each = [torch.autograd.grad(losses[j], params, retain_graph=True) for j in range(B)]
        mean = [sum((each[j][k] for j in range(B)), torch.zeros(())) / B for k in range(len(params))]
        fixed = {
            name: (p - beta * g).detach().requires_grad_()
            for name, p, g in zip(names, params, mean, strict=True)
        }
        xv, yv, index_v = meta[t]
        with still(model, attack_mode):
            u = draws("meta-start:uniform", t, xv, index_v)
            delta_v = _attack(
                lambda z: functional_call(model, fixed, z),  # noqa: B023
                xv,
                yv,
                eps * (2 * u - 1),
                eps,
                step_size,
                steps,
                "at",
            )
        with still(model, "train"):
            validation = cross_entropy(functional_call(model, fixed, xv + delta_v), yv).mean()
        v = torch.autograd.grad(validation, list(fixed.values()))
        c = torch.zeros(B, dtype=x.dtype)
        for j in range(B):
            for own, common in zip(each[j], v, strict=True):
                c[j] += (own * common).sum()
        positive = c.clamp(min=0)
        w = positive / positive.sum() if positive.sum() > 0 else torch.full_like(c, 1 / B)

        if buffers_seen == "before":
            model.train()
            with torch.no_grad():
                model(x + delta)
        if record is not None:
            record.append({"weights": w, "correlations": c, "delta": delta, "meta_delta": delta_v})
        loss = (w * losses).sum()
        grads = torch.autograd.grad(loss, params)
        sgd(params, grads, buffers, beta, momentum, weight_decay)
        log.append(
            {"loss": loss.item(), "validation": validation.item(), "positive": (c > 0).double().mean().item()}
        )
    return log
