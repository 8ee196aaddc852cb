"""Cells with the same training are trained once and measured once, whichever table they are in."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from bivallate.reproduce import campaign, running, work_queue
from bivallate.reproduce.campaign import _Worker, _Workers, path_of, pending, run_campaign
from bivallate.reproduce.cell import Cell, Measure, configure
from bivallate.reproduce.papers.catalogue import find
from bivallate.reproduce.records import read_record
from bivallate.reproduce.running import Job, run_job
from bivallate.reproduce.scaling import at_scale
from bivallate.reproduce.sharing import grouped_by_training, training_of, with_all_kept
from bivallate.reproduce.work_queue import Training, Work, WorkQueue
from bivallate.run.config import Config
from bivallate.run.folder import RunFolder

SHARED = [  # table: row, group; at scale cpu
    "T-F1: FAST-AT, CIFAR-10 @8 = T-F2: FAST-AT, train @8 = T-F4: FAST-AT, @8 = T-F10: FAST-AT, @8"
    " = T-F11: Fast-AT ReLU, @8 = T-S1: FAST-AT, CIFAR-10 @8",
    "T-F1: FAST-AT-GA, CIFAR-10 @8 = T-F2: FAST-AT-GA, train @8 = T-F4: FAST-AT-GA, @8"
    " = T-F10: FAST-AT-GA, @8 = T-S1: FAST-AT-GA, CIFAR-10 @8",
    "T-F1: FAST-BAT, CIFAR-10 @8 = T-F2: FAST-BAT, train @8 = T-F4: FAST-BAT, @8 = T-F5: Hessian-free, @8"
    " = T-F10: FAST-BAT, @8 = T-F11: Fast-BAT ReLU HF, @8 = T-S1: FAST-BAT, CIFAR-10 @8",
    "T-F1: PGD-2-AT, CIFAR-10 @8 = T-F2: PGD-2-AT, train @8 = T-F4: PGD-2-AT, @8"
    " = T-S1: PGD-2-AT, CIFAR-10 @8",
    "T-F1: FAST-AT, CIFAR-10 @16 = T-F2: FAST-AT, train @16 = T-F10: FAST-AT, @16 = T-F11: Fast-AT ReLU, @16"
    " = T-S1: FAST-AT, CIFAR-10 @16",
    "T-F1: FAST-AT-GA, CIFAR-10 @16 = T-F2: FAST-AT-GA, train @16 = T-F10: FAST-AT-GA, @16"
    " = T-S1: FAST-AT-GA, CIFAR-10 @16",
    "T-F1: FAST-BAT, CIFAR-10 @16 = T-F2: FAST-BAT, train @16 = T-F5: Hessian-free, @16 = T-F7: 2500, @16"
    " = T-F8: .0125, @16 = T-F9: PGD w/o sign, @16 = T-F10: FAST-BAT, @16 = T-F11: Fast-BAT ReLU HF, @16"
    " = T-S1: FAST-BAT, CIFAR-10 @16",
    "T-F1: PGD-2-AT, CIFAR-10 @16 = T-F2: PGD-2-AT, train @16 = T-S1: PGD-2-AT, CIFAR-10 @16",
    "T-F5: Hessian-aware, @8 = T-F11: Fast-BAT ReLU HA, @8",
    "T-F5: Hessian-aware, @16 = T-F11: Fast-BAT ReLU HA, @16",
    "T-F7: 1000, @16 = T-F8: .025, @16",
    "T-F7: 1500, @16 = T-F8: .0167, @16",
    "T-B2: BiLAW-TRADES, WRN-32-10 .031 = T-B6: 128, WRN-32-10 .031 = T-B7: 6, WRN-32-10 .031"
    " = T-B8: multi-class margin, WRN-32-10 .031",
    *(f"T-F1: N-FGSM, CIFAR-10 {at} = T-S1: N-FGSM, CIFAR-10 {at}" for at in ("@8", "@16")),
    *(f"T-D1: {row}, balanced = T-C1: {row}, balanced" for row in ("AT", "MAIL", "DONE-ADAM")),
    *(
        f"T-Y1: {row}, {group} = T-Y2: {row}, {group}"
        for group in ("MNIST", "CIFAR-10")
        for row in ("Standard", "Curriculum", "Dynamic")
    ),
]


def test_the_cells_that_are_one_training() -> None:
    found = [" = ".join(f"{t}: {c.row}, {c.group}" for t, c in group) for group in grouped_by_training("cpu")]
    assert sorted(found) == sorted(SHARED)


def test_a_training_keeps_the_epochs_that_any_of_its_cells_wants() -> None:
    first, second = (
        next(c for c in at_scale(find(t), "cpu") if (c.row, c.group) == ("Dynamic", "CIFAR-10"))
        for t in ("T-Y1", "T-Y2")
    )
    assert first.keep
    assert not second.keep
    assert with_all_kept(second, "cpu").keep == with_all_kept(first, "cpu").keep == first.keep
    assert configure(with_all_kept(second, "cpu"), 0).keep == configure(first, 0).keep
    assert with_all_kept(second.but(rows=7), "cpu").keep == ()


DIFFERENT: list[dict[str, Any]] = [{"epochs": 3}, {"rows": 300}, {"eps": "0.1"}, {"settings": {}}]
ALIKE: list[dict[str, Any]] = [{"row": "another"}, {"weights": "last"}, {"keep": (1.0,)}, {"eps": ".05"}]


@pytest.mark.parametrize("change", [*DIFFERENT, *ALIKE], ids=str)
def test_equal_are_those_that_train_alike(change: dict[str, Any], tiny: Cell) -> None:
    assert (training_of(tiny, 0) == training_of(tiny.but(**change), 0)) is (change in ALIKE)
    assert training_of(tiny, 0) != training_of(tiny, 1)


def renamed(job: Job, **changes: Any) -> Job:
    return dataclasses.replace(job, table="T-Z", cell=job.cell.but(row="other", group="else", **changes))


def test_another_tables_training_is_taken_and_measured(job: Job, monkeypatch) -> None:
    run_job(job)
    monkeypatch.setattr(running, "execute", None)  # neither is needed
    monkeypatch.setattr(running, "resume", None)
    other = renamed(job, measures=(Measure("FGSM", "robust", "fgsm"),), weights="last")
    assert run_campaign([other]).failed == {}
    record = read_record(path_of(other))
    assert (record.row, list(record.columns)) == ("other", ["FGSM"])
    assert pending([job, other]) == []
    assert not (job.runs / "T-Z").exists()


@pytest.mark.parametrize("begun", ["auto", "cuda"])
def test_an_interrupted_one_is_finished_where_it_lies(begun: str, job: Job, monkeypatch) -> None:
    place = job.runs / "T-X" / "cpu" / f"{job.cell.name}-seed0"
    from bivallate.run.progress import Progress
    from bivallate.run.signals import Interrupted

    class Stops(Progress):
        def epoch(self, session: Any, line: dict[str, Any]) -> None:
            raise Interrupted("now")

    with pytest.raises(Interrupted):
        run_job(job, Stops())
    assert len(RunFolder(place).read_metrics()) == 1
    monkeypatch.setattr(running, "execute", None)
    folder = RunFolder(place)
    Config.read(folder.config).set("device", begun).write(folder.config)  # as on a machine with a card
    run_job(renamed(job))
    assert len(RunFolder(place).read_metrics()) == 2
    assert Config.read(folder.config).device == begun


def test_another_tables_record_is_taken_where_it_has_all_that_is_asked(job: Job, monkeypatch) -> None:
    path = run_job(job)
    first = json.loads(path.read_text())
    monkeypatch.setattr(campaign, "run_job", None)  # no training and no evaluation
    fewer = tuple(m for m in job.cell.measures if m.column in ("PGD", "gap", "s/epoch"))
    other = renamed(job, measures=fewer)
    assert run_campaign([other]).failed == {}
    entry = json.loads(path_of(other).read_text())
    assert entry["columns"] == {m.column: first["columns"][m.column] for m in fewer}
    assert (entry["made_for"], entry["table"]) == (f"T-X/cpu/{path.name}", "T-Z")
    assert entry["training"] == first["training"]
    assert list(entry["scores"]) == ["pgd-3"]
    assert pending([other]) == []


@pytest.mark.parametrize(
    "change", [{"weights": "last"}, {"epochs": 3}, {"measures": (Measure("SA", "clean"),)}]
)
def test_another_record_is_not_taken_for_what_it_is_not(
    job: Job, change: dict[str, Any], monkeypatch
) -> None:
    run_job(job)
    asked = list[Job]()

    def noted(job: Job, progress: object) -> Path:
        asked.append(job)
        return Path()

    monkeypatch.setattr(campaign, "run_job", noted)
    run_campaign([other := renamed(job, **change)])
    assert asked == [other]


def test_jobs_of_one_training_are_not_run_at_once(job: Job, monkeypatch) -> None:
    third = dataclasses.replace(job, cell=job.cell.but(eps="0.1"))
    pool = _Workers([job, renamed(job), third], campaign.Outcome(), lambda line: None, lambda: False)
    given = list[str]()

    class Pipe:
        def send(self, job: Job) -> None:
            given.append(f"{job.table} {job.cell.eps}")

    workers = [_Worker(None, Pipe()) for _ in range(3)]  # pyright: ignore[reportArgumentType]
    pool.workers = workers
    for worker in workers:
        pool._give(worker)
    assert given == ["T-X 0.05", "T-X 0.1"]
    workers[0].work = None
    pool._give(workers[2])
    assert given[2:] == ["T-Z 0.05"]
    assert len(pool.queue) == 0


def with_source(job: Job, row: str, eps: str, source: Cell) -> Job:
    """A cell of its own training, with a column on the examples of another network."""
    moved = Measure("moved", "robust", "pgd-2", n=40, source="plain")
    cell = job.cell.but(row=row, eps=eps, measures=(moved,), epochs=1)
    return dataclasses.replace(job, cell=cell, sources={"plain": source})


@pytest.fixture
def three(job: Job) -> list[Job]:
    """Three cells that share the source of a column, as T-Y2's do, and one that shares nothing."""
    source = job.cell.but(row="plain", method="plain", parameters={}, measures=(), epochs=1)
    eps = {"a": "0.05", "b": "0.06", "c": "0.07"}
    return [*(with_source(job, row, e, source) for row, e in eps.items()), job]


