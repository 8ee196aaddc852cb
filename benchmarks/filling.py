"""Find how many trainings at once fill one device, by a short probe."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from bivallate.data import Dataset
from bivallate.data.workers import end_with_parent
from bivallate.files import write_json
from bivallate.models import Classifier
from bivallate.reproduce.cell import configure
from bivallate.reproduce.machine import machine
from bivallate.reproduce.running import Job, cut
from bivallate.run.arithmetic import limit_threads
from bivallate.run.config import Config
from bivallate.run.from_config import create_model, load_data
from bivallate.run.memory_layout import trial_session, whole_step
from bivallate.run.resuming import computable
from bivallate.run.session import Session
from bivallate.types import Batch

SIZES = (1, 2, 3, 4)
SECONDS = 3.0  # time of each measurement, after a warm-up
ENOUGH = 0.95  # the smallest number of trainings that reaches this share of the best throughput is chosen
ROOM = 0.75  # share of the device's memory that trainings may take; evaluations need a little more
CONTEXT = 700 << 20  # bytes of device memory that a process takes besides its tensors


@dataclass(frozen=True)
class Throughput:
    """The throughput of several trainings at once.

    Attributes:
        images: a second, of all together. memory: largest number of bytes of tensors in one of them.
    """

    images: float
    memory: int = 0


def at_once(seen: Mapping[int, Throughput], memory: int) -> int:
    """The fewest trainings whose joint throughput reaches 95 % of the best, of those that fit together.

    Args:
        seen: number of trainings -> their throughput. memory: of the device, in bytes; 0 if unknown.

    Example:
        >>> at_once({1: Throughput(100.0), 2: Throughput(150.0), 4: Throughput(155.0)}, memory=0)
        2
    """
    fit = {k: s for k, s in seen.items() if not memory or k * (s.memory + CONTEXT) <= ROOM * memory}
    best = max((s.images for s in fit.values()), default=0.0)
    return min((k for k, s in fit.items() if s.images >= ENOUGH * best > 0), default=1)


def filled(job: Job, kept: Path, say: Callable[[str], object], sizes: Sequence[int] = SIZES) -> int:
    """How many trainings to run at once: by a probe of the job's training, kept for the machine that it was
    made on."""
    here = machine(job.device, 1) | {"cell": job.cell.name, "scale": job.scale}
    seen = _known(kept, here)
    if seen is None:
        seen = probe(job, [k for k in sizes if k <= (os.cpu_count() or 1)])
        write_json(kept, {"machine": here, "seen": {k: asdict(s) for k, s in seen.items()}})
    size = at_once(seen, _memory(here["device"]))
    told = ", ".join(f"{k}: {s.images:.0f}" for k, s in seen.items())
    say(f"{size} trainings at once (images a second by their number: {told})")
    return size


def _known(kept: Path, here: dict[str, Any]) -> dict[int, Throughput] | None:
    try:
        entry = json.loads(kept.read_text(encoding="utf-8"))
        return (
            {int(k): Throughput(**s) for k, s in entry["seen"].items()} if entry["machine"] == here else None
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _memory(device: str) -> int:
    return torch.cuda.mem_get_info()[1] if device == "cuda" else 0


def probe(job: Job, sizes: Sequence[int], seconds: float = SECONDS) -> dict[int, Throughput]:
    """Throughput by number of processes that train the job at once; ends at a number that fails (no
    memory)."""
    context = multiprocessing.get_context("spawn")
    pipes: list[Connection] = []
    processes: list[Any] = []
    found: dict[int, Throughput] = {}
    try:
        for _ in range(max(sizes, default=0)):
            mine, theirs = context.Pipe()
            processes.append(context.Process(target=_serve, args=(theirs, job), daemon=True))
            processes[-1].start()
            theirs.close()
            pipes.append(mine)
        ready = [_heard(pipe) for pipe in pipes]
        for size in sorted(sizes):
            if None in ready[:size]:
                break
            for pipe in pipes[:size]:
                pipe.send(seconds)
            told = [_heard(pipe) for pipe in pipes[:size]]
            if None in told:
                break
            found[size] = Throughput(sum(images for images, _ in told), max(memory for _, memory in told))
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()
    return found


def _heard(pipe: Connection) -> Any:
    """The next answer of a process; None if it failed."""
    try:
        return pipe.recv()
    except (EOFError, ConnectionError):
        return None


def _serve(pipe: Connection, job: Job) -> None:
    """Prepare a trial in a process, and time it whenever asked."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    limit_threads(job.threads)
    session = ready_for(job)
    batches = endless(session)
    pace(session, batches, 0.0)
    pipe.send((0.0, 0))
    while True:
        pipe.send(pace(session, batches, pipe.recv()))


def ready_for(job: Job) -> Session:
    """Prepare a job's training so that it writes nothing."""
    return trial_session(*made_of(job))


def made_of(job: Job) -> tuple[Config, Dataset, Classifier]:
    """What a session of a job's training is made of."""
    config = computable(configure(job.cell, job.seed, job.device, job.threads))
    dataset = cut(load_data(config.data, job.seed), job.cell.rows)
    return config, dataset, create_model(config.model, dataset, job.seed)


def endless(session: Session) -> Iterator[Batch]:
    """Yield minibatches, epoch after epoch."""
    for epoch in count():
        yield from session.batches.epoch(epoch)


def pace(session: Session, batches: Iterator[Batch], seconds: float) -> tuple[float, int]:
    """Images a second over at least the given seconds and one step, and the peak bytes of the device."""
    begun, images = time.perf_counter(), 0
    while True:
        batch = next(batches)
        whole_step(session, batch)
        images += len(batch.y)
        took = time.perf_counter() - begun
        if took >= seconds:
            break
    used = torch.cuda.max_memory_reserved() if session.device.type == "cuda" else 0
    return images / took, used
