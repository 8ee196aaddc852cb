"""A training on two processes records the losses, accuracies and costs of all rows."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.ranks import in_two_processes
from torch import distributed as dist

import bivallate as bv
from bivallate import UserError, cli, collective
from bivallate.run import sentinel_loop
from bivallate.run.config import Validation
from bivallate.run.sentinel import Sentinel
from bivallate.run.validation import Inspection
from bivallate.types import Passes

METHODS = {
    "at": bv.methods.at(bv.Linf(0.1), steps=2),
    "mail-at": bv.methods.mail_at(bv.Linf(0.1), steps=2, burn_in=0.0),
}
OFTEN = Sentinel(share=0.9, fewest=8, steps=2)


def history(name: str) -> list[dict[str, Any]]:
    """The lines of two epochs on 250 digits, with as many checks of the sentinel as its budget allows."""
    data = bv.data.load("digits")
    data = data.but(train=data.train.subset(slice(0, 250)))
    quick = {"epochs": 2, "batch_size": 50, "threads": 1, "validation": Validation(2, 60), "sentinel": OFTEN}
    return bv.train("tiny-cnn", data, METHODS[name], **quick).history


def _work(rank: int, folder: Path) -> None:
    """As where BatchNorm's statistics differ: the processes spend different numbers of passes on a check."""
    inspect = sentinel_loop.inspect_rows

    def uneven(*given: Any) -> Inspection:
        seen = inspect(*given)
        return replace(seen, passes=seen.passes + Passes(rank, rank))

    sentinel_loop.inspect_rows = uneven
    (folder / f"{rank}.json").write_text(json.dumps({name: history(name) for name in METHODS}))


@pytest.mark.slow
def test_two_processes_report_what_one_does(tmp_path: Path) -> None:
    in_two_processes(_work, tmp_path)
    first, second = (json.loads((tmp_path / f"{r}.json").read_text()) for r in range(2))
    for name in METHODS:
        for one, left, right in zip(history(name), first[name], second[name], strict=True):
            exact = ("forward", "backward", "total_forward", "total_backward")
            assert [left[key] for key in exact] == [one[key] for key in exact]
            assert left["loss"] == pytest.approx(one["loss"], rel=1e-4)
            assert left["train_robust"] == pytest.approx(one["train_robust"], abs=0.01)
            assert left["watched"].keys() == one["watched"].keys()
            assert left["sentinel_checks"] > 0
            told = {key: value for key, value in left.items() if key != "seconds"}
            assert told == {key: right[key] for key in told}


def _commands(rank: int, folder: Path) -> None:
    train = ["train", "at", "--data", "digits", "--model", "linear", "--epochs", "1", "--threads", "1"]
    told = list[tuple[int, str]]()
    for _ in range(2):
        with redirect_stderr(io.StringIO()) as text:
            told.append((cli.run([*train, "--out", str(folder / "run")]), text.getvalue()))
    (folder / f"{rank}.json").write_text(json.dumps(told))


@pytest.mark.slow
def test_two_processes_speak_once_and_end_together_where_the_folder_is_taken(tmp_path: Path) -> None:
    in_two_processes(_commands, tmp_path)
    first, second = (json.loads((tmp_path / f"{r}.json").read_text()) for r in range(2))
    assert [status for status, _ in first] == [status for status, _ in second] == [0, 2]
    for part in ("at on digits", "train robust:", "epoch   1/1", "next: bivallate evaluate"):
        assert first[0][1].count(part) == 1
    assert "exists already" in first[1][1]
    assert [text for _, text in second] == ["", ""]


def test_a_rank_is_known_before_it_has_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    assert collective.rank() == 0
    monkeypatch.setenv("RANK", "1")
    assert collective.rank() == 0  # one process: some schedulers set it for other reasons
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert collective.rank() == 1


@pytest.mark.parametrize(
    ("task", "told"),
    [
        ({"SLURM_NTASKS": "4"}, True),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2"}, True),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "4"}, False),  # srun -n 1 in a larger job
        ({"SLURM_NTASKS": "4", "WORLD_SIZE": "1"}, False),
        ({"SLURM_NTASKS": "1"}, False),
    ],
)
def test_lone_tasks_of_slurm_are_told_of_each_other(
    task: dict[str, str], told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in task.items():
        monkeypatch.setenv(name, value)
    plan = {"epochs": 1, "batch_size": 50, "threads": 1, "out": tmp_path / "run"}
    data = bv.data.load("digits")
    data = data.but(train=data.train.subset(slice(0, 50)), validation=None)
    if not told:
        assert bv.train("linear", data, METHODS["at"], **plan).path == tmp_path / "run"
        return
    with pytest.raises(UserError, match=r"tasks, none of which.*torchrun"):
        bv.train("linear", data, METHODS["at"], **plan)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("nccl", "made"), [(True, "cpu:gloo,cuda:nccl"), (False, "gloo")])
def test_both_back_ends_are_set_up_where_there_is_a_gpu(monkeypatch, nccl: bool, made: str) -> None:
    found = list[str]()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(dist, "is_nccl_available", lambda: nccl)
    monkeypatch.setattr(dist, "rendezvous", lambda url: iter([(dist.HashStore(), 0, 2)]))
    monkeypatch.setattr(dist, "init_process_group", lambda name, **given: found.append(name))
    collective.join()
    assert found == [made]
