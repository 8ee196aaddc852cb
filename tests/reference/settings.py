"""The small models, minibatches and unit draws on which the references check themselves."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from tests.reference.plainsgd import MiniBatch
from torch import Tensor, nn

EPS = 8 / 255


class Small(nn.Module):
    """A convolution (`stem`), perhaps a BatchNorm, a smooth activation and a linear layer; 1 x 4 x 4 images,
    3 classes.
    """

    def __init__(self, norm: bool = False, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.stem = nn.Conv2d(1, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3) if norm else nn.Identity()
        self.act = nn.Softplus(beta=2)
        self.head = nn.Linear(48, 3)
        self.double()
        with torch.no_grad():
            for layer, scale in ((self.stem, 1.0), (self.head, 0.4)):
                for p in layer.parameters():
                    p.copy_(scale * torch.randn(p.shape, generator=generator, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.norm(self.stem(x))).flatten(1))


def minibatches(sizes: Iterable[int] = (5, 5, 3), seed: int = 1) -> list[MiniBatch]:
    """Images away from the corners and on them, labels that the untrained model often gets right, rows
    counted on.
    """
    generator = torch.Generator().manual_seed(seed)
    teacher = Small(seed=0).eval()
    out: list[MiniBatch] = []
    begin = 0
    for n in sizes:
        x = (1.2 * torch.rand(n, 1, 4, 4, generator=generator, dtype=torch.float64) - 0.1).clamp(0, 1)
        with torch.no_grad():
            y = teacher(x).argmax(1)
        y[::3] = (y[::3] + 1) % 3
        out.append((x, y, torch.arange(begin, begin + n)))
        begin += n
    return out


def draws(purpose: str, step: int, like: Tensor, index: Tensor) -> Tensor:
    """Unit draws that depend on purpose, step and row alone."""
    kind = purpose.rsplit(":", 1)[1]
    out = []
    for row in index.tolist():
        generator = torch.Generator().manual_seed(zlib.crc32(f"{purpose} {step} {row}".encode()))
        if kind == "normal":
            out.append(torch.randn(like.shape[1:], generator=generator, dtype=torch.float64))
        else:
            u = torch.rand(like.shape[1:], generator=generator, dtype=torch.float64)
            out.append(u if kind == "uniform" else torch.where(u < 0.5, -1.0, 1.0))
    return torch.stack(out)


def flat(model: nn.Module) -> Tensor:
    """All parameters as one vector."""
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def trained(method: Callable[..., Any], *, norm: bool = False, **hyper: Any) -> Tensor:
    """The parameters after the method's three updates with momentum and weight decay (the last minibatch is
    short).
    """
    model = Small(norm)
    method(model, minibatches(), draws, **{"eps": EPS, "lr": 0.1, **hyper})
    return flat(model)


def gradient(method: Callable[..., Any], batch: MiniBatch, **hyper: Any) -> tuple[Tensor, dict[str, float]]:
    """The parameter gradient of one step, and its log: one update with lr 1, no momentum, no weight decay."""
    model = Small()
    before = flat(model)
    log = method(
        model, [batch], draws, **{"eps": EPS, "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0, **hyper}
    )
    return before - flat(model), log[0]
