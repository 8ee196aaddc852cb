"""DONE (M21, section 3 and Algorithm 1), its fast setting (M22) and the exact Proposition 1 for tests,
written out.
"""

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
    dot,
    rows,
    sgd,
    still,
)
from torch import Tensor, nn


def done(
    model: nn.Module,
    batches: Sequence[MiniBatch],
    draws: Draws,
    *,
    eps: float,
    lr: Rate,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    solver: str = "pgd",
    steps: int = 10,
    alpha: float | None = None,
    adam_betas: tuple[float, float] = (0.9, 0.999),
    adam_eps: float = 1e-8,
    start: str = "uniform",
    inner: str = "projected",
    r: Rate = 10.0,
    eta: float = 0.9,
    guard: float | None = 2.0,
    implicit: str = "barrier",
    c: float | None = None,
    rho: float = 0.1,
    gain: float = 1.0,
    cotangent: str = "summed",
    hessian: str = "none",
    cg_steps: int = 5,
    cg_tol: float = 1e-4,
    attack_mode: str = "train",
) -> list[dict[str, float]]:
    """sum_i w_i (l_i + gain <a_i, v_i>), w_i = exp(l_i / r) / (B u), v_i = C_i^-1 a_i with a_i = grad_delta
    l_i.

    solver: "gd" (raw gradient of the summed loss, alpha 1250/255), "pgd" (signs, 2/255), "adam" (fresh
    moments, 2/255). start: "uniform" (draws "start:uniform" like x) or "zero". inner:
    "projected" steps on l' and clips; "barrier" steps on h = l' - c sum log(slacks) from the start taken 5 %
    into the box, no coordinate further than 0.9 of its way to a bound, a raw step divided by 1 + alpha C. r:
    temperature, or one per
    update; u starts afresh whenever r changes. guard: kappa_u, or None for no guard. implicit: "barrier" (c
    defaults to eps^2 / 0.2), "mask" (rho H_C), "none". gain: kappa_imp. cotangent: what v is made of,
    detached: "summed" is grad_delta sum_i l_i, as written; "weighted" is grad_delta sum_i w_i l_i and enters
    without a further w_i. The two differ only where BatchNorm in train mode makes one sample's loss depend on
    another's delta. hessian (barrier only): "none"; "cg" solves (I + D^.5 H D^.5) y = D^.5 a, H =
    grad^2_delta l', by conjugate gradients per sample (at curvature <= 0 the iterate before; at the first
    step y = D^.5 a); "dense" solves it exactly. The forward pass at delta* is the outer one, in train mode,
    and serves loss, weights and a.
    """
    if alpha is None:
        alpha = {"gd": 1250 / 255, "pgd": 2 / 255, "adam": 2 / 255}[solver]
    if c is None:
        c = eps**2 / (2 * 0.1)
    params = list(model.parameters())
    buffers: list[Tensor] = []
    log_u: Tensor | None = None
    r_before: float | None = None
    log = []
    for t, (x, y, index) in enumerate(batches):
        B = len(x)
        lo, up = box(x, eps)

        # 1. the start
        if start == "uniform":
            delta = clip(eps * (2 * draws("start:uniform", t, x, index) - 1), lo, up)
        else:
            delta = torch.zeros_like(x)

        # 2. K steps
        if inner == "barrier":
            delta = clip(delta, lo + 0.05 * (up - lo), up - 0.05 * (up - lo))
        m, s = torch.zeros_like(x), torch.zeros_like(x)
        with still(model, attack_mode):
            for k in range(1, steps + 1):
                delta = delta.detach().requires_grad_()
                (g,) = torch.autograd.grad(cross_entropy(model(x + delta), y).sum(), delta)
                if inner == "barrier":
                    d = delta.detach()
                    a, b = up - d, d - lo
                    g = g + c * (1 / b - 1 / a)
                    if solver == "gd":
                        move = alpha * g / (1 + alpha * c * (1 / a**2 + 1 / b**2))
                    elif solver == "pgd":
                        move = alpha * g.sign()
                    else:
                        m = adam_betas[0] * m + (1 - adam_betas[0]) * g
                        s = adam_betas[1] * s + (1 - adam_betas[1]) * g * g
                        m_hat, s_hat = m / (1 - adam_betas[0] ** k), s / (1 - adam_betas[1] ** k)
                        move = alpha * m_hat / (s_hat.sqrt() + adam_eps)
                    delta = d + clip(move, -0.9 * b, 0.9 * a)
                    continue
                if solver == "gd":
                    delta = clip(delta.detach() + alpha * g, lo, up)
                elif solver == "pgd":
                    delta = clip(delta.detach() + alpha * g.sign(), lo, up)
                elif solver == "adam":
                    m = adam_betas[0] * m + (1 - adam_betas[0]) * g
                    s = adam_betas[1] * s + (1 - adam_betas[1]) * g * g
                    m_hat = m / (1 - adam_betas[0] ** k)
                    s_hat = s / (1 - adam_betas[1] ** k)
                    delta = clip(delta.detach() + alpha * m_hat / (s_hat.sqrt() + adam_eps), lo, up)
                else:
                    raise ValueError(solver)

        # 3. the one outer forward pass
        model.train()
        delta = delta.detach().requires_grad_()
        losses = cross_entropy(model(x + delta), y)
        (a,) = torch.autograd.grad(losses.sum(), delta, create_graph=True)

        # 4. the running estimate and the weights, in log space
        r_now = at(r, t)
        q = losses.detach() / r_now
        lg = torch.logsumexp(q, 0) - math.log(B)
        if log_u is None or r_now != r_before or eta == 1:
            log_u = lg
        else:
            log_u = torch.logaddexp(math.log(1 - eta) + log_u, math.log(eta) + lg)
        if guard is not None:
            log_u = torch.minimum(log_u, lg + math.log(guard))
        r_before = r_now
        w = torch.exp(q - log_u) / B

        # 5. the sensitivity
        s_up, s_lo = up - delta.detach(), delta.detach() - lo
        if implicit == "barrier":
            size = s_up**2 + s_lo**2
            D = torch.where(
                size > 0, (s_up * s_lo) ** 2 / (c * size.clamp(min=1e-300)), torch.zeros_like(size)
            )
        elif implicit == "mask":
            D = rho * ((lo + 1e-7 < delta) & (delta < up - 1e-7)).to(x.dtype)
        elif implicit == "none":
            D = torch.zeros_like(x)
        else:
            raise ValueError(implicit)
        if cotangent == "summed":
            right, outside = a.detach(), w
        else:
            (right,) = torch.autograd.grad((w * losses).sum(), delta, retain_graph=True)
            outside = torch.ones_like(w)
        if hessian == "none":
            v = D * right
        elif hessian == "cg":
            v = _scaled_cg(a, delta, D, right, cg_steps, cg_tol)
        else:
            v = _scaled_dense(a, delta, D, right)

        # 6. the update
        loss = (w * losses).sum()
        surrogate = loss + gain * (outside * dot(a, v.detach())).sum()
        grads = torch.autograd.grad(surrogate, params)
        sgd(params, grads, buffers, at(lr, t), momentum, weight_decay)

        # 7. the log
        log.append(
            {
                "loss": loss.item(),
                "sum_w": w.sum().item(),
                "effective": (w.sum() ** 2 / (w**2).sum()).item(),
                "log_u": log_u.item(),
                "mean_D": D.mean().item(),
                "boundary": ((s_up <= 0) | (s_lo <= 0)).to(x.dtype).mean().item(),
            }
        )
    return log


