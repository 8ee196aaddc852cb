"""A training on two processes that is killed or stopped, then resumed, ends with the same bits."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.ranks import in_two_processes
from tests.run.torchrun_script import digits, network, train

import bivallate as bv
from bivallate import UserError, collective
from bivallate.checksummed import read_checksummed
from bivallate.run import checkpoint, trainer
from bivallate.run.averaging import SWA
from bivallate.run.folder import RunFolder
from bivallate.run.signals import Interrupted
from bivallate.step import train_step

THREAT = bv.Linf(0.1)
METHODS = {
    "at": bv.methods.at(THREAT, steps=2, attack_mode="train"),
    "atta": bv.methods.atta(THREAT),
    "free": bv.methods.free_at(THREAT, replays=2),
}
OPTIONS = {"epochs": 2, "batch_size": 16, "checkpoint_minutes": 1e-9, "average": 0.9, "threads": 1}
AVERAGES = {"at": {"average": SWA(0.5)}}  # whose BatchNorm is taken over both
HOW = ("whole", "killed", "stopped")


class Killed(BaseException):
    """As far as the folder can tell."""


@contextmanager
def ended(how: str) -> Iterator[None]:
    """In the third minibatch of the second epoch: as a kill ends it, or by a signal to one process alone."""

    def step(model: Any, optimizer: Any, method: Any, batch: Any, clock: Any, summands: Any) -> Any:
        if (clock.epoch, clock.step, clock.replay) == (1, 2, 0):
            if how == "killed":
                raise Killed
            if collective.rank() == 1:
                signal.raise_signal(signal.SIGTERM)
        return train_step(model, optimizer, method, batch, clock, summands)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "train_step", step)
        with pytest.raises(Killed if how == "killed" else Interrupted):
            yield


def _work(rank: int, folder: Path) -> None:
    for name, method in METHODS.items():
        options = OPTIONS | {"sync_batchnorm": name == "free"} | AVERAGES.get(name, {})
        for how in HOW:
            place = folder / f"{name}-{how}"
            if how == "whole":
                bv.train(network(), digits(), method, out=place, **options)
                continue
            with ended(how):
                bv.train(network(), digits(), method, out=place, **options)
            found = checkpoint.load(checkpoint.list_all(place / "checkpoints")[0])
            assert (found.epoch, found.step, found.world) == (1, 3 if how == "stopped" else 2, 2)
            torch.save(found.values["tally"], folder / f"{name}-{rank}.pt")
            if rank == 0 and (name, how) == ("at", "stopped"):
                shutil.copytree(place, folder / "left")
            collective.barrier()
            bv.resume(place, dataset=digits(), model=network())


def lines(folder: Path) -> list[dict[str, Any]]:
    """The record but for what a clock has said."""
    kept = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in kept]


@pytest.mark.slow
def test_two_processes_go_on_to_the_bits_of_a_whole_run(tmp_path: Path) -> None:
    in_two_processes(_work, tmp_path)
    for name in METHODS:
        whole = read_checksummed(tmp_path / f"{name}-whole" / "model.safetensors")[1]
        for how in ("killed", "stopped"):
            again = read_checksummed(tmp_path / f"{name}-{how}" / "model.safetensors")[1]
            assert all(torch.equal(whole[k], again[k]) for k in whole), (name, how)
            same = [(tmp_path / f"{name}-{h}" / "ema.safetensors").read_bytes() for h in ("whole", how)]
            assert same[0] == same[1], (name, how)
            assert lines(tmp_path / f"{name}-{how}") == lines(tmp_path / f"{name}-whole"), (name, how)
        left, right = (torch.load(tmp_path / f"{name}-{r}.pt") for r in range(2))
        assert left["rows"] == right["rows"] == 24
        assert left["loss"] != right["loss"]
        assert left["everywhere"] == right["everywhere"]
    alone = bv.train(network(), digits(), METHODS["free"], **OPTIONS).model.state_dict()
    synced = read_checksummed(tmp_path / "free-whole" / "model.safetensors")[1]
    assert max(float((alone[k].double() - synced[k].double()).abs().max()) for k in alone) < 1e-4
    _on_another_number(tmp_path)


def _on_another_number(folder: Path) -> None:
    """One process goes on at the end of an epoch only, and does not take a set of files that is torn."""
    with pytest.raises(UserError, match=r"within epoch 2 on 2 processes.*--nproc-per-node=2"):
        bv.resume(folder / "left", dataset=digits(), model=network())
    told = list[str]()
    checkpoints = folder / "left" / "checkpoints"
    newest = checkpoint.list_all(checkpoints)[0]
    part = newest.with_name(f"{newest.stem}.rank-1.safetensors")
    assert sorted(p.name for p in checkpoints.glob("*rank*"))[-1] == part.name
    part.unlink()
    assert checkpoint.newest(checkpoints, tell=told.append).step == 2
    assert part.name in told[0]
    newest.unlink()
    shutil.copy(checkpoints / f"{checkpoint.list_all(checkpoints)[0].stem}.rank-1.safetensors", part)
    RunFolder(folder / "left").tidy()
    assert not part.exists(), "a part whose checkpoint was never finished"
    with pytest.warns(UserWarning, match="2 epochs become 3"):
        longer = bv.resume(folder / "at-whole", dataset=digits(), model=network(), epochs=3)
    assert len(longer.history) == 3


def _trained(rank: int, folder: Path) -> None:
    train(str(folder / "whole"))


@pytest.mark.slow
def test_torchrun_starts_again_after_a_kill_and_comes_to_the_same_bits(tmp_path: Path) -> None:
    """kill -9 of one process; several seconds, because torchrun imports everything twice in each process.

    Three restarts: in a few of some thirty runs on a busy machine a process of the second attempt was
    aborted by PyTorch ("terminate called without an active exception"); whatever attempt it takes, the bits
    are the same.
    """
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    line += ["--max-restarts=3", "-m", "tests.run.torchrun_script", str(tmp_path / "killed")]
    ended = subprocess.run(line, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "exitcode: -9" in ended.stderr
    in_two_processes(_trained, tmp_path)
    whole, again = (
        read_checksummed(tmp_path / name / "model.safetensors")[1] for name in ("whole", "killed")
    )
    assert all(torch.equal(whole[k], again[k]) for k in whole)
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")
