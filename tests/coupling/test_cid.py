"""The generic compositional solver: its transcription, two toy problems with known optima, wrong input."""

from __future__ import annotations

import importlib.util
import itertools
import math
from pathlib import Path

import pytest
import torch
from tests.reference import cid as reference
from torch import Tensor

import bivallate as bv
from bivallate import UserError
from bivallate.coupling.cid import batches_of, cid

R = 0.5  # temperature of the experiment on bias
PROBLEM = reference.quadratic(0)


def g(theta: Tensor, delta: Tensor, i: Tensor) -> Tensor:
    """D7: exp(||delta - t_i||^2 / (2 r))."""
    return torch.exp(((delta - PROBLEM.t[i]) ** 2).sum(1) / (2 * PROBLEM.r))


def h(theta: Tensor, delta: Tensor, i: Tensor) -> Tensor:
    """D7: (delta - A_i theta - b_i)' H_i (...) / 2."""
    d = delta - PROBLEM.A[i] @ theta - PROBLEM.b[i]
    return torch.einsum("bi,bij,bj->b", d, PROBLEM.H[i], d) / 2


def f(u: Tensor) -> Tensor:
    """r log u."""
    return PROBLEM.r * u.log()


def zeros(i: Tensor) -> Tensor:
    """The first lower iterate."""
    return torch.zeros(len(i), 3, dtype=torch.float64)


THETA0 = torch.zeros(2, dtype=torch.float64)


@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("u0", [None, 1.3])
def test_equals_the_transcription(bounded, u0) -> None:
    """Algorithm 1 on minibatches, with schedules for both step sizes and, at wish, a box that binds."""
    limit = torch.full((3,), 0.3, dtype=torch.float64)
    functions = PROBLEM.functions()
    for function in functions if bounded else ():
        function.lo, function.up = -limit, limit
    drawn = batches_of(8, 3, seed=4)
    theirs, path = reference.cid(
        functions,
        THETA0,
        f_gradient=lambda u: PROBLEM.r / u,
        batches=[drawn(t).tolist() for t in range(12)],
        K=4,
        alpha=0.5,
        beta=lambda t: 0.3 / math.sqrt(t + 10),
        eta=lambda t: 0.5 + 0.04 * t,
        u0=u0,
    )
    mine = bv.cid(
        f,
        g,
        h,
        THETA0,
        zeros,
        sampler=drawn,
        iterations=12,
        lower_steps=4,
        lower_step_size=0.5,
        step_size=lambda t: 0.3 / math.sqrt(t + 10),
        rate=lambda t: 0.5 + 0.04 * t,
        project=(lambda d, i: d.clamp(-limit, limit)) if bounded else None,
        mean=None if u0 is None else torch.tensor(u0, dtype=torch.float64),
    )
    assert (mine.theta - theirs).abs().max() < 1e-10
    assert (mine.path - torch.tensor(path, dtype=torch.float64)).abs().max() < 1e-10
    assert (mine.theta - THETA0).abs().max() > 0.01
    assert mine.unsolved == 0


def settle(steps: int, iterations: int = 40) -> Tensor:
    """D7 with every function at every iteration."""
    return bv.cid(
        f,
        g,
        h,
        THETA0,
        zeros,
        sampler=lambda t: torch.arange(8),
        iterations=iterations,
        lower_steps=steps,
        lower_step_size=0.5,
        step_size=0.5,
        solver_steps=3,
    ).theta


def test_reaches_the_optimum_with_enough_lower_steps() -> None:
    """D7: the error that remains shrinks geometrically in K, down to the known optimum."""
    errors = [float((settle(k) - PROBLEM.theta_star).norm()) for k in (1, 5, 20, 60)]
    assert errors[0] > 1
    for few, many in itertools.pairwise(errors):
        assert many < few / 5
    assert errors[-1] < 1e-6


def test_the_running_mean_removes_the_bias_of_small_batches() -> None:
    """D8, 300 runs side by side, one function an iteration: rate 1 finds the plain average's optimum."""
    runs, steps = 300, 600
    generator = torch.Generator().manual_seed(0)
    hard = torch.rand(steps, runs, generator=generator) < 0.1
    centre = torch.where(hard, -1.0, 1.0).double()
    ends = {}
    for rate in (1.0, 0.5, 0.01):
        found = bv.cid(
            f=lambda u: R * u.log().sum(),
            g=lambda theta, delta, i: torch.exp((theta - centre[i]) ** 2 / (2 * R)),
            h=lambda theta, delta, i: delta.square().sum(1),
            theta=torch.zeros(runs, dtype=torch.float64),
            delta=lambda i: torch.zeros(len(i), 1, dtype=torch.float64),
            sampler=lambda t: torch.tensor([t]),
            iterations=steps,
            lower_steps=0,
            lower_step_size=0.1,
            step_size=lambda t: 2 / (t + 20),
            rate=rate,
            mean=torch.full((runs,), 2.0, dtype=torch.float64),
        )
        ends[rate] = float(found.theta.mean())
    assert ends[1.0] == pytest.approx(0.80, abs=0.01)
    assert ends[0.5] == pytest.approx(0.612, abs=0.015)
    assert ends[0.01] == pytest.approx(reference.bias_optimum(R), abs=0.01)


