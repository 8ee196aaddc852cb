"""Measure whether training in bfloat16 costs accuracy, on one cell of a table with three seeds.

    BIVALLATE_DATA=data OMP_NUM_THREADS=1 python benchmarks/bfloat16.py [--seeds 0 1 2] [--only float32]

The cell is T-F1's Fast-AT on CIFAR-10 at 8/255, scale cpu. Interrupted trainings continue; those in bfloat16
are the campaign's own. Each result is kept in results/bfloat16/, and the table is printed at the end.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from bivallate.evaluation import attack_and_score
from bivallate.files import write_json
from bivallate.reproduce.cell import configure
from bivallate.reproduce.machine import commit, machine
from bivallate.reproduce.papers.catalogue import tables
from bivallate.reproduce.planning import jobs_of
from bivallate.reproduce.running import Job, trained
from bivallate.run.arithmetic import limit_threads
from bivallate.run.from_config import load_data
from bivallate.run.load_model import load
from bivallate.run.progress import TerminalProgress
from bivallate.run.signals import Interrupted

FORMATS = {"bfloat16": "bf16", "float32": "float32"}
COLUMNS = ("clean", "pgd-20", "last clean", "last pgd-20")


def main() -> None:
    """Train what is missing, evaluate it, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", choices=FORMATS, help="one of the formats")
    parser.add_argument("--out", type=Path, default=Path("results") / "bfloat16")
    parser.add_argument("--runs", type=Path, default=Path("runs") / "reproduce")
    chosen = parser.parse_args()
    for seed in chosen.seeds:
        for name in [chosen.only] if chosen.only else FORMATS:
            place = chosen.out / f"{name}-seed{seed}.json"
            if not place.exists():
                write_json(place, _result(name, seed, chosen.runs))
    print(_table(chosen.out))


def _result(name: str, seed: int, runs: Path) -> dict[str, Any]:
    (job,) = jobs_of(tables()["T-F1"], "cpu", seeds=(seed,), only=("FAST-AT",), groups=("CIFAR-10 @8",))
    limit_threads(job.threads)
    config = configure(job.cell, seed, job.device, job.threads).set("precision", FORMATS[name])
    dataset = load_data(config.data, seed)
    place = _place(job, name, runs)
    folder, best = trained(config, dataset, place, "best", TerminalProgress(f"{name} seed {seed}"))
    history = folder.read_metrics()
    scores = {
        "": attack_and_score(best, dataset.test, config.method.threat, "pgd-20"),
        "last ": attack_and_score(load(place, "last"), dataset.test, config.method.threat, "pgd-20"),
    }
    columns = {f"{w}clean": s.clean_accuracy for w, s in scores.items()}
    columns |= {f"{w}pgd-20": s.robust_accuracy for w, s in scores.items()}
    seconds = statistics.median(line["seconds"] for line in history)
    done = {"format": name, "seed": seed, "commit": commit(), "machine": machine("cpu", job.threads)}
    return done | {"epochs": len(history), "seconds_an_epoch": seconds, "columns": columns}


def _place(job: Job, name: str, runs: Path) -> Path:
    """The campaign's own folder for its own format; the other's apart, where no training of the campaign is
    taken for it: both are one definition."""
    runs = runs if name == "bfloat16" else runs / name
    return runs / job.table / job.scale / f"{job.cell.name}-seed{job.seed}"


def _table(out: Path) -> str:
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("*-seed*.json"))]
    lines = [
        "| format | seeds | " + " | ".join(COLUMNS) + " | s/epoch |",
        "| --- " * (len(COLUMNS) + 3) + "|",
    ]
    for name in FORMATS:
        mine = [entry for entry in found if entry["format"] == name]
        if mine:
            cells = [_spread([entry["columns"][column] for entry in mine]) for column in COLUMNS]
            seconds = statistics.median(entry["seconds_an_epoch"] for entry in mine)
            lines.append(f"| {name} | {len(mine)} | " + " | ".join(cells) + f" | {seconds:.0f} |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    spread = f" +- {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread}"


if __name__ == "__main__":
    try:
        main()
    except Interrupted as error:
        print(error, file=sys.stderr)
        sys.exit(130)
