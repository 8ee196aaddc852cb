"""CIFAR-10 with PreActResNet-18 and ResNet-18 on a GPU, in order of worth, at the papers' settings.

    BIVALLATE_DATA=data python benchmarks/campaign_gpu.py [--minutes 9] [--out results] [--runs FOLDER]

Each cell is recorded in results/ as it ends. With --minutes the script stops in good time, in the middle of a
training too, and a later call goes on from there; the last thing it prints is a short table of what is done.
`--scale smoke --device cpu` tests the path in a minute.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from pathlib import Path

from bivallate.reproduce.campaign import path_of, run_campaign, to_stderr
from bivallate.reproduce.papers.catalogue import find
from bivallate.reproduce.planning import jobs_of
from bivallate.reproduce.records import read_records
from bivallate.reproduce.rendering import figure
from bivallate.reproduce.running import Job
from bivallate.run.progress import Spoken
from bivallate.run.signals import Interrupted

ORDER = (  # table, rows (empty: all), group
    ("T-F1", ("FAST-AT", "FAST-BAT", "FAST-AT-GA", "PGD-2-AT", "N-FGSM"), "CIFAR-10 @8"),
    ("T-D1", ("AT", "MAIL", "GAIRAT", "DONE-ADAM", "DONE-PGD", "DONE-GD"), "balanced"),
    ("T-D1", ("AT", "MAIL", "GAIRAT", "DONE-ADAM", "DONE-PGD", "DONE-GD"), "imbalanced 0.2"),
    ("T-F1", ("FAST-AT", "FAST-BAT", "FAST-AT-GA", "PGD-2-AT", "N-FGSM"), "CIFAR-10 @16"),
    ("T-D4", (), "fast"),
)


def plan(chosen: argparse.Namespace) -> list[Job]:
    """The jobs of ORDER."""
    jobs: list[Job] = []
    for name, rows, group in ORDER:
        settings = {
            "out": chosen.out,
            "runs": chosen.runs,
            "device": chosen.device,
            "threads": chosen.threads,
        }
        found = jobs_of(find(name), chosen.scale, seeds=range(chosen.seeds), only=rows, **settings)
        jobs += [job for job in found if job.cell.group == group]
    return jobs


def main() -> int:
    """All cells of ORDER, each once, within the time given."""
    chosen = arguments()
    jobs = plan(chosen)
    if chosen.limit:
        jobs = jobs[: chosen.limit]
    until = time.monotonic() + 60 * chosen.minutes
    alarm = threading.Timer(60 * chosen.minutes, os.kill, (os.getpid(), signal.SIGINT))
    alarm.daemon = True
    alarm.start()
    failed = 0
    try:
        failed = len(run_campaign(jobs, say=to_stderr, until=until, shown=Spoken).failed)
    except (Interrupted, KeyboardInterrupt) as stopped:
        to_stderr(f"stopped: {stopped or 'time is up'}; call it again to go on")
    finally:
        alarm.cancel()
        summary(jobs, chosen.out)
    return 1 if failed else 0


def arguments() -> argparse.Namespace:
    """From the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", default="full", choices=("smoke", "full"))
    parser.add_argument("--minutes", type=float, default=1e5, help="stop, saved, after so many")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--limit", type=int, default=0, help="only the first so many cells")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=4, help="of the processor, for loading")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--runs", type=Path, default=Path("runs") / "reproduce")
    return parser.parse_args()


def summary(jobs: list[Job], out: Path) -> None:
    """A short table: one line a cell."""
    for job in jobs:
        if not path_of(job).exists():
            print(f"{job.title}: not run")
            continue
        records = {record.path: record for record in read_records(out, job.table, job.scale)}
        columns = records[path_of(job)].columns
        print(
            f"{job.title}: "
            + ", ".join(f"{name} {figure({**e, 'std': None})}" for name, e in columns.items())
        )


if __name__ == "__main__":
    sys.exit(main())