def _scaled_cg(a: Tensor, delta: Tensor, D: Tensor, right: Tensor, steps: int, tol: float) -> Tensor:
    """D^.5 y with (I + D^.5 H D^.5) y = D^.5 right and H = -da/ddelta."""
    root = D.sqrt()
    rhs = root * right
    y = torch.zeros_like(rhs)
    res, p = rhs.clone(), rhs.clone()
    rr = dot(res, res)
    going = rr > 0
    failed = torch.zeros_like(going)
    target = tol**2 * rr
    for k in range(steps):
        going = going & (rr > target)
        if not bool(going.any()):
            break
        (hvp,) = torch.autograd.grad(-(a * (root * p)).sum(), delta, retain_graph=True)
        ap = p + root * hvp
        curvature = dot(p, ap)
        negative = going & (curvature <= 0)
        if k == 0:
            failed = negative
        going = going & ~negative
        one = torch.ones_like(rr)
        step = torch.where(going, rr / torch.where(going, curvature, one), torch.zeros_like(rr))
        y = y + rows(step, y) * p
        res = res - rows(step, y) * ap
        new = dot(res, res)
        ratio = torch.where(going, new / torch.where(going, rr, one), torch.zeros_like(rr))
        p = torch.where(rows(going, p), res + rows(ratio, p) * p, p)
        rr = torch.where(going, new, rr)
    y = torch.where(rows(failed, y), rhs, y)
    return root * y


