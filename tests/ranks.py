"""Start a few processes that share each minibatch, for tests."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import torch
from torch import distributed as dist

Work = Callable[[int, Path], None]

# Ranks are forked from a process that has imported these and done nothing else: spawned they import for long.
PRELOADED = ["bivallate.run.training", "bivallate.run.resuming", "bivallate.cli", "pytest", "tests.ranks"]


def _joined(rank: int, world: int, work: Work, folder: Path) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder / 'meeting'}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    work(rank, folder)
    dist.barrier()  # none leaves while another still asks it for something
    dist.destroy_process_group()


def in_processes(world: int, work: Work, folder: Path) -> None:
    """Runs work(rank, folder), a function of a module, as every rank of one group; all must end well."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    (folder / "meeting").unlink(missing_ok=True)
    ranks = [context.Process(target=_joined, args=(rank, world, work, folder)) for rank in range(world)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(240)
    assert [process.exitcode for process in ranks] == [0] * world


def in_two_processes(work: Work, folder: Path) -> None:
    """The same with two ranks."""
    in_processes(2, work, folder)
