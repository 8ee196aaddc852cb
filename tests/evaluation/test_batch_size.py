"""Batch sizes that fit into memory, and faster copies of the model, which never decide a verdict."""

from __future__ import annotations

import importlib
import weakref

import pytest
import torch
from tests.evaluation.conftest import affine, cloud
from torch import nn

import bivallate as bv
from bivallate.errors import UserError
from bivallate.evaluation import attack_and_score
from bivallate.evaluation.batch_size import estimate_batch, example_bytes, example_work
from bivallate.evaluation.inference import CallableModule
from bivallate.evaluation.search_model import search_model
from bivallate.parts import part


@part
class Hungry:
    """Runs out of memory with more than `fits` points."""

    fits: int
    name: str = "hungry"

    def count(self, classes: int) -> int:
        return 3

    def cost(self) -> float:
        return 1

    def search(self, problem, turn):
        if len(problem.x) > self.fits:
            raise torch.cuda.OutOfMemoryError("no room")
        return problem.project(problem.threat.random(problem.noise, problem.x))


def test_the_batch_shrinks_when_memory_runs_out(robust_model, held_out):
    threat = bv.Linf(0.2)
    usual = attack_and_score(robust_model, held_out, threat, Hungry(10**6))
    tight = attack_and_score(robust_model, held_out, threat, Hungry(5))
    assert usual.robust_accuracy < usual.clean_accuracy
    assert torch.equal(usual.robust, tight.robust)
    with pytest.raises(UserError, match="one point does not fit"):
        attack_and_score(robust_model, held_out, threat, Hungry(0))


@part
class Lingering:
    """Runs out of memory if the tensors of a failed attempt still live."""

    name: str = "lingering"

    def count(self, classes: int) -> int:
        return 1

    def cost(self) -> float:
        return 1

    def search(self, problem, turn):
        large = torch.zeros_like(problem.x)
        assert all(kept() is None for kept in ATTEMPTS), "a failed attempt is let go before the next"
        ATTEMPTS.append(weakref.ref(large))
        if len(large) > 4:
            raise torch.cuda.OutOfMemoryError("no room")
        return large


ATTEMPTS: list[weakref.ref] = []


def test_what_a_failed_attempt_held_is_free_before_the_next():
    x, model = cloud(16, (1, 8, 8)), affine(64, 3)
    ATTEMPTS.clear()
    attack_and_score(model, (x, model(x).argmax(1)), bv.Linf(0.01), Lingering(), batch_size=16)
    assert len(ATTEMPTS) == 7, "one of 16, two of 8 and four of 4"


class Fits(nn.Module):
    """A model that runs out of memory with more than so many points."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.body, self.most = affine(64, 3), most

    def forward(self, x):
        if len(x) > self.most:
            raise torch.cuda.OutOfMemoryError("no room")
        return self.body(x)


def test_the_clean_pass_steps_down_too():
    x, y = cloud(50, (1, 8, 8)), torch.zeros(50, dtype=torch.int64)
    for most in (1, 6):
        tight, usual = (
            attack_and_score(Fits(k), (x, y), bv.Linf(0.1), "clean", batch_size=50) for k in (most, 50)
        )
        assert torch.equal(tight.predicted, usual.predicted)
    for size in (None, 50):
        with pytest.raises(UserError, match="one point does not fit"):
            attack_and_score(Fits(0), (x, y), bv.Linf(0.1), "clean", batch_size=size)


def test_the_estimate_follows_the_activations():
    small, large = (
        nn.Sequential(nn.Flatten(), nn.Linear(64, k), nn.ReLU(), nn.Linear(k, 2)) for k in (10, 10**6)
    )
    x = cloud(1, (1, 8, 8))
    assert example_bytes(large, x) > 3 * 2 * 4 * 10**6
    assert estimate_batch(large, x) < estimate_batch(small, x)
    assert estimate_batch(large, x) >= 1


def test_a_function_is_measured_by_what_autograd_keeps():
    x = cloud(1, (1, 8, 8))
    weight = torch.randn(100, 64)

    def deep(images):
        hidden = images.flatten(1) @ weight.T
        for _ in range(50):
            hidden = hidden.tanh()
        return hidden[:, :3]

    def detached(images):
        return torch.tensor(images.numpy().reshape(len(images), -1)[:, :3])

    activations = 50 * 100 * 4
    assert 3 * activations <= example_bytes(CallableModule(deep), x) <= 4 * activations, (
        "weights do not count"
    )
    assert example_bytes(CallableModule(detached), x) == 3 * 12 + 16 * x.nbytes
    assert not x.requires_grad


def test_work_is_what_the_layers_multiply():
    layers = nn.Conv2d(4, 6, 3, groups=2, bias=False), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(6 * 36, 5)
    model = nn.Sequential(*layers).eval()
    assert example_work(model, cloud(1, (4, 8, 8))) == 6 * 36 * (2 * 9) + 5 * 6 * 36


class Viewing(nn.Module):
    """Works in one memory format only."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 3, 3)
        self.head = nn.Linear(3 * 36, 4)

    def forward(self, x):
        return self.head(self.convolution(x).view(len(x), -1))


def test_a_copy_that_cannot_be_used_is_not_used():
    x = cloud(2, (1, 8, 8))
    model = Viewing().eval().requires_grad_(False)
    searcher = search_model(model, x)
    assert torch.allclose(searcher(x), model(x), atol=1e-6)
    random = nn.Sequential(affine(64, 4), Jitter()).eval().requires_grad_(False)
    assert search_model(random, x) is random


class Clipped(nn.Module):
    """The same function as another on images within bounds, and on no others."""

    def __init__(self, model, low: float, high: float) -> None:
        super().__init__()
        self.model, self.low, self.high = model, low, high

    def forward(self, x):
        return self.model(x.clamp(self.low, self.high))


def test_a_copy_that_differs_away_from_the_clean_points_is_not_used(monkeypatch):
    x = 0.3 + 0.4 * cloud(2, (1, 8, 8))
    model = affine(64, 4).eval().requires_grad_(False)
    prepare = importlib.import_module("bivallate.evaluation.search_model")  # not the function of its name
    copied = Clipped(model, 0.25, 0.75)
    assert torch.equal(copied(x), model(x))
    monkeypatch.setattr(prepare, "fold_batchnorm", lambda *args, **options: copied)
    assert search_model(model, x) is model


class Jitter(nn.Module):
    """Never the same twice."""

    def forward(self, x):
        return x + torch.randn_like(x)


def test_shares_do_not_multiply_what_memory_allows(monkeypatch):
    model, x = affine(64, 3), cloud(1, (1, 8, 8))
    memory = importlib.import_module("bivallate.evaluation.batch_size")
    monkeypatch.setattr(memory, "free_bytes", lambda device: 40 * example_bytes(model, x))
    assert estimate_batch(model, x) == estimate_batch(model, x, 16) == 10
