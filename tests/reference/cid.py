"""Algorithm 1 (compositional implicit differentiation, M21) for any f, g_i, h_i, and the two toy problems D7
and D8.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Scalar = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Function:
    """One g_i(theta, delta) and one h_i(theta, delta), scalars; lo and up bound delta (None: unbounded)."""

    g: Scalar
    h: Scalar
    delta0: Tensor
    lo: Tensor | None = None
    up: Tensor | None = None


def cid(
    functions: Sequence[Function],
    theta0: Tensor,
    *,
    f_gradient: Callable[[Tensor], Tensor],
    batches: Sequence[Sequence[int]],
    K: int,
    alpha: float,
    beta: Callable[[int], float],
    eta: Callable[[int], float],
    u0: float | None = None,
) -> tuple[Tensor, list[float]]:
    """theta and the values of u, one step for each entry of batches (the indices of the drawn functions).

    Every step begins the inner loop at the same delta0. u_1 is the first batch's mean of g unless u0 is
    given. The gradient sample is grad_theta g - grad_theta grad_delta h v, [grad^2_delta h] v = grad_delta g,
    solved exactly.
    """
    theta = theta0.detach().clone()
    u = None if u0 is None else torch.tensor(u0, dtype=theta.dtype)
    path = []
    for t, batch in enumerate(batches):
        values, gradients = [], []
        for i in batch:
            fn = functions[i]
            delta = fn.delta0.detach().clone()
            for _ in range(K):
                leaf = delta.clone().requires_grad_()
                (step,) = torch.autograd.grad(fn.h(theta, leaf), leaf)
                delta = delta - alpha * step
                if fn.lo is not None and fn.up is not None:
                    delta = torch.minimum(torch.maximum(delta, fn.lo), fn.up)
            th = theta.clone().requires_grad_()
            de = delta.clone().requires_grad_()
            value = fn.g(th, de)
            g_theta, g_delta = torch.autograd.grad(value, (th, de), materialize_grads=True)
            (lower,) = torch.autograd.grad(fn.h(th, de), de, create_graph=True)
            H = torch.stack([torch.autograd.grad(lower[j], de, retain_graph=True)[0] for j in range(len(de))])
            v = torch.linalg.solve(H, g_delta)
            (mixed,) = torch.autograd.grad((lower * v).sum(), th, materialize_grads=True)
            values.append(value.detach())
            gradients.append(g_theta - mixed)
        g_bar = torch.stack(values).mean()
        u = g_bar if u is None else (1 - eta(t)) * u + eta(t) * g_bar
        theta = theta - beta(t) * torch.stack(gradients).mean(0) * f_gradient(u)
        path.append(u.item())
    return theta, path


@dataclass
class Quadratic:
    """D7: h_i = (delta - A_i theta - b_i)' H_i (...) / 2, g_i = exp(||delta - t_i||^2 / (2 r)), t_i = A_i
    theta* + b_i +- e_i.

    The lower solution is A_i theta + b_i; F(theta) = r log mean_i g_i is convex and its minimiser is theta*.
    """

    A: Tensor
    b: Tensor
    H: Tensor
    t: Tensor
    theta_star: Tensor
    r: float

    def functions(self) -> list[Function]:
        """The pairs (g_i, h_i) with delta0 = 0."""
        out = []
        for i in range(len(self.A)):

            def g(theta: Tensor, delta: Tensor, i: int = i) -> Tensor:
                return torch.exp(((delta - self.t[i]) ** 2).sum() / (2 * self.r))

            def h(theta: Tensor, delta: Tensor, i: int = i) -> Tensor:
                d = delta - self.A[i] @ theta - self.b[i]
                return d @ self.H[i] @ d / 2

            out.append(Function(g, h, torch.zeros(self.A.shape[1], dtype=self.A.dtype)))
        return out


def quadratic(seed: int = 0, pairs: int = 4, p: int = 3, d: int = 2, r: float = 1.0) -> Quadratic:
    """A random instance; every H_i has its eigenvalues in [0.5, 1.5], and each A_i, b_i serves the pair +e_i,
    -e_i.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    theta_star = normal(d)
    A, b, H, t = [], [], [], []
    for _ in range(pairs):
        a_i, b_i, e_i = normal(p, d) / math.sqrt(p), 0.5 * normal(p), 0.3 * normal(p)
        q, _ = torch.linalg.qr(normal(p, p))
        h_i = q @ torch.diag(0.5 + torch.rand(p, generator=generator, dtype=torch.float64)) @ q.T
        for sign in (1, -1):
            A.append(a_i)
            b.append(b_i)
            H.append(h_i)
            t.append(a_i @ theta_star + b_i + sign * e_i)
    return Quadratic(torch.stack(A), torch.stack(b), torch.stack(H), torch.stack(t), theta_star, r)


