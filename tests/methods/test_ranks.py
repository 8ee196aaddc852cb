"""Weights that depend on the whole minibatch do so when it is split over processes."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tests.methods.glue import CLASSES, EPS, SHAPE, Net, minibatches
from torch import Tensor, nn
from torch import multiprocessing as mp

import bivallate as bv
from bivallate import Linf, UserError, methods
from bivallate.types import Batch, Clock, Facts

THREAT = Linf(EPS)
METHODS = {
    "second-order": methods.bilaw(THREAT, steps=2, second_order=True),
    "bilaw": methods.bilaw(THREAT, steps=2),
    "bilaw-trades": methods.bilaw_trades(THREAT, steps=2),
    "non-parametric": methods.non_parametric(THREAT, steps=2),
    "at-awp": methods.at_awp(THREAT, steps=2),
    "mail-at": methods.mail_at(THREAT, steps=2, burn_in=0.0),
    "gairat": methods.gairat(THREAT, steps=2, burn_in=0.0),
    "wmmr": methods.wmmr(THREAT, steps=2).but(weighting__normalised=True),
}


def trained(name: str, rank: int, world: int) -> Tensor:
    """The network's and the weighting's parameters after three steps on this rank's share of the rows."""
    net, bound = Net(norm=False).train(), METHODS[name].bind(Facts(20, SHAPE, CLASSES, dtype=torch.float64))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    meta = minibatches((5, 5, 4), seed=7)
    for t, (rows, second) in enumerate(zip(minibatches(), meta, strict=True)):
        mine, theirs = ([part[rank::world] for part in b] for b in (rows, second))
        bv.train_step(net, optimizer, bound, Batch(*mine, meta=Batch(*theirs)), Clock(0, 1, t, 3))
    memories = [net, bound.weighting] if isinstance(bound.weighting, nn.Module) else [net]
    return torch.cat([p.detach().flatten() for m in memories for p in m.parameters()])


def work(rank: int, port: int, out: str) -> None:
    """One of two processes."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    ends = {name: trained(name, rank, 2) for name in METHODS if name != "second-order"}
    with pytest.raises(UserError, match="one process"):
        trained("second-order", rank, 2)
    if rank == 0:
        torch.save(ends, out)
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    out = tmp_path / "ends.pt"
    mp.spawn(work, (port, str(out)), nprocs=2)  # pyright: ignore
    ends = torch.load(out, weights_only=True)
    for name, end in ends.items():
        assert (trained(name, 0, 1) - end).abs().max() < 1e-13, name
