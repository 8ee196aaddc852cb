"""With sync_batchnorm two processes make the steps of one, for every method of the catalogue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.methods.test_contract import NAMES, Small, facts, last_epoch, minibatch, sgd, small
from tests.ranks import in_two_processes
from torch import Tensor, nn

import bivallate as bv
from bivallate import UserError
from bivallate.coupling.barrier import Barrier, Implicit
from bivallate.coupling.last_step import LastStep
from bivallate.lower.synced_batchnorm import synchronise, unsynchronise
from bivallate.run.sync_batchnorm import synchronise_batchnorm
from bivallate.types import Batch

# loops whose length hangs on the rows: processes make the same passes all the same
METHODS = {name: small(name) for name in NAMES if name != "nuat"}  # which is refused
METHODS |= {
    "fat in train mode": small("fat").but(attack_mode="train"),
    "dynamic in train mode": small("dynamic").but(attack_mode="train"),
    "barrier with curvature": small("done-adam").but(coupling=Barrier(curvature_steps=9)),
    "last step with curvature": small("fast-bat").but(coupling=LastStep(0.02, 0.1, curvature_steps=9)),
    "implicit": small("done-adam").but(coupling=Implicit(steps=9, damping=1.0)),
}


def share(batch: Batch, rank: int, world: int) -> Batch:
    """This process's rows of a minibatch."""
    meta = None if batch.meta is None else share(batch.meta, rank, world)
    mine = (part[rank::world] for part in (batch.x, batch.y, batch.index))
    return Batch(*mine, meta=meta, whole=len(batch.y))


def trained(name: str, rank: int, world: int, *, sync: bool = True) -> Tensor:
    """Parameters and buffers after two uneven minibatches in a network with BatchNorm."""
    method = METHODS[name]
    net, bound = Small().double().train(), method.bind(facts())
    if sync:
        synchronise(net)
    optimizer = sgd(net)
    for step, batch in enumerate((minibatch(7), minibatch(5, 7))):
        for replay in range(method.replays):
            mine = share(batch, rank, world)
            fed = mine if method.weighting.needs_meta else Batch(mine.x, mine.y, mine.index, whole=mine.whole)
            bv.train_step(net, optimizer, bound, fed, last_epoch(step, replay))
    unsynchronise(net)
    return torch.cat([value.double().flatten() for value in net.state_dict().values()])


class Other(nn.BatchNorm2d):
    """Computes in a way of its own, as some libraries' do."""


def _work(rank: int, folder: Path) -> None:
    ends: dict[str, Any] = {name: trained(name, rank, 2) for name in METHODS}
    ends["own statistics"] = trained("at", rank, 2, sync=False)
    torch.save(ends, folder / f"{rank}.pt")
    with pytest.raises(UserError, match=r"layer 0 is .*Other"):
        synchronise(nn.Sequential(Other(3)))
    with pytest.raises(UserError, match="nuat takes the nuclear norm"):
        synchronise_batchnorm(Small(), small("nuat"))


@pytest.mark.slow
def test_two_processes_equal_one_in_every_method(tmp_path: Path) -> None:
    in_two_processes(_work, tmp_path)
    ends, others = (torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in range(2))
    worst = {name: float((ends[name] - trained(name, 0, 1)).abs().max()) for name in METHODS}
    assert {name: value for name, value in worst.items() if not value < 1e-9} == {}
    assert all(torch.equal(ends[name], others[name]) for name in METHODS)
    assert (ends["own statistics"] - trained("at", 0, 1)).abs().max() > 1e-4, "a test that could not fail"


def test_one_process_is_left_as_it_is() -> None:
    net = Small()
    synchronise(net)
    assert type(net.norm) is nn.BatchNorm2d
