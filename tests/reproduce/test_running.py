"""A cell from training to record, and campaigns that are killed and continue."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bivallate.cli import run as command
from bivallate.errors import UserError
from bivallate.evaluation import Score, attack_and_score
from bivallate.evaluation.points import model_fingerprint
from bivallate.lower.threat import Linf
from bivallate.reproduce import measuring, running
from bivallate.reproduce.campaign import path_of, pending, run_campaign
from bivallate.reproduce.cell import Cell, Measure, configure
from bivallate.reproduce.papers.catalogue import find, tables
from bivallate.reproduce.planning import jobs_of
from bivallate.reproduce.records import Record, read_records, worst_class_of
from bivallate.reproduce.results_page import page, write_page, write_table
from bivallate.reproduce.running import Job, run_job
from bivallate.reproduce.scaling import at_scale
from bivallate.run.from_config import load_data
from bivallate.run.load_model import load

from .conftest import by_hand, keep


def test_a_cell_becomes_a_record(job: Job) -> None:
    path = run_job(job)
    assert path == path_of(job)
    entry = json.loads(path.read_text())
    columns = entry["columns"]
    assert list(columns) == [
        "SA",
        "PGD",
        "Tail-30",
        "worst class",
        "AA",
        "gap",
        "FOSC",
        "FOSC, ball",
        "s/epoch",
    ]
    score = Score.from_json(entry["scores"]["pgd-3"])
    assert score.robust_accuracy == columns["PGD"]["value"]
    assert score.tail(30) == pytest.approx(columns["Tail-30"]["value"])
    assert score.worst_class[1] == columns["worst class"]["value"]
    assert score.worst_class_interval_95 == pytest.approx(columns["worst class"]["interval_95"])
    assert columns["gap"]["value"] == pytest.approx(columns["SA"]["value"] - columns["PGD"]["value"])
    assert 0 <= columns["FOSC"]["value"] < columns["FOSC, ball"]["value"]
    assert 0.2 < columns["PGD"]["value"] <= columns["SA"]["value"]
    assert Score.from_json(entry["scores"]["autoattack-short-n40"]).n == 40
    assert entry["config"]["method"]["name"] == "at"
    assert entry["config"]["data"]["data_dir"] == ""
    assert entry["training"]["epochs"] == 2
    assert entry["training"]["forward_per_row"] == pytest.approx(8)  # 2 epochs of K + 1 = 4 passes
    assert entry["machine"]["threads"] == 1
    (record,) = read_records(job.out, "T-X", "cpu")
    points = record.points("PGD")
    assert points is not None
    assert points.value.mean() == pytest.approx(columns["PGD"]["value"])
    assert record.points("s/epoch") is None


def test_a_record_is_not_made_twice_and_a_run_not_trained_twice(job: Job, monkeypatch) -> None:
    path = run_job(job)
    first = json.loads(path.read_text())
    assert pending([job]) == []
    outcome = run_campaign([job])
    assert (outcome.done, outcome.skipped) == ([], [job.title])
    path.unlink()
    monkeypatch.setattr(running, "execute", None)
    monkeypatch.setattr(running, "resume", None)  # neither is needed: the run is complete
    assert run_campaign([job]).failed == {}
    again = json.loads(path.read_text())
    assert again["columns"] == first["columns"]
    assert again["training"] == first["training"]


@pytest.mark.parametrize("change", [{"eps": "0.2"}, {"rows": 300}, {"settings": {"validation.rows": 60}}])
def test_a_changed_cell_is_trained_anew_and_the_old_run_kept(job: Job, change: dict[str, Any]) -> None:
    first = json.loads(run_job(job).read_text())
    other = dataclasses.replace(job, cell=job.cell.but(**change))
    outcome = run_campaign([other])
    assert outcome.done == [path_of(job)], "a record of another definition does not count"
    again = json.loads(path_of(job).read_text())
    assert (again["config"], again["data"]) != (first["config"], first["data"])
    (old,) = (job.runs / "T-X" / "cpu").glob("*.before-1")
    assert (old / "model.safetensors").exists()
    assert pending([other]) == []


def test_a_new_column_is_measured_of_the_run_that_is_there(job: Job, monkeypatch) -> None:
    run_job(job)
    monkeypatch.setattr(running, "execute", None)
    monkeypatch.setattr(running, "resume", None)
    more = job.cell.but(measures=(*job.cell.measures, Measure("FGSM", "robust", "fgsm")))
    assert run_campaign([dataclasses.replace(job, cell=more)]).done == [path_of(job)]
    assert "FGSM" in json.loads(path_of(job).read_text())["columns"]


def test_a_column_may_be_of_the_last_weights_where_the_best_are_reported(job: Job) -> None:
    last = Measure("PGD, last epoch", "robust", "pgd-3", weights="last")
    wild = {**job.cell.settings, "optimizer.lr": 1000.0, "rate.at": (1.0, 1.0)}
    cell = job.cell.but(measures=(*job.cell.measures, last), settings=wild, epochs=5)
    entry = json.loads(run_job(dataclasses.replace(job, cell=cell)).read_text())
    data = load_data(configure(cell, 0).data, 0).test
    for column, weights in (("PGD", "best"), (last.column, "last")):
        model = load(job.runs / "T-X" / "cpu" / f"{cell.name}-seed0", weights)
        assert (
            entry["columns"][column]["value"]
            == attack_and_score(model, data, Linf(0.05), "pgd-3").robust_accuracy
        )
    assert entry["columns"]["PGD"]["value"] != entry["columns"][last.column]["value"]


def test_weights_of_the_best_epoch_that_are_the_last_are_evaluated_once(job: Job, monkeypatch) -> None:
    last, best = Measure("PGD", attack="pgd-3"), Measure("PGD, best", attack="pgd-3", weights="best")
    cell = job.cell.but(measures=(last, best), weights="last", epochs=1)
    asked = list[Any]()
    evaluate = measuring.attack_and_score
    monkeypatch.setattr(measuring, "attack_and_score", lambda *a, **k: asked.append(a) or evaluate(*a, **k))
    entry = json.loads(run_job(dataclasses.replace(job, cell=cell)).read_text())
    assert len(asked) == 1
    assert entry["scores"]["pgd-3"] == entry["scores"]["pgd-3-of-best"]
    assert entry["columns"]["PGD"]["value"] == entry["columns"]["PGD, best"]["value"]


def test_a_damaged_record_and_another_source_are_made_anew(job: Job) -> None:
    source = job.cell.but(row="source", measures=(), epochs=1)
    moved = Measure("moved", "robust", "pgd-3", source="one")
    job = dataclasses.replace(job, cell=job.cell.but(measures=(moved,)), sources={"one": source})
    path = run_job(job)
    assert pending([job]) == []
    other = dataclasses.replace(job, sources={"one": source.but(epochs=2)})
    assert pending([other]) == [other]
    before = json.loads(path.read_text())["scores"]
    assert run_campaign([other]).done == [path]
    assert json.loads(path.read_text())["scores"] != before, "no evaluation of the old source is taken"
    for text in ("{", '{"schema": "bivallate-reproduction-1"}'):
        path.write_text(text)
        assert pending([job]) == [job]


def test_a_sentinel_that_only_watches_and_younger_settings_leave_a_record_as_it_is(job: Job) -> None:
    path = run_job(job)
    entry = json.loads(path.read_text())
    del entry["config"]["channels_last"]
    entry["config"]["sentinel"]["lowers"] = "rate"
    path.write_text(json.dumps(entry))
    assert pending([job]) == []
    entry["config"]["optimizer"]["kind"] = "NoLongerThere"
    path.write_text(json.dumps(entry))
    assert pending([job]) == [job]


def test_a_run_is_the_same_on_another_machine(job: Job, monkeypatch) -> None:
    run_job(job)
    path_of(job).unlink()
    monkeypatch.setattr(running, "execute", None)  # not needed
    run_job(dataclasses.replace(job, threads=2, device="auto"))
    assert path_of(job).exists()
    assert not list((job.runs / "T-X" / "cpu").glob("*.before-*"))


@pytest.mark.parametrize("name", tables())
def test_every_table_goes_from_training_to_page(name: str, tmp_path: Path) -> None:
    table = find(name)
    group = at_scale(table, "smoke")[0].group
    jobs = jobs_of(table, "smoke", groups=(group,), out=tmp_path, runs=tmp_path / "runs", threads=1)
    assert run_campaign(jobs).failed == {}
    report, text = write_table(table, "smoke", tmp_path)
    (lines,) = (g["rows"] for g in report["groups"] if g["group"] == group)
    for line in lines:
        job = next(job for job in jobs if (job.cell.row, job.cell.group) == (line["row"], group))
        own = [m.column for m in job.cell.measures]
        assert [column for column in line["ours"] if column in own] == own
        assert set(line["ours"]) - set(own) <= {worst_class_of(column) for column in own}
        assert line["weights"][0]["epochs"] == 1
        assert f"| {line['row']} |" in text["markdown"]


def test_transfer_is_the_accuracy_on_examples_of_another_network(job: Job) -> None:
    cell = job.cell.but(measures=(dataclasses.replace(job.cell.measures[1], source="plain"),))
    source = job.cell.but(row="plain", method="plain", parameters={}, measures=())
    entry = json.loads(run_job(dataclasses.replace(job, cell=cell, sources={"plain": source})).read_text())
    (score,) = (Score.from_json(s) for s in entry["scores"].values())
    assert score.attack == "clean"
    white = json.loads(run_job(dataclasses.replace(job, seed=0, table="T-W")).read_text())
    assert entry["columns"]["PGD"]["value"] >= white["columns"]["PGD"]["value"]
    (folder,) = job.runs.glob("T-X/cpu/source-*")
    assert entry["sources"]["plain"]["fingerprint"] == model_fingerprint(load(folder, source.weights))


def test_one_failing_cell_leaves_the_others(job: Job) -> None:
    broken = dataclasses.replace(job, cell=job.cell.but(row="broken", model="resnet-9000"))
    outcome = run_campaign([broken, job])
    assert list(outcome.failed) == [broken.title]
    assert "unknown" in outcome.failed[broken.title]
    assert outcome.done == [path_of(job)]
    with pytest.raises(UserError, match="--jobs"):
        run_campaign([job], at_once=0)


WORKER = """
import sys, pickle
from pathlib import Path
from typing import Any
from bivallate.reproduce.running import run_job
run_job(pickle.loads(Path(sys.argv[1]).read_bytes()))
"""


@pytest.mark.slow
def test_a_killed_cell_goes_on_to_the_same_figures(job: Job, tmp_path: Path) -> None:
    import pickle

    long = dataclasses.replace(job, cell=job.cell.but(epochs=15))
    apart = dataclasses.replace(long, runs=tmp_path / "whole", out=tmp_path / "whole", table="T-W")
    whole = json.loads(run_job(apart).read_text())
    (tmp_path / "job").write_bytes(pickle.dumps(long))
    process = subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path / "job")])
    metrics = long.runs / "T-X" / "cpu" / f"{long.cell.name}-seed0" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not metrics.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not path_of(long).exists()
    done = len(metrics.read_text().splitlines())
    assert 1 <= done < 15  # killed in the middle
    assert run_campaign([long]).failed == {}
    resumed = json.loads(path_of(long).read_text())
    for name in ("SA", "PGD", "AA", "FOSC", "FOSC, ball"):
        assert resumed["columns"][name] == whole["columns"][name]


@pytest.mark.slow
def test_several_at_once_and_a_process_that_dies(job: Job, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "fatal.py").write_text("import os\ndef make(**_):\n    os._exit(7)\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.syspath_prepend(str(tmp_path))
    dying = dataclasses.replace(job, cell=job.cell.but(row="dying", model="fatal:make"))
    outcome = run_campaign([dying, job], at_once=2)
    assert outcome.done == [path_of(job)]
    assert outcome.failed == {dying.title: "its process died (exit status 7)"}


CAMPAIGN = """
import multiprocessing, pickle, sys, time
from pathlib import Path
from typing import Any
from bivallate.reproduce.campaign import run_campaign
if __name__ == "__main__":
    jobs = pickle.loads(Path(sys.argv[1]).read_bytes())
    started = lambda _: print(*(p.pid for p in multiprocessing.active_children()), flush=True)
    run_campaign(jobs, at_once=2, say=started)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="asks /proc which processes live")