def _scaled_dense(a: Tensor, delta: Tensor, D: Tensor, right: Tensor) -> Tensor:
    """The same system, sample by sample, with the Hessian written out (model in which samples do not see each
    other).
    """
    out = torch.zeros_like(right)
    for i in range(len(a)):
        n = a[i].numel()
        H = torch.zeros(n, n, dtype=a.dtype)
        for j in range(n):
            (row,) = torch.autograd.grad(-a[i].flatten()[j], delta, retain_graph=True)
            H[j] = row[i].flatten()
        root = D[i].flatten().sqrt()
        system = torch.eye(n, dtype=a.dtype) + root[:, None] * H * root[None, :]
        solved = torch.linalg.solve(system, root * right[i].flatten())
        out[i] = (root * solved).reshape(a[i].shape)
    return out


def done_fast(
    model: nn.Module,
    batches: Sequence[MiniBatch],
    draws: Draws,
    *,
    eps: float,
    lr: Rate,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    a_warm: float = 5000 / 255,
    a_gd: float = 5000 / 255,
    warmup_sign: bool = False,
    r: Rate = 10.0,
    eta: float = 0.9,
    guard: float | None = 2.0,
    implicit: str = "barrier",
    c: float | None = None,
    rho: float = 0.1,
    gain: float = 1.0,
    cotangent: str = "summed",
    attack_mode: str = "train",
) -> list[dict[str, float]]:
    """DONE with one GD step after one warm-up step (section 4.3). Draws: "start:uniform" like x.

    warmup_sign: a sign step of 1.25 eps for the warm-up instead of the raw step of a_warm.
    """
    if c is None:
        c = eps**2 / (2 * 0.1)
    params = list(model.parameters())
    buffers: list[Tensor] = []
    log_u: Tensor | None = None
    r_before: float | None = None
    log = []
    for t, (x, y, index) in enumerate(batches):
        B = len(x)
        lo, up = box(x, eps)
        z0 = clip(eps * (2 * draws("start:uniform", t, x, index) - 1), lo, up)
        with still(model, attack_mode):
            z0 = z0.requires_grad_()
            (g0,) = torch.autograd.grad(cross_entropy(model(x + z0), y).sum(), z0)
            move = 1.25 * eps * g0.sign() if warmup_sign else a_warm * g0
            z = clip(z0.detach() + move, lo, up).requires_grad_()
            (g1,) = torch.autograd.grad(cross_entropy(model(x + z), y).sum(), z)
            delta = clip(z.detach() + a_gd * g1, lo, up)

        model.train()
        delta = delta.detach().requires_grad_()
        losses = cross_entropy(model(x + delta), y)
        (a,) = torch.autograd.grad(losses.sum(), delta, create_graph=True)

        r_now = at(r, t)
        q = losses.detach() / r_now
        lg = torch.logsumexp(q, 0) - math.log(B)
        if log_u is None or r_now != r_before or eta == 1:
            log_u = lg
        else:
            log_u = torch.logaddexp(math.log(1 - eta) + log_u, math.log(eta) + lg)
        if guard is not None:
            log_u = torch.minimum(log_u, lg + math.log(guard))
        r_before = r_now
        w = torch.exp(q - log_u) / B

        s_up, s_lo = up - delta.detach(), delta.detach() - lo
        if implicit == "barrier":
            size = s_up**2 + s_lo**2
            D = torch.where(
                size > 0, (s_up * s_lo) ** 2 / (c * size.clamp(min=1e-300)), torch.zeros_like(size)
            )
        elif implicit == "mask":
            D = rho * ((lo + 1e-7 < delta) & (delta < up - 1e-7)).to(x.dtype)
        else:
            D = torch.zeros_like(x)
        if cotangent == "summed":
            v, outside = D * a.detach(), w
        else:
            (right,) = torch.autograd.grad((w * losses).sum(), delta, retain_graph=True)
            v, outside = D * right, torch.ones_like(w)

        loss = (w * losses).sum()
        surrogate = loss + gain * (outside * dot(a, v)).sum()
        grads = torch.autograd.grad(surrogate, params)
        sgd(params, grads, buffers, at(lr, t), momentum, weight_decay)
        log.append(
            {"loss": loss.item(), "sum_w": w.sum().item(), "log_u": log_u.item(), "mean_D": D.mean().item()}
        )
    return log


