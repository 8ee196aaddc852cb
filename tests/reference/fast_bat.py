"""Fast-BAT (M8, M9): the outer gradient with its implicit part, step by step as in section 4 and appendices A
and C.
"""

from __future__ import annotations

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
    rows,
    sgd,
    still,
)
from torch import Tensor, nn


def fast_bat(
    model: nn.Module,
    batches: Sequence[MiniBatch],
    draws: Draws,
    *,
    eps: float,
    lr: Rate,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    a: float | None = None,
    rho: float = 0.1,
    scheme: str = "ns-pgd",
    cross_at: str = "z",
    hessian: bool = False,
    cg_steps: int = 5,
    cg_tol: float = 1e-4,
    upper_mode: str = "train",
    attack_mode: str = "train",
) -> list[dict[str, float]]:
    """theta <- theta - lr (g + cross), cross = -(1/B) grad_theta <grad_delta l_atk(z), rho H_C grad_delta
    CE(delta*)>.

    a = 1/lambda multiplies the raw gradient of the summed CE (pixels): 5000/255 up to eps 8/255, 2500/255
    above. scheme (the point z of the linearisation, a constant in theta): "ns-pgd", "uniform", "corner",
    "pgd" (sign, 0.5 eps), "fgsm" (zero start, sign, eps), "ns-pgd-zero", "ns-gd" (no projection). cross_at:
    "z" (the true derivative and the authors' code) or "delta" (as eq. 12 is printed). hessian: the system
    with grad^2_delta l_atk(delta*) + lambda I on the free coordinates (eq. 10), by conjugate gradients per
    sample that stop at curvature <= 0; at the first step the Hessian-free b is taken instead. cg_tol is
    relative. upper_mode: BatchNorm mode of grad_delta CE(delta*), whose gradient belongs to the outer loss.

    Draws: "start:uniform" like x (ns-pgd, uniform, pgd, ns-gd), "start:sign" (corner); nothing for the zero
    starts.
    """
    if a is None:
        a = 5000 / 255 if eps <= 8 / 255 + 1e-12 else 2500 / 255
    lam = 1 / a
    params = list(model.parameters())
    buffers: list[Tensor] = []
    log = []
    for t, (x, y, index) in enumerate(batches):
        B = len(x)
        lo, up = box(x, eps)

        # 1. the start
        if scheme == "corner":
            z = clip(eps * draws("start:sign", t, x, index), lo, up)
        elif scheme in ("fgsm", "ns-pgd-zero"):
            z = torch.zeros_like(x)
        else:
            z = clip(eps * (2 * draws("start:uniform", t, x, index) - 1), lo, up)

        # 2. the warm-up step
        if scheme in ("ns-pgd", "ns-pgd-zero", "ns-gd", "pgd", "fgsm"):
            with still(model, attack_mode):
                z0 = z.detach().requires_grad_()
                (g0,) = torch.autograd.grad(cross_entropy(model(x + z0), y).sum(), z0)
            if scheme == "pgd":
                z = clip(z0.detach() + 0.5 * eps * g0.sign(), lo, up)
            elif scheme == "fgsm":
                z = clip(z0.detach() + eps * g0.sign(), lo, up)
            elif scheme == "ns-gd":
                z = z0.detach() + a * g0
            else:
                z = clip(z0.detach() + a * g0, lo, up)
        elif scheme not in ("uniform", "corner"):
            raise ValueError(scheme)

        # 3. the gradient of the attack loss at z, its graph in theta kept; the closed-form lower solution
        with still(model, attack_mode):
            z = z.detach().requires_grad_()
            (a1,) = torch.autograd.grad(-cross_entropy(model(x + z), y).sum(), z, create_graph=True)
        delta = clip(z.detach() - a * a1.detach(), lo, up)

        # 4. the free coordinates, strictly inside
        free = ((lo + 1e-7 < delta) & (delta < up - 1e-7)).to(x.dtype)

        # 5. the upper loss' gradient in delta
        with still(model, upper_mode):
            point = delta.detach().requires_grad_()
            (o,) = torch.autograd.grad(cross_entropy(model(x + point), y).sum(), point)

        # 6. b
        b = rho * free * o
        fallback = 0.0
        if hessian:
            with still(model, attack_mode):
                point = delta.detach().requires_grad_()
                (h,) = torch.autograd.grad(
                    -cross_entropy(model(x + point), y).sum(), point, create_graph=True
                )
            v, failed = _masked_cg(h, point, free, lam, free * o, cg_steps, cg_tol)
            b = torch.where(rows(failed, x), b, rho * lam * v)
            fallback = failed.to(x.dtype).mean().item()

        # 7. the implicit part
        if cross_at == "delta":
            with still(model, attack_mode):
                point = delta.detach().requires_grad_()
                (a1,) = torch.autograd.grad(
                    -cross_entropy(model(x + point), y).sum(), point, create_graph=True
                )
        inner = (a1 * b.detach()).sum()
        cross = torch.autograd.grad(inner, params, materialize_grads=True)

        # 8. the explicit part, the one pass that moves running statistics
        model.train()
        loss = cross_entropy(model(x + delta), y).mean()
        grads = torch.autograd.grad(loss, params)

        # 9. the update
        total = [g - c / B for g, c in zip(grads, cross, strict=True)]
        sgd(params, total, buffers, at(lr, t), momentum, weight_decay)
        log.append({"loss": loss.item(), "free_fraction": free.mean().item(), "fallback_fraction": fallback})
    return log


def _masked_cg(
    h: Tensor, point: Tensor, free: Tensor, lam: float, rhs: Tensor, steps: int, tol: float
) -> tuple[Tensor, Tensor]:
    """v with H_FF v_F = rhs_F and v_A = 0, each sample on its own; and which samples failed at the very first
    step.

    Samples do not see each other only where the model runs in eval mode.
    """
    v = torch.zeros_like(rhs)
    r = rhs.clone()
    p = rhs.clone()
    rr = dot(r, r)
    going = rr > 0
    failed = torch.zeros_like(going)
    target = tol**2 * rr
    for k in range(steps):
        going = going & (rr > target)
        if not bool(going.any()):
            break
        u = free * p
        (hvp,) = torch.autograd.grad((h * u).sum(), point, retain_graph=True)
        ap = free * (lam * u + hvp)
        curvature = dot(p, ap)
        negative = going & (curvature <= 0)
        if k == 0:
            failed = negative
        going = going & ~negative
        step = torch.where(
            going, rr / torch.where(going, curvature, torch.ones_like(rr)), torch.zeros_like(rr)
        )
        v = v + rows(step, v) * p
        r = r - rows(step, v) * ap
        new = dot(r, r)
        ratio = torch.where(going, new / torch.where(going, rr, torch.ones_like(rr)), torch.zeros_like(rr))
        p = torch.where(rows(going, p), r + rows(ratio, p) * p, p)
        rr = torch.where(going, new, rr)
    return v, failed
