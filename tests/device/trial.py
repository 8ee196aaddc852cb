"""Steps of a method on a tiny network on any device, for the tests of the stand-in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import bivallate as bv
from bivallate.method import Method, facts_for
from bivallate.methods.entries import create, registry
from bivallate.models import Classifier
from bivallate.step import train_step
from bivallate.types import Batch, Clock, StepRecord

ROWS = 8


class Trial:
    """A network and a method on one minibatch."""

    def __init__(self, model: Classifier, method: Method, batch: Batch) -> None:
        self.batch, self.model = batch, model.to(batch.x.device, batch.x.dtype).train()
        self.method = method.bind(facts_for(self.model, batch.x, model.num_classes))
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.05, momentum=0.9)
        self.steps = 0

    def step(self) -> StepRecord:
        """All replays of the minibatch, late in training, when every weighting has begun."""
        *_, record = self.replays()
        self.steps += 1
        return record

    def replays(self) -> Iterator[StepRecord]:
        """The record of each replay."""
        for replay in range(self.method.replays):
            clock = Clock(epoch=3, epochs=4, step=self.steps, steps=10, replay=replay)
            yield train_step(self.model, self.optimizer, self.method, self.batch, clock)

    def parameters(self) -> list[Tensor]:
        """Of the network, on the processor."""
        return [p.detach().cpu() for p in self.model.parameters()]


def tiny(
    name: str,
    device: str,
    dtype: torch.dtype = torch.float64,
    network: str = "small-cnn",
    **parameters: Any,
) -> Trial:
    """A method on a tiny network with BatchNorm, in float64, on random images."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(ROWS, 1, 8, 8, generator=generator, dtype=dtype).to(device)
    y, index = (torch.arange(ROWS) % 3).to(device), torch.arange(ROWS).to(device)
    batch = Batch(x, y, index, meta=Batch(x[:4], y[:4], index[:4]), population=ROWS)
    narrow = {} if network == "tiny-cnn" else {"width": 0.0625}
    model = bv.models.create(network, num_classes=3, shape=(1, 8, 8), seed=0, **narrow)
    plain = name.removesuffix("-l2").removesuffix("-l1")
    known = registry()[plain].parameters
    few = {name: 2 for name in ("steps", "replays", "m") if (known.get(name) or 0) > 2}
    ball = {"-l2": bv.L2(0.5), "-l1": bv.L1(2.0)}.get(name.removeprefix(plain), bv.Linf(0.1))
    return Trial(
        model, create(plain, ball, **{**registry()[plain].example(ball), **few, **parameters}), batch
    )


def stepped(name: str, device: str) -> tuple[list[Any], StepRecord, dict[str, int]]:
    """Parameters after two steps, as arrays, the record of the second, and what it waited for.

    The first pass of a network in each mode is looked at, once and for all; that does not count.
    """
    from tests.device import standin

    trial = tiny(name, device)
    trial.step()
    standin.log.syncs.clear()
    record = trial.step()
    waits = {place: n for place, n in standin.log.syncs.items() if "input_guard" not in place}
    return [p.numpy() for p in trial.parameters()], record, waits


def counted(name: str, parameters: dict[str, Any]) -> tuple[dict[str, int], int, int]:
    """What one step on the stand-in waits for, by place; how many kernels it launches; how many replays."""
    from tests.device import standin

    trial = tiny(name, "cuda", torch.float32, **parameters)
    trial.step()
    for counter in vars(standin.log).values():
        counter.clear()
    trial.step()
    waits: Counter[str] = standin.log.syncs
    return dict(waits), sum(standin.log.ops.values()), trial.method.replays