def barrier_argmin(
    attack_loss: Callable[[Tensor], Tensor],
    lo: Tensor,
    up: Tensor,
    c: float,
    start: Tensor | None = None,
    iterations: int = 100,
) -> Tensor:
    """argmin over the open box of l'(delta) - c sum log(up - delta) - c sum log(delta - lo), by damped
    Newton; (d,).

    The shift that keeps the matrix positive definite vanishes at a minimum with positive curvature.
    """

    def value(d: Tensor) -> Tensor:
        return attack_loss(d) - c * torch.log(up - d).sum() - c * torch.log(d - lo).sum()

    delta = ((lo + up) / 2 if start is None else start).detach().clone()
    for _ in range(iterations):
        d = delta.clone().requires_grad_()
        (g,) = torch.autograd.grad(value(d), d)
        if g.abs().max() < 1e-13:
            break
        H = torch.autograd.functional.hessian(value, delta)
        assert isinstance(H, Tensor)
        lowest = torch.linalg.eigvalsh(H)[0].item()
        H = H + max(0.0, 1e-3 - lowest) * torch.eye(len(delta), dtype=delta.dtype)
        step = -torch.linalg.solve(H, g)
        size = 1.0
        here = value(delta)
        while size > 1e-12:
            trial = delta + size * step
            inside = bool(((trial > lo) & (trial < up)).all())
            if inside and value(trial) <= here + 1e-4 * size * (g @ step) + 1e-15:
                break
            size /= 2
        if size <= 1e-12:  # rounding: no descent is left
            break
        delta = delta + size * step
    return delta.detach()


def proposition_1(
    loss: Callable[[list[Tensor], Tensor, int], Tensor],
    theta: list[Tensor],
    deltas: Sequence[Tensor],
    los: Sequence[Tensor],
    ups: Sequence[Tensor],
    *,
    r: float,
    c: float,
    drop_hessian: bool = False,
    drop_implicit: bool = False,
) -> list[Tensor]:
    """Proposition 1 with l' = -l: the gradient in theta of r log mean_i exp(l_i(theta, delta_i*) / r), M
    gradients summed.

    loss(theta, delta, i): scalar l_i. Each term is
    g_i (grad_theta l_i - grad_theta grad_delta l'_i [grad^2_delta l'_i + C_i]^-1 grad_delta l_i) / sum_j g_j.
    """
    M = len(deltas)
    leaves = [p.detach().clone().requires_grad_() for p in theta]
    values, gradients = [], []
    for i in range(M):
        d = deltas[i].detach().clone().requires_grad_()
        l_i = loss(leaves, d, i)
        values.append(l_i.detach())
        explicit = torch.autograd.grad(l_i, leaves, retain_graph=True, materialize_grads=True)
        (upper,) = torch.autograd.grad(loss(leaves, d, i), d)
        if drop_implicit:
            gradients.append(list(explicit))
            continue
        gamma_up = 1 / (ups[i] - d.detach()) ** 2
        gamma_lo = 1 / (d.detach() - los[i]) ** 2
        C = c * torch.diag(gamma_up + gamma_lo)
        (lower,) = torch.autograd.grad(-loss(leaves, d, i), d, create_graph=True)
        n = d.numel()
        H = torch.zeros(n, n, dtype=d.dtype)
        for j in range(n):
            (H[j],) = torch.autograd.grad(lower[j], d, retain_graph=True)
        system = C if drop_hessian else H + C
        v = torch.linalg.solve(system, upper)
        mixed = torch.autograd.grad((lower * v).sum(), leaves, materialize_grads=True)
        gradients.append([e - m for e, m in zip(explicit, mixed, strict=True)])
    weights = torch.softmax(torch.stack(values) / r, 0)
    return [sum((weights[i] * gradients[i][k] for i in range(M)), torch.zeros(())) for k in range(len(theta))]
