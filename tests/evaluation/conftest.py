"""Small models, trained in a second, for the tests of the evaluation."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import bivallate as bv
from bivallate import models
from bivallate.method import facts_for

Points = tuple[Tensor, Tensor]


@pytest.fixture(scope="session")
def digits() -> Points:
    """All 8 x 8 digits in [0, 1]."""
    data = load_digits()
    return torch.tensor(data.images, dtype=torch.float32)[:, None] / 16, torch.tensor(data.target)


@pytest.fixture(scope="session")
def held_out(digits: Points) -> Points:
    """The last 120 digits, which no model here has seen."""
    return digits[0][-120:], digits[1][-120:]


@pytest.fixture(scope="session")
def robust_model(digits: Points) -> nn.Module:
    """tiny-cnn after four epochs of Fast-AT, in train mode, as training leaves it."""
    x, y = digits[0][:1400], digits[1][:1400]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.create("tiny-cnn", num_classes=10, shape=(1, 8, 8))
        bound = bv.methods.fast_at(bv.Linf(0.1)).bind(facts_for(model, x, 10))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for epoch in range(4):
            for i, rows in enumerate(torch.randperm(1400).split(64)):
                clock = bv.Clock(epoch, 4, i, 22)
                bv.train_step(model, optimizer, bound, bv.Batch(x[rows], y[rows], rows), clock)
    return model


def affine(features: int, classes: int, seed: int = 0, scale: float = 1.0) -> nn.Module:
    """An untrained linear model of flattened images."""
    layer = nn.Linear(features, classes)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.weight.copy_(scale * torch.randn(layer.weight.shape, generator=generator))
        layer.bias.copy_(torch.randn(layer.bias.shape, generator=generator))
    return nn.Sequential(nn.Flatten(), layer)


def cloud(n: int, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Uniform images in [0, 1]."""
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))