def named(work: Work) -> str:
    if isinstance(work, Job):
        return work.cell.row
    return f"train {work.source or work.job.cell.row}"


def test_cells_that_share_a_source_leave_every_process_its_work(three: list[Job]) -> None:
    queue, running = WorkQueue(three), dict[str, tuple[Work, frozenset[str]]]()

    def begin() -> str:
        found = queue.take(frozenset[str]().union(*(held for _, held in running.values())))
        running[named(found[0]) if found else ""] = found or (three[0], frozenset())
        return list(running)[-1]

    def end(name: str) -> None:
        work, _ = running.pop(name)
        if isinstance(work, Training):
            assert queue.finish(work, True) == []

    assert [begin(), begin()] == ["train plain", "train a"]
    end("train a")
    assert begin() == "train b", "no cell is measured before the source is there"
    end("train plain")
    assert begin() == "a"
    end("train b")
    assert begin() == "b", "the finished source serves two at once"
    end("a")
    assert [begin(), begin(), begin()] == ["train c", "AT", ""]
    end("train c")
    del running[""]
    assert [begin(), len(queue)] == ["c", 0]


@pytest.mark.parametrize(("failing", "lost"), [("plain", ["a", "b", "c"]), ("b", ["b"])])
def test_a_training_that_fails_takes_its_cells_along(failing: str, lost: list[str], three: list[Job]) -> None:
    said = list[str]()
    outcome = campaign.Outcome()
    pool = _Workers(three, outcome, said.append, lambda: False)
    while (found := pool.queue.take(frozenset())) is not None:
        bad = named(found[0]) == f"train {failing}"
        pool._end(found[0], (not bad, "no disk" if bad else "record.json"), 1.0)
    assert [title.split(": ")[1].split(",")[0] for title in outcome.failed] == lost
    whose = "" if failing == "b" else "the training that its transfer columns need failed: "
    assert set(outcome.failed.values()) == {f"{whose}no disk"}
    assert len(outcome.done) == len(three) - len(lost)
    assert sum("FAILED" in line for line in said) == len(lost)


