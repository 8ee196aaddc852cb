"""A training as a script for torchrun: the second process kills itself in the first attempt.

torchrun --max-restarts=1 ... -m tests.run.torchrun_script FOLDER
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import torch
from torch import nn

import bivallate as bv
from bivallate.run import trainer
from bivallate.step import train_step


def network() -> nn.Module:
    """With BatchNorm, whose statistics are each process's own within an epoch."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))


def digits() -> bv.data.Dataset:
    """74 rows to train on: four minibatches of 16 and one of 10."""
    data = bv.data.load("digits")
    return data.but(train=data.train.subset(slice(0, 74)), validation=data.train.subset(slice(200, 220)))


def train(folder: str) -> None:
    """Two epochs, saved after each minibatch."""
    bv.train(
        network(),
        digits(),
        bv.methods.at(bv.Linf(0.1), steps=2, attack_mode="train"),
        out=folder,
        resume_if_there=True,
        epochs=2,
        batch_size=16,
        threads=1,
        checkpoint_minutes=1e-9,
    )


def _step(model: Any, optimizer: Any, method: Any, batch: Any, clock: Any, summands: Any) -> Any:
    if (clock.epoch, clock.step) == (1, 2):
        os.kill(os.getpid(), signal.SIGKILL)
    return train_step(model, optimizer, method, batch, clock, summands)


if __name__ == "__main__":
    if (os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]) == ("1", "0"):
        trainer.train_step = _step
    train(sys.argv[1])
