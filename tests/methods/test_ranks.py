"""Weights that depend on the whole minibatch still do if it is split over processes, with few collectives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.methods.glue import CLASSES, EPS, SHAPE, Net, minibatches
from tests.ranks import in_two_processes
from torch import Tensor, nn

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
    "at": methods.at(THREAT, steps=2),
    "done": methods.done_adam(THREAT, steps=2),
    "fast-at-ga": methods.fast_at_ga(THREAT),
    "atta": methods.atta(THREAT),
    "lbgat": methods.lbgat(THREAT, steps=2, alpha=1.0),
    "wmmr": methods.wmmr(THREAT, steps=2).but(weighting__normalised=True),
}
# all-reduces, all-gathers and broadcasts of a step on two processes
COLLECTIVES = {
    "at": 1,
    "mail-at": 2,
    "gairat": 2,
    "wmmr": 2,
    "done": 2,
    "at-awp": 2,
    "lbgat": 2,
    "fast-at-ga": 2,
    "atta": 3,
    "non-parametric": 4,
    "bilaw": 6,
    "bilaw-trades": 6,
}


@contextmanager
def counted() -> Iterator[list[str]]:
    """The names of the collectives that are called within."""
    made: list[str] = []

    def noting(name: str) -> Any:
        own = getattr(dist, name)

        def noted(*args: Any, **options: Any) -> Any:
            made.append(name)
            return own(*args, **options)

        return noted

    with pytest.MonkeyPatch.context() as patch:
        for name in ("all_reduce", "all_gather", "all_gather_object", "broadcast", "barrier"):
            patch.setattr(dist, name, noting(name))
        yield made


def trained(name: str, rank: int, world: int) -> tuple[Tensor, list[int]]:
    """The network's and the weighting's parameters after three steps on this rank's share of the rows, and
    how many collectives each step took."""
    net, bound = Net(norm=False).train(), METHODS[name].bind(Facts(20, SHAPE, CLASSES, dtype=torch.float64))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    meta, taken = minibatches((5, 5, 4), seed=7), list[int]()
    for t, (rows, second) in enumerate(zip(minibatches(), meta, strict=True)):
        mine, theirs = ([part[rank::world] for part in b] for b in (rows, second))
        pair = Batch(*theirs, whole=len(second[1]))
        with counted() as made:
            bv.train_step(net, optimizer, bound, Batch(*mine, None, pair, len(rows[1])), Clock(0, 1, t, 3))
        taken.append(len(made))
    memories = [net, bound.weighting] if isinstance(bound.weighting, nn.Module) else [net]
    return torch.cat([p.detach().flatten() for m in memories for p in m.parameters()]), taken


def work(rank: int, folder: Path) -> None:
    """One of two processes."""
    ends = {name: trained(name, rank, 2) for name in METHODS if name != "second-order"}
    with pytest.raises(UserError, match="one process"):
        trained("second-order", rank, 2)
    torch.save(ends, folder / f"{rank}.pt")


@pytest.mark.slow
def test_two_processes_equal_one_at_few_collectives(tmp_path: Path) -> None:
    in_two_processes(work, tmp_path)
    ends, others = (torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in range(2))
    for name, (end, taken) in ends.items():
        alone, none = trained(name, 0, 1)
        assert torch.equal(end, others[name][0]), name
        assert (alone - end).abs().max() < 1e-13, name
        assert none == [0, 0, 0]
        assert taken == [COLLECTIVES[name]] * 3, name