def test_takes_parameters_by_name_and_values_of_any_width() -> None:
    """Two values a function: f(u) = u_0 + u_1^2, against the gradient written out."""
    a = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    theta = {"w": torch.tensor(0.7, dtype=torch.float64), "b": torch.tensor(-0.2, dtype=torch.float64)}
    found = cid(
        f=lambda u: u[0] + u[1] ** 2,
        g=lambda th, de, i: torch.stack([de[:, 0] ** 2, a[i] * de[:, 0] + th["b"]], 1),
        h=lambda th, de, i: (de[:, 0] - th["w"] * a[i]) ** 2,
        theta=theta,
        delta=lambda i: torch.zeros(len(i), 1, dtype=torch.float64),
        sampler=lambda t: torch.arange(3),
        iterations=1,
        lower_steps=40,
        lower_step_size=0.25,
        step_size=0.01,
        rate=1.0,
    )
    leaf = {k: v.clone().requires_grad_() for k, v in theta.items()}
    de = leaf["w"] * a
    total = (de**2).mean() + (a * de + leaf["b"]).mean() ** 2
    for (name, before), grad in zip(
        theta.items(), torch.autograd.grad(total, list(leaf.values())), strict=True
    ):
        assert float(found.theta[name]) == pytest.approx(float(before - 0.01 * grad), abs=1e-10)
    assert found.path.shape == (1, 2)


def test_a_held_coordinate_does_not_follow_theta() -> None:
    """Two coordinates: the first is held at 1, the second is free; only `free` gives the true gradient."""
    c = torch.tensor([[3.0, 0.5]], dtype=torch.float64)

    def run(free) -> float:
        return float(
            cid(
                f=lambda u: u,
                g=lambda th, de, i: de.sum(1),
                h=lambda th, de, i: ((de - th * c[i]) ** 2).sum(1),
                theta=torch.ones((), dtype=torch.float64),
                delta=lambda i: torch.full((1, 2), 0.5, dtype=torch.float64),
                sampler=lambda t: torch.tensor([0]),
                iterations=1,
                lower_steps=60,
                lower_step_size=0.3,
                step_size=1.0,
                project=lambda d, i: d.clamp(0, 1),
                free=free,
            ).theta
        )

    assert run(lambda d, i: (d > 0) & (d < 1)) == pytest.approx(1 - 0.5, abs=1e-10)
    assert run(None) == pytest.approx(1 - 3.5, abs=1e-10)


def test_says_when_the_lower_level_is_not_convex() -> None:
    found = cid(
        f=lambda u: u,
        g=lambda th, de, i: de.sum(1) + th,
        h=lambda th, de, i: -(de**2).sum(1),
        theta=torch.zeros(()),
        delta=lambda i: torch.full((len(i), 1), 0.1),
        sampler=lambda t: torch.arange(2),
        iterations=3,
        lower_steps=1,
        lower_step_size=0.1,
        step_size=1.0,
    )
    assert found.unsolved == 1
    assert float(found.theta) == pytest.approx(-3), "the direct part alone"


def test_draws_depend_on_the_iteration_alone() -> None:
    sample = batches_of(10, 5, seed=1)
    assert torch.equal(sample(3), sample(3))
    assert not torch.equal(sample(3), sample(4))
    counts = torch.cat([sample(t) for t in range(400)]).bincount(minlength=10)
    assert counts.min() > 140
    assert counts.max() < 260


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"iterations": 0}, "iterations must be a whole number"),
        ({"lower_steps": -1}, "lower_steps must be"),
        ({"lower_step_size": 0.0}, "lower_step_size must be positive"),
        ({"rate": 1.5}, r"rate must be in \(0, 1\]"),
        ({"step_size": -1.0}, "step_size must be positive"),
        ({"g": lambda th, de, i: de.sum()}, "g must return"),
        ({"h": lambda th, de, i: de**2}, "h must return"),
    ],
)
def test_bad_values_are_refused(wrong, message) -> None:
    right = {
        "f": f,
        "g": g,
        "h": h,
        "theta": THETA0,
        "delta": zeros,
        "sampler": lambda t: torch.arange(8),
        "iterations": 1,
        "lower_steps": 0,
        "lower_step_size": 0.5,
        "step_size": 0.1,
    }
    with pytest.raises(UserError, match=message):
        cid(**{**right, **wrong})


def test_the_documented_example_selects_hyperparameters() -> None:
    place = Path(__file__).parents[2] / "docs" / "examples" / "cid_hyperparameters.py"
    spec = importlib.util.spec_from_file_location("cid_hyperparameters", place)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    theta, before, after = example.main()
    assert after[0] < 0.5 * before[0], "the mean over groups"
    assert after[1] < 0.5 * before[1], "the worst group"
    leaf = theta.clone().requires_grad_()
    i = torch.arange(example.GROUPS)
    r = example.TEMPERATURE

    def objective(t: Tensor) -> Tensor:
        return r * torch.logsumexp(example.error(example.VALIDATION, example.fit(t), i) / r, 0)

    (here,) = torch.autograd.grad(objective(leaf), leaf)
    first = torch.full_like(theta, -4.0).requires_grad_()
    (there,) = torch.autograd.grad(objective(first), first)
    assert here.norm() < 0.5 * there.norm()
