"""A training of a second or less, shared by the tests of this folder."""

from __future__ import annotations

import signal
from pathlib import Path

import bivallate as bv
from bivallate.data import Dataset
from bivallate.run.config import Config, Model, Validation
from bivallate.run.execution import Run, execute
from bivallate.run.from_config import create_model
from bivallate.run.optim import SGD
from bivallate.run.progress import Progress

AT = bv.methods.at(bv.Linf(0.4), steps=2)


def plan(method: bv.Method = AT, epochs: int = 6, **changes) -> Config:
    """Tiny-CNN in ten minibatches an epoch."""
    basis = {"model": Model("tiny-cnn"), "optimizer": SGD(0.05), "validation": Validation(2, 143)}
    return Config(method=method, epochs=epochs, batch_size=32, **{**basis, **changes})


def run(config: Config, data: Dataset, out: Path | None = None, progress: Progress | None = None) -> Run:
    """The finished run."""
    return execute(config, data, create_model(config.model, data, 0), out, progress=progress)


class Radii(Progress):
    """Keeps the radius of every minibatch, and interrupts after so many."""

    def __init__(self, stop: int = -1) -> None:
        self.seen: list[float] = []
        self.stop = stop

    def step(self, session, record, lr):
        self.seen.append(session.method.threat.eps)
        if len(self.seen) == self.stop:
            signal.raise_signal(signal.SIGINT)
