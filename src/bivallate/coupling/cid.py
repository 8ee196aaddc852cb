"""The generic compositional bilevel problem and its solver (CID), for any functions.

    min over theta of F(theta) = f( mean_i g_i(theta, delta_i*(theta)) ),
    delta_i*(theta) = argmin over delta in V_i of h_i(theta, delta)

f is a function of a mean, so the plain gradient of a minibatch is biased unless f is linear: CID keeps a
running estimate of the mean. Adversarial training with KL-DRO weights is f(u) = r log u, g_i = exp(loss_i
/ r); in that form keep loss_i / r small, or use the weighting `KLDRO`, which works in log space.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from bivallate.coupling.linear_solve import conjugate_gradient
from bivallate.errors import UserError
from bivallate.lower.second_order import twice_differentiable
from bivallate.noise import Noise
from bivallate.types import per_example

Theta = TypeVar("Theta", Tensor, dict[str, Tensor])
Number = float | Callable[[int], float]


@dataclass(frozen=True)
class CIDResult:
    """Where `cid` ended.

    Attributes:
        theta: in the form of the first iterate, without graph.
        mean: the running estimate u of mean_i g_i, (m,) or ().
        path: u after every iteration, (iterations, m) or (iterations,).
        unsolved: fraction of the linear systems whose first direction had curvature <= 0; their implicit part
            was left out, because h_i is not convex there.
    """

    theta: Tensor | dict[str, Tensor]
    mean: Tensor
    path: Tensor
    unsolved: float


def batches_of(n: int, size: int, seed: int = 0) -> Callable[[int], Tensor]:
    """A sampler of `size` functions out of n, with replacement: t -> (size,) int64, a function of t alone."""

    def sample(t: int) -> Tensor:
        return Noise(seed, torch.arange(size), epoch=t).integers("cid", 0, n)

    return sample


def cid(
    f: Callable[[Tensor], Tensor],
    g: Callable[..., Tensor],
    h: Callable[..., Tensor],
    theta: Theta,
    delta: Callable[[Tensor], Tensor],
    *,
    sampler: Callable[[int], Tensor],
    iterations: int,
    lower_steps: int,
    lower_step_size: float,
    step_size: Number,
    rate: Number = 0.9,
    project: Callable[[Tensor, Tensor], Tensor] | None = None,
    free: Callable[[Tensor, Tensor], Tensor] | None = None,
    mean: Tensor | None = None,
    solver_steps: int = 20,
    tolerance: float = 1e-10,
) -> CIDResult:
    """Compositional implicit differentiation (CID) for a problem of the user's own functions f, g, h.

    One iteration: draw functions; make K projected gradient steps on each h_i, always from the same first
    point; solve [d^2 h_i / d delta^2] v_i = d g_i / d delta; the gradient sample is d g_i / d theta -
    d^2 h_i / d theta d delta v_i; u <- (1 - rate) u + rate mean g_i; theta <- theta - step_size (mean sample)
    grad f(u), where u is the new one and held constant.

    Args:
        f: u -> scalar; u has the shape of one g_i.
        g: (theta, delta, index) -> (B,) or (B, m): the functions `index` (B,) int64, each at its own row of
            delta (B, ...).
        h: (theta, delta, index) -> (B,): the lower objectives; row i may depend on delta[i] alone.
        theta: first iterate, a tensor or a dict of tensors.
        delta: index -> (B, ...) where the lower level begins.
        sampler: iteration -> (B,) int64, the functions that are drawn; see `batches_of`.
        iterations: number of iterations T.
        lower_steps: number of lower steps K. The remaining error falls as (1 - lower_step_size * mu)^K, mu
            the least curvature of h.
        lower_step_size: alpha, at most 2 / (L + mu), L the largest curvature of h.
        step_size: beta_t, a number or a function of t; the theory has 1 / sqrt(T).
        rate: eta_t in (0, 1]; the theory has [1/2, 1). 1 gives the biased gradient of the minibatch.
        project: (delta, index) -> the nearest points of V_i; None where the lower level is unconstrained.
        free: (delta, index) -> bool like delta: the coordinates at which no constraint is active; the linear
            system is solved on these. None: all of them, exact at interior minimisers, as the paper assumes.
        mean: u_0; None starts at the first minibatch's mean.
        solver_steps: of conjugate gradients, for each linear system.
        tolerance: relative residual of the linear systems.

    Returns:
        The last theta, the running mean u and its path.

    Raises:
        UserError: for numbers that are out of range, or shapes that do not fit.

    Cost: an iteration makes lower_steps + 1 evaluations and gradients of h, one of g, and a Hessian-vector
    product for each step of the solver and one more.

    Reference: DONE (ICLR 2024), Algorithm 1, eq. 8-10, Theorem 1.
    Deviation: `free`, and the start of u at the first minibatch, are not in the paper.

    Example:
        >>> centre = torch.tensor([1.0, 3.0])  # h_i = (delta - theta)^2 / 2, g_i = (delta - centre_i)^2
        >>> found = cid(
        ...     f=lambda u: u,
        ...     g=lambda theta, delta, i: (delta[:, 0] - centre[i]) ** 2,
        ...     h=lambda theta, delta, i: ((delta - theta) ** 2).sum(1) / 2,
        ...     theta=torch.zeros(1),
        ...     delta=lambda i: torch.zeros(len(i), 1),
        ...     sampler=lambda t: torch.arange(2),
        ...     iterations=50, lower_steps=20, lower_step_size=0.5, step_size=0.2,
        ... )
        >>> round(float(found.theta), 3)
        2.0
    """
    _check(iterations, lower_steps, lower_step_size, solver_steps)
    u, path, solved = mean, [], [0, 0]
    for t in range(iterations):
        index = sampler(t)
        leaf = _leaf(theta)
        lower = _descend(h, leaf, delta(index), index, lower_steps, lower_step_size, project)
        values = g(leaf, lower, index)
        if values.shape[:1] != index.shape:
            raise UserError(
                f"g must return a value a function, ({len(index)}, ...), got {tuple(values.shape)}"
            )
        now = values.detach().mean(0)
        eta = _at(rate, t, "rate", 1.0)
        u = now if u is None else (1 - eta) * u + eta * now
        sample, failed = _gradient(f, h, leaf, lower, index, values, u, free, solver_steps, tolerance)
        beta = _at(step_size, t, "step_size")
        theta = _moved(theta, sample, beta)
        path.append(u)
        solved[0], solved[1] = solved[0] + int(failed.sum()), solved[1] + len(failed)
    assert u is not None
    return CIDResult(_plain(theta), u, torch.stack(path), solved[0] / max(solved[1], 1))


def _descend(
    h: Callable[..., Tensor],
    theta: Tensor | dict[str, Tensor],
    delta: Tensor,
    index: Tensor,
    steps: int,
    size: float,
    project: Callable[[Tensor, Tensor], Tensor] | None,
) -> Tensor:
    """(B, ...) the lower iterate after K projected gradient steps, as a leaf with requires_grad."""
    fixed = _plain(theta)
    for _ in range(steps):
        point = delta.detach().requires_grad_()
        (grad,) = torch.autograd.grad(h(fixed, point, index).sum(), point)
        delta = point.detach() - size * grad
        if project is not None:
            delta = project(delta, index)
    return delta.detach().requires_grad_()


def _gradient(
    f: Callable[[Tensor], Tensor],
    h: Callable[..., Tensor],
    theta: Tensor | dict[str, Tensor],
    delta: Tensor,
    index: Tensor,
    values: Tensor,
    u: Tensor,
    free: Callable[[Tensor, Tensor], Tensor] | None,
    steps: int,
    tolerance: float,
) -> tuple[list[Tensor], Tensor]:
    """(mean gradient sample) grad f(u), one tensor for each in theta; and (B,) which systems failed."""
    leaves = _leaves(theta)
    point = u.detach().requires_grad_()
    (outer,) = torch.autograd.grad(f(point), point)
    direct = torch.autograd.grad((values * outer).sum(), [*leaves, delta], materialize_grads=True)
    with twice_differentiable():
        lower = h(theta, delta, index)
    if lower.shape != index.shape:
        raise UserError(f"h must return one number a function, ({len(index)},), got {tuple(lower.shape)}")
    (slope,) = torch.autograd.grad(lower.sum(), delta, create_graph=True, materialize_grads=True)
    mask = torch.ones_like(delta) if free is None else free(delta.detach(), index).to(delta.dtype)

    def product(v: Tensor) -> Tensor:
        (hv,) = torch.autograd.grad(
            slope, delta, mask * v, retain_graph=True, materialize_grads=True, allow_unused=True
        )
        return mask * hv

    if not slope.requires_grad:  # h is linear in delta, or g does not see it: nothing to solve
        return [d / len(index) for d in direct[:-1]], torch.zeros(len(index), dtype=torch.bool)
    found = conjugate_gradient(product, mask * direct[-1].detach(), steps=steps, tolerance=tolerance)
    v = torch.where(per_example(found.failed, delta), 0, found.u)
    mixed = torch.autograd.grad(slope, leaves, v, materialize_grads=True, allow_unused=True)
    return [(d - m) / len(index) for d, m in zip(direct[:-1], mixed, strict=True)], found.failed


def _leaves(theta: Tensor | dict[str, Tensor]) -> list[Tensor]:
    return list(theta.values()) if isinstance(theta, dict) else [theta]


def _leaf(theta: Theta) -> Theta:
    """The same values, as leaves with requires_grad."""
    if isinstance(theta, dict):
        return {k: v.detach().requires_grad_() for k, v in theta.items()}
    return theta.detach().requires_grad_()


def _plain(theta: Tensor | dict[str, Tensor]) -> Tensor | dict[str, Tensor]:
    """The same values, without graph."""
    return {k: v.detach() for k, v in theta.items()} if isinstance(theta, dict) else theta.detach()


def _moved(theta: Theta, sample: list[Tensor], step: float) -> Theta:
    """theta - step * sample."""
    if isinstance(theta, dict):
        return {k: v.detach() - step * d for (k, v), d in zip(theta.items(), sample, strict=True)}
    return theta.detach() - step * sample[0]


def _at(value: Number, t: int, name: str, top: float = float("inf")) -> float:
    number = value(t) if callable(value) else value
    if not 0 < number <= top:
        bound = "positive" if top == float("inf") else f"in (0, {top:g}]"
        raise UserError(f"{name} must be {bound}, got {number!r} at iteration {t}")
    return number


def _check(iterations: int, lower_steps: int, lower_step_size: float, solver_steps: int) -> None:
    for name, value, least in (
        ("iterations", iterations, 1),
        ("lower_steps", lower_steps, 0),
        ("solver_steps", solver_steps, 1),
    ):
        if not (isinstance(value, int) and value >= least):
            raise UserError(f"{name} must be a whole number of at least {least}, got {value!r}")
    if not lower_step_size > 0:
        raise UserError(f"lower_step_size must be positive, got {lower_step_size!r}")