def test_workers_end_with_a_killed_campaign(job: Job, tmp_path: Path) -> None:
    import pickle

    jobs = [dataclasses.replace(job, seed=seed, cell=job.cell.but(epochs=10_000)) for seed in (0, 1)]
    (tmp_path / "jobs").write_bytes(pickle.dumps(jobs))
    (tmp_path / "campaign.py").write_text(CAMPAIGN)
    command = [sys.executable, str(tmp_path / "campaign.py"), str(tmp_path / "jobs")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    workers: list[str] = []
    while len(workers) < 2 and (line := process.stdout.readline()):
        workers = line.split()
    assert len(workers) == 2
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 60
    while any(map(_lives, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_lives, workers))


def _lives(pid: str) -> bool:
    place = Path("/proc") / pid / "stat"
    try:
        return place.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_page_is_rebuilt_from_records_alone(tmp_path: Path) -> None:
    out, target = tmp_path / "results", tmp_path / "docs" / "results.md"
    empty = page(out)
    assert "- T-B1 at scale `cpu`" in empty
    assert "not run" in empty
    group = "MNIST tiny-CNN linf"
    cells = {c.row: c for c in at_scale(find("T-B1"), "cpu") if c.group == group}
    for row, good in (("AT", 60), ("MAIL", 80)):
        record = by_hand(row, [i < good for i in range(100)], group=group, table="T-B1", cell=cells[row])
        keep(record, out, "cpu", f"{row.lower()}-mnist-tiny-cnn-linf")
    first = write_page(out, target).read_bytes()
    assert write_page(out, target).read_bytes() == first
    text = first.decode()
    assert "- T-B1 at scale `cpu`" not in text
    assert (
        "- T-B1 `cpu`, MNIST tiny-CNN linf: MAIL above AT in PGD (not so in the paper's figures): **conf"
        in text
    )
    assert "Claims: 1 confirmed, 0 not confirmed, 0 undecided." in text
    (at,) = [line for line in text.splitlines() if line.startswith("| AT |") and "60.00" in line]
    assert "| 95.9 | 60.00 [50.2, 69.1] |" in at
    assert "| GAIRAT | 99.1 | not run |" in text
    slower = by_hand("AT", [True] * 100, seed=1, group=group, table="T-B1", cell=cells["AT"])
    slower.entry["machine"]["processor"] = "another"
    slower.entry["columns"]["s/epoch"]["value"] = 9999.0
    keep(slower, out, "cpu", "at-mnist-tiny-cnn-linf")
    (at,) = [line for line in page(out).splitlines() if line.startswith("| AT |") and "2 seeds" in line]
    assert "| 101 |" in at  # seconds of two machines have no mean
    lacking = "at-mnist-tiny-cnn-linf-seed0, at-mnist-tiny-cnn-linf-seed1, mail-mnist-tiny-cnn-linf-seed0"
    assert f'for columns that they lack ("Clean", "AA", "AA Tail-30"): {lacking}.' in page(out)
    other = by_hand("GAIRAT", [True] * 100, group=group, table="T-B1", cell=cells["GAIRAT"].but(epochs=3))
    place = keep(other, out, "cpu", "gairat-mnist-tiny-cnn-linf")
    assert "| GAIRAT | 99.1 | not run |" in page(out)
    assert "Left out, because their cell has been defined otherwise since: gairat-mnist" in page(out)
    place.unlink()
    (out / "T-B1" / "cpu" / "damaged-seed0.json").write_text("{")
    with pytest.raises(UserError, match=r"damaged-seed0\.json is not a readable record"):
        page(out)


def test_the_command_runs_a_table_and_shows_both_sides(tmp_path: Path, capsys) -> None:
    place = ["--out", str(tmp_path / "results"), "--runs", str(tmp_path / "runs"), "--device", "cpu"]
    assert command(["reproduce", "T-B7", "--only", "6", "1", "--list", *place]) == 0
    assert capsys.readouterr().out.count("to run") == 2
    assert command(["reproduce", "T-B7", "--only", "6", "1", *place]) == 0
    shown = capsys.readouterr()
    assert "figures mean nothing" in shown.err
    assert "| 6 | 86.1 |" in shown.out
    assert "| 5 | 86.9 | not run |" in shown.out
    assert "6 above 1 in PGD" in shown.out
    assert (tmp_path / "results" / "T-B7" / "smoke.tex").read_text().count(r"\begin{tabular}") == 2
    assert len(read_records(tmp_path / "results", "T-B7", "smoke")) == 2
    assert command(["reproduce", "T-B7", "--only", "6", "1", "--format", "json", *place]) == 0
    assert json.loads(capsys.readouterr().out)["records"] == 2
    assert command(["reproduce", "T-Q1"]) == 2
    assert "unknown table 'T-Q1'" in capsys.readouterr().err
    page_of = ["reproduce", "--tables", "--docs", str(tmp_path / "page.md"), "--out"]
    assert command([*page_of, str(tmp_path / "results")]) == 0
    assert command([*page_of, str(tmp_path / "elsewhere")]) == 2  # which would empty the page
    assert "elsewhere holds no record" in capsys.readouterr().err
    assert "T-B7 at scale `cpu`" in (tmp_path / "page.md").read_text()


def test_records_of_something_else_are_refused(tmp_path: Path) -> None:
    record = by_hand("AT", [True] * 10)
    strange = Record({**record.entry, "schema": "other"}, record.path)
    keep(strange, tmp_path, "cpu", "at-g")
    with pytest.raises(UserError, match="is not a record"):
        read_records(tmp_path, "T-X", "cpu")


def test_a_copy_is_no_second_seed(tmp_path: Path) -> None:
    record = by_hand("AT", [True] * 10)
    keep(record, tmp_path, "cpu", "at-g")
    keep(record, tmp_path, "cpu", "at-g-copy")
    with pytest.raises(
        UserError, match=r"at-g-copy-seed0\.json and at-g-seed0\.json are both of AT, g, seed 0"
    ):
        read_records(tmp_path, "T-X", "cpu")


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("columns", "PGD", "value"), 0.999, "PGD is 0.999, and 0.6 by its points"),
        (("columns", "PGD", "value"), None, "value"),
        (("machine",), {"gpu": None, "processor": "p", "threads": 1}, "torch"),
        (("commit",), ..., "commit"),
        (("training",), {"forward_per_row": 1, "backward_per_row": 1, "history": []}, "has no epoch"),
    ],
)
def test_a_damaged_record_is_said_to_be_one(
    path: tuple[str, ...], value: Any, said: str, tmp_path: Path
) -> None:
    entry = by_hand("AT", [k < 6 for k in range(10)]).entry
    *outer, last = path
    place = entry
    for key in outer:
        place = place[key]
    place.pop(last) if value is ... else place.update({last: value})
    keep(Record(entry, Path("x")), tmp_path, "cpu", "at-g")
    with pytest.raises(UserError, match=f"at-g-seed0.json is not a readable record .*{said}"):
        read_records(tmp_path, "T-X", "cpu")


def test_titles_name_the_cell(tiny: Cell, job: Job) -> None:
    assert job.title == "T-X cpu: AT, digits, seed 0"
    assert tiny.name == "at-digits"
