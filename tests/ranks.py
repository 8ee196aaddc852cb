"""Two processes that share each minibatch, for tests."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import torch
from torch import distributed as dist

Work = Callable[[int, Path], None]


def _joined(rank: int, work: Work, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    work(rank, folder)
    dist.barrier()  # none leaves while another still asks it for something
    dist.destroy_process_group()


def in_two_processes(work: Work, folder: Path) -> None:
    """Runs work(rank, folder), a function of a module, as rank 0 and 1 of one group; both must end well."""
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=_joined, args=(rank, work, folder)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(240)
    assert [process.exitcode for process in ranks] == [0, 0]
