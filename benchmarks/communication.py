"""Measure what sharing a training step over processes costs: wall and processor time, and in collectives.

    PYTHONPATH=src python -m benchmarks.communication [--steps 5] [--rows 64] [--networks tiny-cnn ...]

AT with ten attack steps on random images of 32 x 32, the same minibatches for any number of processes, on
gloo and one thread a process. `waiting` is the wall time that the first process spends in all-reduces: it
waits there for slower processes too. `the sum alone` is the time of an all-reduce of as many numbers when all
processes enter it at once. Processor time is summed over the processes; more processes than free cores
share them, so that their wall time says nothing of a machine that has enough.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import bivallate as bv
from bivallate.method import facts_for
from bivallate.types import Batch, Clock

NETWORKS = {"tiny-cnn": {}, "preact-resnet18": {"width": 0.25}}
PROCESSES = (1, 2, 4)


@contextmanager
def waiting() -> Iterator[list[float]]:
    """The seconds of each all-reduce within: of the call, and of the wait for one that was only begun."""
    seconds, reduce = list[float](), dist.all_reduce

    def timed(call: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        found = call()
        seconds.append(time.perf_counter() - began)
        return found

    class Begun:
        def __init__(self, work: Any) -> None:
            self.work = work

        def wait(self) -> None:
            timed(self.work.wait)

    def all_reduce(value: Tensor, *given: Any, **options: Any) -> Any:
        found = timed(lambda: reduce(value, *given, **options))
        return Begun(found) if options.get("async_op") else found

    dist.all_reduce = all_reduce
    try:
        yield seconds
    finally:
        dist.all_reduce = reduce


def measured(network: str, rank: int, world: int, rows: int, steps: int) -> dict[str, list[float]]:
    """Of each step after the first: wall and processor seconds, those in all-reduces, and of a sum alone."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(rows, 3, 32, 32, generator=generator), torch.arange(rows) % 10
    mine = torch.arange(rows)[rank::world]
    batch = Batch(x[mine], y[mine], mine, whole=rows)
    model = bv.models.create(network, num_classes=10, shape=(3, 32, 32), seed=0, **NETWORKS[network]).train()
    method = bv.methods.at(bv.Linf(8 / 255)).bind(facts_for(model, x, 10))
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    numbers = torch.zeros(sum(p.numel() for p in model.parameters()))
    found: dict[str, list[float]] = {name: [] for name in ("wall", "processor", "waiting", "sum")}
    for step in range(steps + 1):
        with waiting() as seconds:
            wall, processor = time.perf_counter(), time.process_time()
            bv.train_step(model, optimizer, method, batch, Clock(step=step, steps=steps + 1))
            taken = time.perf_counter() - wall, time.process_time() - processor, sum(seconds)
        alone = 0.0
        if world > 1:
            dist.barrier()
            began = time.perf_counter()
            dist.all_reduce(numbers)
            alone = time.perf_counter() - began
        for name, value in zip(found, (*taken, alone), strict=True):
            if step:
                found[name].append(value)
    return found


def joined(rank: int, world: int, folder: Path, networks: Sequence[str], rows: int, steps: int) -> None:
    """Run one of the processes."""
    if world > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=world
        )
    found = {network: measured(network, rank, world, rows, steps) for network in networks}
    (folder / f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()


def together(world: int, networks: Sequence[str], rows: int, steps: int) -> list[dict[str, Any]]:
    """What each of so many processes has measured."""
    with tempfile.TemporaryDirectory() as place:
        folder, context = Path(place), multiprocessing.get_context("spawn")
        given = (world, folder, networks, rows, steps)
        ranks = [context.Process(target=joined, args=(rank, *given)) for rank in range(world)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(world)]


def main() -> None:
    """Print a table of medians over the steps."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rows", type=int, default=64, help="of the minibatch of all processes")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--processes", nargs="+", type=int, default=PROCESSES)
    asked = parser.parse_args()
    print("| network | processes | a step | waiting | the sum alone | processor seconds, all | of one's |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    one: dict[str, float] = {}
    for world in asked.processes:
        every = together(world, asked.networks, asked.rows, asked.steps)
        for network in asked.networks:
            first = {name: statistics.median(values) for name, values in every[0][network].items()}
            spent = sum(statistics.median(rank[network]["processor"]) for rank in every)
            share = f"{spent / one.setdefault(network, spent):.2f}"
            times = (f"{1000 * first[name]:.1f} ms" for name in ("wall", "waiting", "sum"))
            print(f"| {network} | {world} | {' | '.join(times)} | {spent:.3f} | {share} |", flush=True)


if __name__ == "__main__":
    main()
