"""A campaign on one GPU: how many cells run at once, what stops it, and data that arrive in parts."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from benchmarks import campaign_cpu, campaign_gpu, filling
from benchmarks.filling import CONTEXT, Throughput, at_once, endless, filled, pace, ready_for

from bivallate.errors import UserError
from bivallate.reproduce.cell import configure
from bivallate.reproduce.definition import without_machine
from bivallate.reproduce.records import read_records
from bivallate.reproduce.running import Job

GIGABYTE = 1 << 30
RULES = [  # images a second by number, GiB of one, GiB of the device; how many run at once
    ({1: 100, 2: 190, 3: 270, 4: 350}, 4, 80, 4),
    ({1: 100, 2: 150, 4: 155}, 4, 80, 2),  # four gain less than 5 %
    ({1: 100, 2: 104, 4: 90}, 4, 80, 1),
    ({1: 100, 2: 190, 4: 350}, 20, 80, 2),  # four do not fit
    ({1: 100, 2: 190}, 100, 80, 1),  # not even one, by this reckoning
    ({1: 100, 2: 190}, 0, 0, 2),  # memory unknown
    ({}, 0, 80, 1),  # the probe failed
]


@pytest.mark.parametrize(("images", "each", "whole", "chosen"), RULES)
def test_the_fewest_that_fill_the_device(images, each, whole, chosen) -> None:
    seen = {k: Throughput(float(n), each * GIGABYTE - CONTEXT if each else 0) for k, n in images.items()}
    assert at_once(seen, whole * GIGABYTE) == chosen


def arguments(tmp_path: Path, *more: str) -> list[str]:
    places = ["--out", str(tmp_path / "out"), "--known", str(tmp_path / "known")]
    places += ["--runs", str(tmp_path / "runs")]
    return ["--scale", "smoke", "--device", "cpu", "--threads", "1", "--limit", "1", *places, *more]


def first(tmp_path: Path, *more: str) -> Job:
    return campaign_gpu.plan(campaign_gpu.arguments(arguments(tmp_path, *more)))[0]


@pytest.mark.slow
def test_a_cell_is_recorded_once_and_the_table_comes_last(tmp_path, capsys) -> None:
    assert campaign_gpu.main(arguments(tmp_path, "--jobs", "1")) == 0
    assert capsys.readouterr().out.startswith("T-F1 smoke: FAST-AT, CIFAR-10 @8, seed 0: SA ")
    (record,) = read_records(tmp_path / "out", "T-F1", "smoke")
    assert "together" not in record.entry["machine"]
    (tmp_path / "out").rename(tmp_path / "known")
    shutil.rmtree(tmp_path / "runs")
    assert campaign_gpu.main(arguments(tmp_path, "--jobs", "1")) == 0  # known: nothing is trained
    assert not (tmp_path / "runs").exists()
    assert capsys.readouterr().out.startswith("T-F1 smoke: FAST-AT, CIFAR-10 @8, seed 0: SA ")


def test_no_cell_is_begun_when_time_is_up(tmp_path, capsys) -> None:
    assert campaign_gpu.work(campaign_gpu.arguments(arguments(tmp_path, "--jobs", "1")), float("-inf")) == 0
    shown = capsys.readouterr()
    assert shown.out == "T-F1 smoke: FAST-AT, CIFAR-10 @8, seed 0: not run\n"
    assert "time is up" in shown.err


def test_the_papers_cells_come_first_and_speed_defines_nothing(tmp_path) -> None:
    chosen = campaign_gpu.arguments(["--scale", "full", "--seeds", "2", "--out", str(tmp_path)])
    jobs = campaign_gpu.plan(chosen)
    assert [(j.cell.row, j.seed) for j in jobs[:5]] == [(row, 0) for row in campaign_gpu.FAST]
    assert [j.seed for j in jobs] == [0] * (len(jobs) // 2) + [1] * (len(jobs) // 2)
    formats = {j.cell.row: configure(j.cell, 0).precision for j in jobs}
    assert formats["FAST-AT"] == formats["AT"] == "bf16"
    assert formats["FAST-BAT"] == formats["DONE-ADAM"] == "tf32"
    plain = campaign_gpu.plan(campaign_gpu.arguments(["--float32", "--out", str(tmp_path)]))
    assert {configure(j.cell, 0).precision for j in plain} == {"float32"}
    graphs = campaign_gpu.plan(campaign_gpu.arguments(["--graphs", "--out", str(tmp_path)]))
    assert all(configure(cell, 0).graphs for j in graphs for cell in (j.cell, *j.sources.values()))
    for fast, exact in itertools.chain(zip(jobs, plain, strict=False), zip(graphs, plain, strict=True)):
        assert without_machine(configure(fast.cell, 0)) == without_machine(configure(exact.cell, 0))
        assert configure(fast.cell, 0).model.name == "preact-resnet18" or fast.table != "T-F1"


@pytest.mark.parametrize("scale", ["cpu", "full"])
def test_every_cell_is_planned_once_and_float32_means_all(scale, tmp_path) -> None:
    given = ["--scale", scale, "--out", str(tmp_path)]
    jobs = campaign_gpu.plan(campaign_gpu.arguments(given))
    assert len({job.title for job in jobs}) == len(jobs)
    assert {(job.table, job.cell.row) for job in jobs} >= {("T-F1", "FAST-BAT"), ("T-D1", "DONE-GD")}
    plain = campaign_gpu.plan(campaign_gpu.arguments([*given, "--float32"]))
    assert [job.title for job in plain] == [job.title for job in jobs]
    assert {configure(job.cell, 0).precision for job in plain} == {"float32"}
    sources = [cell for job in plain for cell in job.sources.values()]
    assert {configure(cell, 0).precision for cell in sources} == {"float32"}


ORDERS = {  # the order of worth: table, row and start of the group; seeds that must be planned
    "full": (
        ("T-F1", "FAST-BAT", "CIFAR-10 @8", {0}),
        ("T-F1", "FAST-BAT", "CIFAR-10 @16", {0}),
        ("T-D1", "FAT", "balanced", {0}),
        ("T-Y2", "Dynamic", "CIFAR-10", {0}),
        ("T-B2", "BiLAW", "small-CNN .031", {0}),
        ("T-D1", "DONE-ADAM", "imbalanced", {0}),
        ("T-D4", "DONE", "fast", {0}),
    ),
    "cpu": (("T-B1", "BiLAW-TRADES", "MNIST tiny-CNN linf", {0, 1, 2}), ("T-Y1", "Standard", "MNIST", {0})),
    "two cores": (
        ("T-Y2", "Dynamic", "CIFAR-10", {0}),
        ("T-B2", "BiLAW", "small-CNN .031", {0}),
        ("T-D1", "AT", "imbalanced", {0}),
        ("T-B1", "N-FGSM (equal cost)", "MNIST", {0}),
        ("T-B1", "BiLAW", "MNIST", {0, 1, 2}),
        ("T-B1", "BiLAW-TRADES", "MNIST", {0, 1, 2}),
        ("T-Y1", "Dynamic", "MNIST", {0}),
        ("T-S1", "FAST-AT", "CIFAR-10 @8", {0}),
        ("T-C1", "DAFA", "balanced", {0}),
    ),
}


@pytest.mark.parametrize("kind", ORDERS)
def test_campaigns_follow_the_order_of_worth(kind: str, tmp_path) -> None:
    if kind == "two cores":
        jobs = campaign_cpu.plan("cpu", tmp_path / "out", tmp_path / "runs")
    else:
        jobs = campaign_gpu.plan(campaign_gpu.arguments(["--scale", kind, "--out", str(tmp_path)]))
    places = []
    for table, row, group, seeds in ORDERS[kind]:
        asked = (table, row, group)
        found = [k for k, j in enumerate(jobs) if (j.table, j.cell.row) == asked[:2]]
        found = [k for k in found if jobs[k].cell.group.startswith(group)]
        assert {jobs[k].seed for k in found} == seeds, asked
        places.append(found[0])
    assert places == sorted(places)


def test_a_probe_is_made_once_a_machine(tmp_path, monkeypatch) -> None:
    job, asked, told = first(tmp_path), list[list[int]](), list[str]()

    def probed(job: Job, sizes: list[int]) -> dict[int, Throughput]:
        asked.append(sizes)
        return {1: Throughput(10.0), 2: Throughput(19.0, 5)}

    monkeypatch.setattr(filling, "probe", probed)
    monkeypatch.setattr(filling.os, "cpu_count", lambda: 3)
    kept = tmp_path / "runs" / "filling.json"
    kept.parent.mkdir()
    assert [filled(job, kept, told.append) for _ in range(2)] == [2, 2]
    assert asked == [[1, 2, 3]]
    assert told[1] == "2 trainings at once (images a second by their number: 1: 10, 2: 19)"
    kept.write_text(json.dumps(json.loads(kept.read_text()) | {"machine": {}}))
    assert filled(job, kept, told.append) == 2
    assert len(asked) == 2


def test_a_trial_counts_images_and_changes_no_weight(tmp_path) -> None:
    session = ready_for(first(tmp_path))
    before = [p.detach().clone() for p in session.model.parameters()]
    batches = endless(session)
    for _ in range(len(session.batches) + 1):  # on into the next epoch
        images, memory = pace(session, batches, 0.0)
        assert images > 0
    assert memory == 0
    assert all(torch.equal(a, b) for a, b in zip(before, session.model.parameters(), strict=True))


@pytest.mark.slow
def test_processes_are_timed_together(tmp_path) -> None:
    seen = filling.probe(first(tmp_path), (1, 2), seconds=0.1)
    assert sorted(seen) == [1, 2]
    assert all(s.images > 0 for s in seen.values())


def test_data_come_in_pieces(tmp_path, monkeypatch, capsys) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    monkeypatch.setenv("BIVALLATE_DATA", str(tmp_path / "data"))
    for k, name in enumerate(("train-00000-of-00002", "train-00001-of-00002", "test")):
        place = tmp_path / f"piece{min(k, 1)}" / "cifar10"
        place.mkdir(parents=True, exist_ok=True)
        images = [{"bytes": png(20 * k + i), "path": None} for i in range(20)]
        table = pa.table({"img": images, "label": [i % 10 for i in range(20)]})
        parquet.write_table(table, place / f"{name}.parquet")
    assert campaign_gpu.main([*arguments(tmp_path), "--bring", str(tmp_path / "piece0")]) == 0
    assert "lacks 1 of 2 shards" in capsys.readouterr().err
    assert campaign_gpu.bring(tmp_path / "piece1", tmp_path / "data") == ""
    with pytest.raises(UserError, match="no folder with files"):
        campaign_gpu.bring(tmp_path / "none", tmp_path / "data")


def png(k: int) -> bytes:
    from io import BytesIO

    from PIL import Image

    buffer = BytesIO()
    Image.new("RGB", (32, 32), (4 * k, 3 * k, k)).save(buffer, "PNG")
    return buffer.getvalue()