def solve_quadratic(problem: Quadratic, K: int, iterations: int = 3000) -> float:
    """Distance to theta* after full-batch CID with eta 0.9, alpha 0.5, beta 0.3 / sqrt(t + 10).

    The same iteration as `cid`, for all functions at once and with the derivatives of the quadratic written
    out: with delta^K the lower iterate, grad_delta g = g (delta^K - t) / r and grad_theta grad_delta h = -A'
    H, so that the gradient sample is A' H H^-1 grad_delta g.
    """
    A, b, H, t, r = problem.A, problem.b, problem.H, problem.t, problem.r
    theta = torch.zeros_like(problem.theta_star)
    u: Tensor | None = None
    for k in range(iterations):
        centre = A @ theta + b
        delta = torch.zeros_like(centre)
        for _ in range(K):
            delta = delta - 0.5 * (H @ (delta - centre)[:, :, None])[:, :, 0]
        g = torch.exp(((delta - t) ** 2).sum(1) / (2 * r))
        g_delta = g[:, None] * (delta - t) / r
        v = torch.linalg.solve(H, g_delta[:, :, None])
        sample = (A.transpose(1, 2) @ H @ v)[:, :, 0]
        u = g.mean() if u is None else 0.1 * u + 0.9 * g.mean()
        theta = theta - 0.3 / math.sqrt(k + 10) * sample.mean(0) * (r / u)
    return (theta - problem.theta_star).norm().item()


def bias_experiment(
    eta: float, iterations: int = 200_000, beta: float = 2e-3, r: float = 0.5, seed: int = 0
) -> float:
    """D8: where theta settles with one function a step; nine are (theta - 1)^2 / 2 and one is (theta + 1)^2 /
    2.

    theta <- theta - beta w grad l, w = exp(l / r) / u, u <- (1 - eta) u + eta exp(l / r). Returns the mean of
    the last half.
    """
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(0, 10, (iterations,), generator=generator).tolist()
    theta, u, total, counted = 0.0, -1.0, 0.0, 0
    for k, i in enumerate(picks):
        centre = -1.0 if i == 9 else 1.0
        g = math.exp((theta - centre) ** 2 / 2 / r)
        u = g if u < 0 else (1 - eta) * u + eta * g
        theta -= beta * g / u * (theta - centre)
        if k >= iterations // 2:
            total, counted = total + theta, counted + 1
    return total / counted


def bias_optimum(r: float = 0.5) -> float:
    """The minimiser of r log(0.9 exp((theta - 1)^2 / 2r) + 0.1 exp((theta + 1)^2 / 2r)), by bisection of its
    derivative.
    """
    low, high = -1.0, 1.0
    for _ in range(200):
        middle = (low + high) / 2
        a = 0.9 * math.exp((middle - 1) ** 2 / (2 * r))
        b = 0.1 * math.exp((middle + 1) ** 2 / (2 * r))
        if a * (middle - 1) + b * (middle + 1) > 0:
            high = middle
        else:
            low = middle
    return (low + high) / 2
