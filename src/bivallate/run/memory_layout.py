"""Measure in which memory layout of the convolutions a run's training steps are faster."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from time import perf_counter

import torch
from torch import nn

from bivallate import collective
from bivallate.data import Dataset
from bivallate.lower.modes import set_train_mode
from bivallate.run.arithmetic import computing
from bivallate.run.config import Config
from bivallate.run.packing import generators, restore_generators
from bivallate.run.session import Session
from bivallate.step import train_step
from bivallate.types import Batch

__all__ = ["channels_last_is_faster", "resolved_layout", "step_seconds", "trial_session", "whole_step"]

STEPS = 3  # minibatches to time in both layouts; the best time counts, so a slow first one does no harm
SECONDS = 10.0  # no further minibatch is timed after so long
GAIN = 0.97  # channels last must take less than this fraction of the usual layout's time


def resolved_layout(
    config: Config, dataset: Dataset, model: nn.Module, tell: Callable[[str], object]
) -> Config:
    """Replace `channels_last="auto"` by true or false, and tell why.

    A few training steps of the run's method are timed on its first minibatches, with learning rate 0 and on
    copies of the model. The model, its buffers, the random generators and the order of the data stay as they
    are, so the run equals, bit for bit, one whose configuration names the layout. All ranks take the first
    rank's choice.
    """
    if config.channels_last != "auto":
        return config
    if not any(p.dim() == 4 for p in model.parameters()):
        tell("channels_last = false: the network has no convolutions")
        return dataclasses.replace(config, channels_last=False)
    try:
        times = step_seconds(config, dataset, model)
    except Exception as error:  # training meets the same error and reports it
        if collective.is_distributed():
            raise
        tell(f"channels_last = false: it could not be measured ({type(error).__name__}: {error})")
        return dataclasses.replace(config, channels_last=False)
    usual, last = (min(times[layout]) for layout in (False, True))
    chosen = collective.gather_objects(channels_last_is_faster(times[False], times[True]))[0]
    seconds = f"a step took {last:.3g} s channels last and {usual:.3g} s as usual"
    if collective.rank() == 0:
        tell(f"channels_last = {str(chosen).lower()}: {seconds}")
    return dataclasses.replace(config, channels_last=chosen)


def channels_last_is_faster(usual: Sequence[float], last: Sequence[float]) -> bool:
    """Whether channels last is clearly faster by the best times, which disturbances affect least.

    Example:
        >>> channels_last_is_faster([3.0, 1.0], [2.0, 0.8]), channels_last_is_faster([1.0], [0.99])
        (True, False)
    """
    return min(last) < GAIN * min(usual)


def step_seconds(config: Config, dataset: Dataset, model: nn.Module) -> dict[bool, list[float]]:
    """Time training steps in both layouts (channels last -> seconds); leave model and generators alone."""
    before, spent = generators(), 0.0
    times: dict[bool, list[float]] = {False: [], True: []}
    try:
        here = {last: dataclasses.replace(config, channels_last=last) for last in times}
        sessions = {last: trial_session(here[last], dataset, copy.deepcopy(model)) for last in times}
        for batch in _first(sessions[False]):
            for last, session in sessions.items():
                began = perf_counter()
                with computing(config.precision, config.deterministic, session.device):
                    whole_step(session, batch)
                times[last].append(perf_counter() - began)
                spent += times[last][-1]
            if collective.any_rank(spent > SECONDS):
                break
    finally:
        restore_generators(before)
    return times


def trial_session(config: Config, dataset: Dataset, model: nn.Module) -> Session:
    """Make a session with learning rate 0, for timing steps. Do not use the model afterwards."""
    session = Session(config, dataset, model)
    set_train_mode(session.model)
    for group in session.optimizer.param_groups:
        group["lr"] = 0.0
    return session


def _first(session: Session) -> Iterator[Batch]:
    """The first minibatches; processes that decode images are ended after them."""
    with closing(session.batches.epoch(0, 0)) as batches:  # pyright: ignore[reportArgumentType]
        yield from islice(batches, STEPS)


def whole_step(session: Session, batch: Batch) -> None:
    """Make all replays of one minibatch, and wait for the device to finish."""
    for replay in range(session.method.replays):
        train_step(session.model, session.optimizer, session.method, batch, session.clock(replay))
    if session.device.type == "cuda":
        torch.cuda.synchronize(session.device)
    elif session.device.type == "mps":
        torch.mps.synchronize()
