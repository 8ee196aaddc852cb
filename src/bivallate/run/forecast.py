"""A forecast of a training's time, passes and memory, measured on a few minibatches."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from statistics import median

import torch
from torch import nn

from bivallate.data import Dataset
from bivallate.evaluation.progress_display import duration
from bivallate.run.arithmetic import computing
from bivallate.run.config import Config
from bivallate.run.memory_layout import trial_session
from bivallate.step import train_step

__all__ = ["Forecast", "forecast"]

STEPS = 4  # minibatches to measure; the time of the first is not used
ENOUGH = 10.0  # seconds after which two minibatches do


@dataclass(frozen=True)
class Forecast:
    """The estimated cost of a training.

    Methods that adapt their attack to the model may take more or less later in training.

    Attributes:
        forward, backward: passes per training image over the whole training, with held-out measurements.
        seconds: duration of the whole training.
        memory: highest use of memory in bytes, of the process or of the CUDA device.
    """

    forward: float
    backward: float
    seconds: float
    memory: int

    def __str__(self) -> str:
        passes = f"{self.forward:.4g} forward and {self.backward:.4g} backward passes per image"
        return f"about {duration(self.seconds)}, {passes}, {self.memory / 2**30:.1f} GiB of memory"


def forecast(config: Config, dataset: Dataset, model: nn.Module) -> Forecast:
    """Measure a few training steps with learning rate 0 at the full radius. Do not use the model after it."""
    session = trial_session(config, dataset, model)
    if session.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds, forward, backward, images = list[float](), 0, 0, 0
    for batch in session.batches.epoch(0, 0):
        began = time.perf_counter()
        for replay in range(session.method.replays):
            clock = session.clock(replay)
            with computing(config.precision, config.deterministic, session.device):
                record = train_step(session.model, session.optimizer, session.method, batch, clock)
            forward, backward = forward + record.passes.forward, backward + record.passes.backward
        images += len(batch.y)
        if session.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
        if len(seconds) == STEPS or (len(seconds) > 1 and sum(seconds) > ENOUGH):
            break
    held = 0 if dataset.validation is None else min(config.validation.rows, len(dataset.validation))
    rows, steps = len(session.batches.split), config.validation.steps
    ahead = config.epochs * (forward / images + held * (steps + 2) / rows)
    back = config.epochs * (backward / images + held * steps / rows)
    pace = median(seconds[1:] or seconds) * len(seconds) / (forward + backward)
    return Forecast(ahead, back, pace * rows * (ahead + back), _peak(session.device))


def _peak(device: torch.device) -> int:
    """The highest use of memory so far, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows
        return 0
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else 1024 * used
