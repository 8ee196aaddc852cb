"""Test whether data loading can be a bottleneck: start of CIFAR-10, and minibatches a second.

Loading and training are measured in turns in one process, so that other work on the machine affects both
alike. As it also lengthens wall time, processor time is printed too.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

import bivallate as bv
from bivallate import Linf, methods, models
from bivallate.data import Batches, Dataset, registry
from bivallate.errors import UserError
from bivallate.method import facts_for
from bivallate.types import Batch, Clock

FIRST, LATER, RATIO = 60.0, 2.0, 10.0  # seconds, seconds, plain steps that one minibatch may take a tenth of
BATCH, LOADS, STEPS, ROUNDS = 128, 16, 4, 15
START = """
import time
clocks = time.perf_counter, time.process_time
began = [clock() for clock in clocks]
from bivallate import data
imported = [clock() for clock in clocks]
data.load("cifar10")
print(*(clock() - then for clock, then in zip(clocks, imported)))
print(*(now - then for now, then in zip(imported, began)))
"""


@dataclass(frozen=True)
class Took:
    """Seconds of the wall clock and of all processors together."""

    wall: float
    processor: float


def start() -> tuple[Took, Took]:
    """Time (loading, imports) of CIFAR-10 in a separate process, with the cache of the environment."""
    done = subprocess.run([sys.executable, "-c", START], capture_output=True, text=True, check=True)
    loading, imports = (Took(*map(float, line.split())) for line in done.stdout.splitlines())
    return loading, imports


def decoding() -> bool:
    """Print the time of the first start, which decodes, and of later ones; whether both targets are met."""
    kept = os.environ.get("BIVALLATE_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["BIVALLATE_CACHE"] = folder
        try:
            (first, _), later = start(), [start() for _ in range(3)]
        finally:
            os.environ.pop("BIVALLATE_CACHE")
            if kept is not None:
                os.environ["BIVALLATE_CACHE"] = kept
    met = _report("first start on CIFAR-10, decoding", first, FIRST)
    met &= _report("later start", _median([loading for loading, _ in later]), LATER)
    imports = _median([imports for _, imports in later])
    print(f"{'before either, imports':<34}{imports.wall:>7.2f} s wall{imports.processor:>7.2f} s processor")
    return met


def _median(times: list[Took]) -> Took:
    wall, processor = (statistics.median(getattr(t, name) for t in times) for name in ("wall", "processor"))
    return Took(wall, processor)


def _report(what: str, took: Took, limit: float) -> bool:
    """Print one line; on a busy machine the processor time, as if on one processor, decides."""
    busy = os.getloadavg()[0] > (os.cpu_count() or 1)
    met = took.wall <= limit or (busy and took.processor <= limit)
    note = f", machine busy (load {os.getloadavg()[0]:.0f})" if busy else ""
    verdict = "" if met else "   MISSED"
    print(
        f"{what:<34}{took.wall:>7.2f} s wall{took.processor:>7.2f} s processor{note}, "
        f"target {limit:g} s{verdict}"
    )
    return met


def loader(dataset: Dataset) -> Callable[[], None]:
    """Take the next augmented minibatches, epoch after epoch."""
    batches = Batches(dataset.train, BATCH, 0, dataset.augment)

    def forever() -> Iterator[Batch]:
        epoch = 0
        while True:
            yield from batches.epoch(epoch)
            epoch += 1

    stream = forever()

    def run() -> None:
        for _ in range(LOADS):
            next(stream)

    return run


def trainer(dataset: Dataset) -> Callable[[], None]:
    """Make plain training steps of tiny-cnn on one minibatch."""
    classes, shape, mean, std = len(dataset.classes), dataset.shape, dataset.mean, dataset.std
    model = models.create("tiny-cnn", num_classes=classes, shape=shape, mean=mean, std=std, seed=0).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9, weight_decay=5e-4)
    batch = next(iter(Batches(dataset.train, BATCH, 0, dataset.augment).epoch(0)))
    method = methods.plain(Linf(8 / 255)).bind(facts_for(model, batch.x, classes))

    def run() -> None:
        for _ in range(STEPS):
            bv.train_step(model, optimizer, method, batch, Clock())

    return run


def feeding(dataset: Dataset, threads: int) -> bool:
    """Print minibatches and plain steps a second; returns whether the loader is fast enough."""
    torch.set_num_threads(threads)
    load, train = loader(dataset), trainer(dataset)
    for warm in (load, train):
        warm()
    loads, steps = [], []
    for _ in range(ROUNDS):
        loads.append(_seconds(load) / LOADS)
        steps.append(_seconds(train) / STEPS)
    ratio = statistics.median(steps) / statistics.median(loads)
    least = min(steps) / min(loads)  # of the least disturbed rounds
    met = max(ratio, least) >= RATIO
    print(
        f"{threads} thread{'s' if threads > 1 else ' '}: {1 / statistics.median(loads):>5.0f} augmented "
        f"minibatches of {BATCH} a second, {1 / statistics.median(steps):.1f} plain tiny-cnn steps: "
        f"ratio {ratio:.1f} of medians, {least:.1f} of minima, target {RATIO:g}{'' if met else '   MISSED'}"
    )
    return met


def _seconds(run: Callable[[], None]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def main() -> bool:
    """Print all; returns whether every target was met, or True if CIFAR-10 is missing."""
    try:
        place = registry.folder_of(registry.by_name_or_raise("cifar10"), None)
    except UserError as error:
        print(f"skipped: {error}")
        return True
    if place is None or not any(Path(place).glob("*train*.parquet")):
        print("skipped: no CIFAR-10 training data in BIVALLATE_DATA")
        return True
    met = decoding()
    threads = torch.get_num_threads()
    dataset = bv.data.load("cifar10")
    try:
        met &= feeding(dataset, 1)
        return feeding(dataset, 2) and met
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    raise SystemExit(0 if main() else 1)
