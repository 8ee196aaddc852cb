"""Run the cells of the papers' tables that two cores can finish, the most important first.

    BIVALLATE_DATA=data OMP_NUM_THREADS=1 python benchmarks/campaign_cpu.py [--jobs 1] [--hours 8]

Each cell is recorded in results/ when it ends. The command can be stopped at any time and started again:
interrupted trainings continue, and recorded cells are skipped.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from bivallate.reproduce.campaign import run_campaign, to_stderr
from bivallate.reproduce.paper_table import Scale
from bivallate.reproduce.papers.catalogue import find
from bivallate.reproduce.planning import jobs_of
from bivallate.reproduce.running import Job
from bivallate.run.progress import TerminalProgress
from bivallate.run.signals import Interrupted

FIRST = ("AT", "DONE-ADAM", "MAIL", "BASTION", "GAIRAT", "BiLAW")
SINGLE = ("FAST-AT", "FAST-BAT")
EQUAL = ("FAST-BAT (equal cost)", "N-FGSM (equal cost)")
BALANCED = ("AT", "MAIL", "GAIRAT", "FAT", "DONE-PGD", "DONE-ADAM", "DONE-GD")
ORDER = (  # table, rows (empty: all), group, seeds
    ("T-F1", (*SINGLE, "FAST-AT-GA", "PGD-2-AT", "N-FGSM"), "CIFAR-10 @8", (0,)),
    ("T-F1", SINGLE, "CIFAR-10 @16", (0, 1)),
    ("T-D1", BALANCED, "balanced", (0,)),
    ("T-Y2", (), "CIFAR-10", (0,)),
    ("T-Y1", ("Standard", "Curriculum", "Dynamic"), "CIFAR-10", (0,)),  # T-Y2's trainings, white-box
    ("T-B2", ("AT", "GAIRAT", "MAIL", "TRADES (1/lambda=6)", "BiLAW"), "small-CNN .031", (0,)),
    ("T-D1", BALANCED, "imbalanced", (0,)),
    ("T-B1", EQUAL, "MNIST tiny-CNN", (0,)),
    ("T-B1", EQUAL, "F-MNIST", (0,)),
    ("T-B1", ("BiLAW", "BiLAW-TRADES"), "MNIST tiny-CNN", (0, 1, 2)),
    ("T-Y1", (), "MNIST", (0,)),
    ("T-S1", (), "CIFAR-10", (0,)),
    ("T-C1", (), "balanced", (0,)),
    ("T-B1", FIRST, "MNIST tiny-CNN", (0, 1, 2)),
    ("T-B1", (), "MNIST tiny-CNN", (0,)),
    ("T-B1", (), "F-MNIST", (0,)),
)


def plan(scale: Scale, out: Path, runs: Path) -> list[Job]:
    """List the jobs of ORDER, each once."""
    jobs: list[Job] = []
    for name, rows, group, seeds in ORDER:
        found = jobs_of(find(name), scale, seeds=seeds, only=rows, out=out, runs=runs)
        jobs += [job for job in found if job.cell.group.startswith(group) and job not in jobs]
    return jobs


def main() -> int:
    """Run all cells of ORDER, each once."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=1, help="cells at once, one thread each")
    parser.add_argument("--scale", default="cpu", choices=("smoke", "cpu"))
    parser.add_argument("--hours", type=float, default=1e6, help="begin no cell after so many")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--runs", type=Path, default=Path("runs") / "reproduce")
    chosen = parser.parse_args()
    jobs = plan(chosen.scale, chosen.out, chosen.runs)
    until = time.monotonic() + 3600 * chosen.hours
    try:
        outcome = run_campaign(jobs, at_once=chosen.jobs, say=to_stderr, until=until, shown=TerminalProgress)
    except Interrupted as error:
        to_stderr(str(error))
        return 130
    to_stderr(
        f"{len(outcome.done)} cells done, {len(outcome.skipped)} were there, {len(outcome.failed)} failed"
    )
    return 1 if outcome.failed else 0


if __name__ == "__main__":
    sys.exit(main())
