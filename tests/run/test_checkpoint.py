"""Checkpoints are whole and verified, and the older one is used if the newest is damaged."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bivallate.errors import UserError
from bivallate.run import checkpoint
from bivallate.run.checkpoint import Checkpoint


def make(epoch: int) -> Checkpoint:
    tensors = {
        "model.w": torch.arange(6.0).view(2, 3) + epoch,
        "generator.cpu": torch.tensor([1, 2], dtype=torch.uint8),
    }
    return Checkpoint(epoch, 3, tensors, {"history": [{"loss": 0.1}], "best": -1.0})


def test_round_trip_is_exact_and_two_are_kept(tmp_path):
    for epoch in range(4):
        checkpoint.save(tmp_path, make(epoch))
    assert [p.name[:11] for p in checkpoint.list_all(tmp_path)] == ["epoch-00003", "epoch-00002"]
    found = checkpoint.newest(tmp_path)
    assert (found.epoch, found.step, found.values) == (3, 3, make(3).values)
    assert all(torch.equal(found.tensors[k], v) for k, v in make(3).tensors.items())


def test_large_tensors_are_files_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "LARGE", 8)
    for epoch in range(3):
        checkpoint.save(tmp_path, make(epoch))
    assert len(list(tmp_path.glob("*.bank.safetensors"))) == 2
    assert torch.equal(checkpoint.newest(tmp_path).tensors["model.w"], make(2).tensors["model.w"])


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps({"epoch": 1}))


def foreign(path: Path) -> None:
    save_file({"w": torch.zeros(2)}, path)


@pytest.mark.parametrize("damage", [truncated, emptied, flipped, pickled, foreign])
def test_the_older_whole_one_stands_in_for_a_bad_checkpoint_and_that_is_said(damage, tmp_path):
    checkpoint.save(tmp_path, make(1))
    damage(checkpoint.save(tmp_path, make(2)))
    said: list[str] = []
    assert checkpoint.newest(tmp_path, tell=said.append).epoch == 1
    assert len(said) == 1
    assert "epoch-00002" in said[0]
    assert "older whole one, at epoch 2, minibatch 3" in said[0]
    with pytest.raises(UserError, match=r"older good one is there, at epoch 2.*--fall-back"):
        checkpoint.newest(tmp_path, fall_back=False)


def test_no_checkpoint_at_all(tmp_path):
    with pytest.raises(UserError, match="no checkpoint"):
        checkpoint.newest(tmp_path)


def headless(path: Path) -> None:
    save_file({"w": torch.zeros(2)}, path, {"bivallate": "[1]"})


def incomplete(path: Path) -> None:
    save_file({"w": torch.zeros(2)}, path, {"bivallate": '{"format": "bivallate-checkpoint-1", "files": []}'})


@pytest.mark.parametrize("damage", [headless, incomplete])
def test_a_header_that_is_not_ours_is_refused(damage, tmp_path):
    checkpoint.save(tmp_path, make(1))
    damage(checkpoint.save(tmp_path, make(2)))
    with pytest.raises(UserError, match="older good one"):
        checkpoint.newest(tmp_path, fall_back=False)


def test_no_space_leaves_the_previous_one(tmp_path):
    checkpoint.save(tmp_path, make(1))
    script = f"""
import resource, pathlib, torch
from bivallate.run import checkpoint
from bivallate.errors import UserError
big = checkpoint.Checkpoint(2, 0, {{"w": torch.zeros(100_000)}}, {{}})
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
try:
    checkpoint.save(pathlib.Path({str(tmp_path)!r}), big)
except UserError as error:
    print("refused:", error)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "refused: cannot write" in result.stdout, result.stderr
    assert checkpoint.newest(tmp_path).epoch == 1
    assert [p.name for p in tmp_path.iterdir()] == [checkpoint.list_all(tmp_path)[0].name]
