"""Choosing hyperparameters with `bv.cid`: one penalty per feature, for the hardest of several groups.

No adversary here: the solver is general. Twelve groups follow the same linear law; each is a
small regression problem with eight features, of which three matter, and two groups are much noisier than the
rest. We look for ridge penalties exp(theta), one a feature, such that models fitted on each group's training
rows predict its validation rows well, weighing groups by how badly they do (KL-DRO):

    min over theta of  r log mean_i exp( validation_i(delta_i*(theta)) / r )
    delta_i*(theta) = argmin over delta of  training_i(delta) + sum_k exp(theta_k) delta_k^2

which is the compositional bilevel problem f(mean_i g_i) with f(u) = r log u and g_i = exp(validation_i / r).

Run: python docs/examples/cid_hyperparameters.py      (a few seconds)
"""

from __future__ import annotations

import torch
from torch import Tensor

import bivallate as bv
from bivallate.coupling.cid import batches_of

GROUPS, ROWS, FEATURES, TEMPERATURE = 12, 10, 8, 1.0


def groups(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs (GROUPS, rows, FEATURES) and targets (GROUPS, rows); the last two groups are noisier."""
    generator = torch.Generator().manual_seed(seed)
    law = torch.tensor([1.5, -1.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0])
    noise = torch.tensor([0.3] * (GROUPS - 2) + [1.2] * 2)
    x = torch.randn(GROUPS, rows, FEATURES, generator=generator)
    return x, x @ law + noise[:, None] * torch.randn(GROUPS, rows, generator=generator)


TRAIN, VALIDATION = groups(ROWS, seed=0), groups(40, seed=1)


def error(data: tuple[Tensor, Tensor], delta: Tensor, i: Tensor) -> Tensor:
    """(B,) mean squared error / 2 of the models delta (B, FEATURES) on groups i."""
    x, y = data
    return (torch.einsum("brk,bk->br", x[i], delta) - y[i]).square().mean(1) / 2


def h(theta: Tensor, delta: Tensor, i: Tensor) -> Tensor:
    """(B,) the penalised training error of each group: strongly convex in its model."""
    return error(TRAIN, delta, i) + (theta.exp() * delta**2).sum(1)


def g(theta: Tensor, delta: Tensor, i: Tensor) -> Tensor:
    """(B,) exp(validation error / r)."""
    return (error(VALIDATION, delta, i) / TEMPERATURE).exp()


def fit(theta: Tensor) -> Tensor:
    """(GROUPS, FEATURES) the exact models for given penalties."""
    x, y = TRAIN
    gram = x.mT @ x / ROWS + 2 * torch.diag(theta.exp())
    return torch.linalg.solve(gram, x.mT @ y[:, :, None] / ROWS)[:, :, 0]


def report(theta: Tensor) -> tuple[float, float]:
    """Mean and worst validation error over the groups."""
    errors = error(VALIDATION, fit(theta), torch.arange(GROUPS))
    return float(errors.mean()), float(errors.max())


def main() -> tuple[Tensor, tuple[float, float], tuple[float, float]]:
    """Penalties, and (mean, worst) error before and after."""
    first = torch.full((FEATURES,), -4.0)
    found = bv.cid(
        f=lambda u: TEMPERATURE * u.log(),
        g=g,
        h=h,
        theta=first,
        delta=lambda i: torch.zeros(len(i), FEATURES),
        sampler=batches_of(GROUPS, 6),
        iterations=100,
        lower_steps=25,
        lower_step_size=0.15,
        step_size=0.5,
        rate=0.5,
        solver_steps=FEATURES,
    )
    theta = found.theta
    assert isinstance(theta, Tensor)
    return theta, report(first), report(theta)


if __name__ == "__main__":
    penalties, before, after = main()
    print("penalty of each feature:", " ".join(f"{p:.3f}" for p in penalties.exp().tolist()))
    print(f"validation error, mean over groups: {before[0]:.3f} -> {after[0]:.3f}")
    print(f"validation error, worst group:      {before[1]:.3f} -> {after[1]:.3f}")
