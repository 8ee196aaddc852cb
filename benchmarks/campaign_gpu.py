"""Run the CIFAR-10 cells of the papers' tables on a GPU at the papers' settings, most important first.

    BIVALLATE_DATA=data python -m benchmarks.campaign_gpu [--minutes 9] [--out results] [--runs FOLDER]

The networks are PreActResNet-18 and ResNet-18. Each cell is recorded in --out when it ends; cells that are
recorded in --known are left out. With --minutes the script stops in time, even within a training, and a later
call continues; it prints a short table of the finished cells last. As many cells are trained at once as fill
the device. `benchmarks/filling.py` finds that number by a probe of some twenty seconds, once for each
machine; --jobs N skips it. Records say how many trainings shared the device, because their seconds are longer
then. Methods that gain by it are trained in bfloat16, none with --float32. `--scale cpu` trains the narrow
networks of CIFAR-10's tables, the longest first.

Processes take turns on a device unless NVIDIA's multi-process service runs (`nvidia-cuda-mps-control -d`):
with it 8 trainings of a narrow network did 7,800 images a second together on an H200, without it 4,200 (AT,
PGD-10, float32; one alone 2,300).

If the data can only be copied to the machine in parts, `--bring FOLDER` adds the files of a folder to those
that earlier calls copied to BIVALLATE_DATA; the call then ends if some are still missing.
`--scale smoke --device cpu` tests the path in a minute.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

from benchmarks.filling import filled
from bivallate import data
from bivallate.errors import UserError
from bivallate.files import make_folder
from bivallate.reproduce.campaign import path_of, pending, run_campaign, to_stderr
from bivallate.reproduce.cell import Cell
from bivallate.reproduce.papers.catalogue import find
from bivallate.reproduce.planning import jobs_of
from bivallate.reproduce.records import read_records
from bivallate.reproduce.rendering import figure
from bivallate.reproduce.running import Job
from bivallate.reproduce.scaling import quick
from bivallate.run.progress import TerminalProgress
from bivallate.run.signals import Interrupted

FAST = ("FAST-AT", "FAST-BAT", "FAST-AT-GA", "PGD-2-AT", "N-FGSM")
DONE = ("AT", "MAIL", "GAIRAT", "FAT", "DONE-ADAM", "DONE-PGD", "DONE-GD")
BILAW = ("AT", "GAIRAT", "MAIL", "TRADES (1/lambda=6)", "BiLAW")
LEARNT = ("AT", "MAIL", "GAIRAT", "TRADES (1/lambda=6)", "WMMR", "Non-parametric", "BiLAW", "BiLAW-TRADES")
EQUAL = ("FAST-BAT (equal cost)", "N-FGSM (equal cost)")
ORDER = (  # table, rows (empty: all), group, seeds (empty: those asked for)
    ("T-F1", FAST, "CIFAR-10 @8", ()),
    ("T-F1", FAST, "CIFAR-10 @16", ()),
    ("T-D1", DONE, "balanced", ()),
    ("T-Y2", (), "CIFAR-10", ()),
    ("T-B2", BILAW, "small-CNN .031", ()),
    ("T-D1", DONE, "imbalanced 0.2", ()),
    ("T-D4", (), "fast", ()),
)
DONES = ("DONE-GD", "DONE-ADAM", "DONE-PGD", "DONE-ADAM, r >= 1")
NARROW = (
    ("T-D1", DONES, "balanced", (0,)),
    ("T-Y2", (), "CIFAR-10", (0,)),
    ("T-D1", ("AT", "MAIL", "GAIRAT", "FAT"), "balanced", (0,)),
    ("T-F1", FAST, "CIFAR-10 @8", (0,)),
    ("T-F1", ("FAST-BAT", "FAST-AT"), "CIFAR-10 @16", (0, 1)),
    ("T-B2", LEARNT[::-1], "small-CNN .031", (0,)),
    ("T-C1", ("FAAL", "CFA", "TRADES", "DAFA", "WAT", "CFOL"), "balanced", (0,)),
    ("T-S1", ("PGD-AT",), "CIFAR-10 @16", (0,)),
    ("T-S1", (), "CIFAR-10 @8", (0,)),
    ("T-S1", (), "CIFAR-10 @16", (0,)),
    ("T-B2", LEARNT[::-1], "small-CNN .0078", (0,)),
    ("T-C1", (), "balanced", (0,)),
    ("T-D1", (*DONES, "AT", "MAIL", "GAIRAT", "WMMR"), "imbalanced 0.2", (0,)),
    ("T-B1", ("BiLAW", "BiLAW-TRADES"), "MNIST tiny-CNN linf", (0, 1, 2)),
    ("T-Y1", ("Dynamic", "Standard", "Curriculum", "Unsecured"), "MNIST", (0,)),
    ("T-B1", EQUAL, "MNIST tiny-CNN linf", (0,)),
    ("T-F1", FAST, "CIFAR-10 @8", (1, 2)),
)
SIZES = (1, 4, 8, 12, 16)  # of narrow networks at once


def plan(chosen: argparse.Namespace) -> list[Job]:
    """List the jobs of ORDER, or of NARROW at scale cpu, one seed after another."""
    where = {"out": chosen.out, "runs": chosen.runs, "device": chosen.device, "threads": chosen.threads}
    jobs: list[Job] = []
    order = NARROW if chosen.scale == "cpu" else ORDER
    rounds = [[(entry, seed) for entry in order if not entry[3]] for seed in range(chosen.seeds)]
    rounds.append([(entry, seed) for entry in order for seed in entry[3]])
    for (name, rows, group, _), seed in itertools.chain.from_iterable(rounds):
        found = jobs_of(find(name), chosen.scale, seeds=(seed,), only=rows, **where)
        there = {path_of(job) for job in jobs}
        jobs += [job for job in found if job.cell.group == group and path_of(job) not in there]

    def suited(cell: Cell) -> Cell:
        made = plain(cell) if chosen.float32 else quick(cell)
        return made.but(settings={**made.settings, "graphs": chosen.graphs})

    for k, job in enumerate(jobs):
        sources = {name: suited(cell) for name, cell in job.sources.items()}
        jobs[k] = dataclasses.replace(job, cell=suited(job.cell), sources=sources)
    return jobs[: chosen.limit] if chosen.limit else jobs


def plain(cell: Cell) -> Cell:
    """The cell in float32 and the usual memory layout."""
    return cell.but(settings={**cell.settings, "precision": "float32", "channels_last": False})


def unrecorded(jobs: list[Job], known: Path) -> list[Job]:
    """The jobs without a record, in the folder of results or among the known records."""
    return [job for job in pending(jobs) if pending([dataclasses.replace(job, out=known)])]


def bring(pieces: Path, folder: Path) -> str:
    """Copies files into the data folder, under their own names; what CIFAR-10 still lacks, or nothing.

    Raises UserError where there is nothing to bring.
    """
    files = [path for path in sorted(pieces.rglob("*")) if path.is_file()] if pieces.is_dir() else []
    if not files:
        raise UserError(f"--bring {pieces} is no folder with files of a data set")
    for path in files:
        target = folder / path.relative_to(pieces)
        make_folder(target.parent)
        half = target.with_name(f".{target.name}.part")
        shutil.copyfile(path, half)
        half.replace(target)
    try:
        data.load("cifar10", data_dir=folder)
    except UserError as error:
        return str(error)
    return ""


def main(given: list[str] | None = None) -> int:
    """Run all cells of ORDER, each once, within the given time."""
    begun, chosen = time.monotonic(), arguments(given)
    try:
        if chosen.bring is not None:
            lacking = bring(chosen.bring, Path(os.environ.get("BIVALLATE_DATA", "data")))
            if lacking:
                to_stderr(f"not all of the data are here: {lacking}")
                return 0
        return work(chosen, begun + 60 * chosen.minutes)
    except UserError as error:
        to_stderr(str(error))
        return 2


def work(chosen: argparse.Namespace, until: float) -> int:
    """Run the campaign up to a time of `time.monotonic`."""
    jobs, over = plan(chosen), threading.Event()

    def ring() -> None:
        if not over.wait(until - time.monotonic()):
            os.kill(os.getpid(), signal.SIGINT)

    if until > time.monotonic():  # else no cell is begun
        threading.Thread(target=ring, daemon=True).start()
    failed = 0
    try:
        waiting = unrecorded(jobs, chosen.known)
        size = chosen.jobs or (_filling(waiting[0], chosen.runs / "filling.json") if waiting else 1)
        waiting = [dataclasses.replace(job, together=size) for job in waiting]
        failed = len(
            run_campaign(waiting, at_once=size, say=to_stderr, until=until, shown=TerminalProgress).failed
        )
    except (Interrupted, KeyboardInterrupt) as stopped:
        to_stderr(f"stopped: {stopped or 'time is up'}; call it again to go on")
    finally:
        over.set()  # no alarm from here on
        summary(jobs, chosen.out, chosen.known)
    return 1 if failed else 0


def _filling(job: Job, kept: Path) -> int:
    """The number of jobs like this one to run at once."""
    return filled(job, kept, to_stderr, SIZES) if job.scale == "cpu" else filled(job, kept, to_stderr)


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", default="full", choices=("smoke", "cpu", "full"))
    parser.add_argument("--minutes", type=float, default=1e5, help="stop, saved, after so many")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--limit", type=int, default=0, help="only the first so many cells")
    parser.add_argument("--jobs", type=int, default=0, help="cells at once; 0: as many as fill the device")
    parser.add_argument("--float32", action="store_true", help="no bfloat16")
    parser.add_argument("--graphs", action="store_true", help="attacks of trainings as CUDA graphs")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=4, help="of the processor, for loading")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--known", type=Path, default=Path("results"), help="records of earlier calls")
    parser.add_argument("--runs", type=Path, default=Path("runs") / "reproduce")
    parser.add_argument("--bring", type=Path, help="folder with a part of the data")
    return parser.parse_args(given)


def summary(jobs: list[Job], *places: Path) -> None:
    """A short table with one line for each cell."""
    for job in jobs:
        there = [dataclasses.replace(job, out=out) for out in places]
        found = next((own for own in there if path_of(own).exists()), None)
        if found is None:
            print(f"{job.title}: not run")
            continue
        records = {record.path: record for record in read_records(found.out, job.table, job.scale)}
        columns = records[path_of(found)].columns
        told = ", ".join(f"{name} {figure({**e, 'std': None})}" for name, e in columns.items())
        print(f"{job.title}: {told}")


if __name__ == "__main__":
    sys.exit(main())