def test_a_training_by_itself_is_found_by_its_cell(three: list[Job], monkeypatch) -> None:
    whole, apart = (dataclasses.replace(three[0], out=three[0].out / n, runs=three[0].runs / n) for n in "12")
    expected = json.loads(run_job(whole).read_text())
    Training("", apart, "plain", (apart,)).make()
    Training("", apart, None, (apart,)).make()
    monkeypatch.setattr(running, "execute", None)  # nothing is left to train
    found = json.loads(run_job(apart).read_text())
    assert found["columns"] == expected["columns"]
    assert found.keys() == expected.keys()
    monkeypatch.setattr(work_queue, "train_for", None)  # a record of another cell serves
    Training("", renamed(apart), None, (renamed(apart),)).make()
    assert pending([renamed(apart)]) == []


@pytest.mark.slow
def test_two_processes_share_the_work_of_cells_with_one_source(three: list[Job]) -> None:
    said = list[str]()
    outcome = run_campaign(three[:3], at_once=2, say=said.append)
    assert (outcome.failed, len(outcome.done)) == ({}, 3)
    assert [line.split(":")[0].split(" of ")[0] for line in said[:2]] == ["training"] * 2
    assert [line.split("]")[0] for line in said if line.startswith("[")] == ["[1/3", "[2/3", "[3/3"]
    assert len(list(three[0].runs.glob("T-X/cpu/source-*"))) == 1
