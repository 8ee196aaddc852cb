"""Trains one copy of a model with the package and another with a straight-line reference, and compares them.

A reference is `reference(model, batches, draws, *, eps, lr, momentum, weight_decay, **hyper)`, see
`tests/reference/plainsgd.py`. Nothing here knows any method: what differs goes through arguments.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tests.reference.plainsgd import Draws, MiniBatch, Rate, at
from torch import Tensor, nn

import bivallate as bv
from bivallate.lower.objective import cross_entropy
from bivallate.lower.problem import LowerProblem
from bivallate.lower.threat import L2, Linf
from bivallate.method import BoundMethod, Method
from bivallate.noise import Noise
from bivallate.types import Batch, Clock, Facts, StepRecord

EPS = 8 / 255
THREAT = Linf(EPS)
CLASSES = 3
SHAPE = (1, 6, 6)
Epochs = int | Sequence[int]


class Net(nn.Module):
    """Two convolutions with BatchNorm and a smooth activation, a linear layer; float64.

    Its first layer is `stem`. The statistics begin away from 0 and 1, so that eval and train mode differ.
    """

    def __init__(self, norm: bool = True, seed: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.stem = nn.Conv2d(SHAPE[0], 4, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(4) if norm else nn.Identity()
        self.conv = nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.norm2 = nn.BatchNorm2d(4) if norm else nn.Identity()
        self.act, self.drop = nn.Softplus(beta=2), nn.Dropout(dropout)
        self.head = nn.Linear(36, CLASSES)
        self.double()
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.copy_(0.5 * noise + (1 if name.startswith("norm") and "weight" in name else 0))
            for name, buffer in self.named_buffers():
                if buffer.is_floating_point():
                    noise = torch.rand(buffer.shape, generator=generator, dtype=torch.float64)
                    buffer.add_(0.2 * noise if "mean" in name else noise)

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.norm1(self.stem(x)))
        h = self.act(self.norm2(self.conv(h)))
        return self.head(self.drop(h).flatten(1))


def minibatches(sizes: Sequence[int] = (6, 6, 3), seed: int = 1) -> list[MiniBatch]:
    """(x, y, index) triples in float64: some pixels at 0 and 1, rows in no order, the last one short."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(sum(sizes), generator=generator).split(list(sizes))
    out = []
    for index in rows:
        x = 1.2 * torch.rand(len(index), *SHAPE, generator=generator, dtype=torch.float64) - 0.1
        y = torch.randint(0, CLASSES, (len(index),), generator=generator)
        out.append((x.clamp(0, 1), y, index))
    return out


def draws(seed: int = 0, epoch: Epochs = 0, rename: dict[str, str] | None = None, turn: int = 0) -> Draws:
    """The package's noise in the references' convention `draws(purpose, step, like, index)`.

    Args:
        seed: of the run.
        epoch: of every minibatch, or one entry per `step`. (The package's draws know the epoch and the row,
            not the minibatch.)
        rename: reference's purpose without its kind -> package's purpose; the same name where it is missing.
        turn: replay, restart or cycle of a second stream.
    """
    names = rename or {}

    def draw(purpose: str, step: int, like: Tensor, index: Tensor) -> Tensor:
        name, kind = purpose.rsplit(":", 1)
        now = epoch if isinstance(epoch, int) else epoch[step]
        noise = Noise(seed, index, now, turn)
        made = {"uniform": noise.uniform, "normal": noise.normal, "sign": noise.sign}[kind]
        return made(names.get(name, name), tuple(like.shape[1:]), torch.float64)

    return draw


def asked(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    index: Tensor | None = None,
    eps: float = EPS,
    clock: Clock | None = None,
) -> LowerProblem:
    """The problem that a loss is asked about: `loss(asked(model, x, y), x_adv)`."""
    batch = Batch(x, y, torch.arange(len(y)) if index is None else index)
    return LowerProblem(model, batch, cross_entropy, Linf(eps), clock)


@dataclass
class Trained:
    """What `train` leaves: the model, a record for each call of the step, and the method with its memory."""

    model: nn.Module
    records: list[StepRecord]
    bound: BoundMethod


def train(
    model: nn.Module,
    method: Method,
    batches: Sequence[MiniBatch | Batch],
    *,
    lr: Rate = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    seed: int = 0,
    epoch: Epochs = 0,
    epochs: int = 1,
    facts: Facts | None = None,
) -> Trained:
    """Trains the model in place with `bv.train_step`, replays included.

    lr: one number, or one per update (minibatch times replays plus replay, or per minibatch where the replays
    accumulate). epoch: of every minibatch, or one entry per minibatch.
    """
    ready = [b if isinstance(b, Batch) else Batch(*b) for b in batches]
    first = ready[0].x
    shape = (int(first.shape[1]), int(first.shape[2]), int(first.shape[3]))
    rows = 1 + max(int(b.index.max()) for b in ready)
    bound = method.bind(facts or Facts(rows, shape, CLASSES, first.device, first.dtype, 0, len(ready)))
    optimizer = torch.optim.SGD(
        model.parameters(), lr=at(lr, 0), momentum=momentum, weight_decay=weight_decay
    )
    model.train()
    records, update = [], 0
    for t, batch in enumerate(ready):
        now = epoch if isinstance(epoch, int) else epoch[t]
        for replay in range(method.replays):
            optimizer.param_groups[0]["lr"] = at(lr, update)
            clock = Clock(now, epochs, t, len(ready), replay, seed)
            records.append(bv.train_step(model, optimizer, bound, batch, clock))
            update += not method.accumulate or replay == method.replays - 1
    return Trained(model, records, bound)


def gap(a: nn.Module, b: nn.Module) -> float:
    """The largest absolute difference over all parameters and buffers."""
    one, two = a.state_dict(), b.state_dict()
    assert one.keys() == two.keys()
    return max(float((one[k].double() - two[k].double()).abs().max()) for k in one)


def agree(
    method: Method,
    reference: Callable[..., Any],
    *,
    model: nn.Module | None = None,
    batches: Sequence[MiniBatch] | None = None,
    lr: Rate = 0.1,
    seed: int = 0,
    epoch: Epochs = 0,
    epochs: int = 1,
    rename: dict[str, str] | None = None,
    facts: Facts | None = None,
    tolerance: float = 1e-10,
    **hyper: Any,
) -> Trained:
    """Asserts that package and reference end with the same parameters and buffers after three momentum
    updates.

    hyper: the reference's own arguments; eps is the threat's. Returns what the package's run left.
    """
    model = model if model is not None else Net()
    batches = batches if batches is not None else minibatches()
    before, theirs = copy.deepcopy(model), copy.deepcopy(model).train()
    mine = train(
        copy.deepcopy(model), method, batches, lr=lr, seed=seed, epoch=epoch, epochs=epochs, facts=facts
    )
    reference(theirs, batches, draws(seed, epoch, rename), **{"eps": method.threat.eps, "lr": lr, **hyper})
    assert gap(mine.model, before) > 1e-3, "nothing was learned, so nothing is compared"
    distance = gap(mine.model, theirs)
    assert distance <= tolerance, f"package and reference differ by {distance:.3g}"
    return mine


def problem_of(model: nn.Module, threat: Linf | L2 = THREAT, size: int = 12, epoch: int = 0) -> LowerProblem:
    x, y, index = minibatches((size,))[0]
    clock = Clock(epoch=epoch, epochs=12)
    return LowerProblem(model, Batch(x, y, index), cross_entropy, threat, clock)


def facts(rows: int = 12) -> Facts:
    return Facts(rows, (1, 6, 6), 3, torch.device("cpu"), torch.float64)
