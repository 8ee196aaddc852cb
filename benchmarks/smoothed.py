"""Audit ELLE and NuAT on other data than CIFAR-10: `python -m benchmarks.smoothed`.

Trains them, and PGD-10 AT and N-FGSM for comparison, on digits (the catalogue's setting) and on 2,000 images
of Fashion-MNIST, with the sentinel watching, and audits the weights that were best on held-out images. Writes
the table between the markers of docs/audit.md; records are in results/smoothed.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

import bivallate as bv
from bivallate.audits import audit
from bivallate.files import write_json, write_text
from bivallate.methods.entries import create
from bivallate.record import NonFinite
from bivallate.reproduce.machine import commit
from bivallate.run.config import Validation
from bivallate.run.folder import RunFolder

RECORDS, PAGE, RUNS = Path("results/smoothed"), Path("docs/audit.md"), Path("runs/smoothed")
BEGIN, END = "<!-- smoothed: begin -->", "<!-- smoothed: end -->"
METHODS = ("at", "n-fgsm", "nuat", "elle")
POINTS, BUDGET = 200, 200_000


@dataclass(frozen=True)
class Set:
    """A data set and the settings of training on it."""

    eps: float
    epochs: int
    rows: int
    seeds: tuple[int, ...]


SETS = {"digits": Set(0.2, 24, 0, (0, 1, 2)), "fashion-mnist": Set(0.1, 16, 2000, (0, 1))}


@cache
def load(name: str) -> bv.data.Dataset:
    """The images."""
    data, rows = bv.data.load(name), SETS[name].rows
    return data.but(train=data.train.subset(slice(0, rows))) if rows else data


def examine(name: str, method: str, seed: int) -> dict[str, Any]:
    """Train once and audit the result; of a training that diverges, say in which epoch."""
    plan, data = SETS[name], load(name)
    threat, folder = bv.Linf(plan.eps), RUNS / f"{name}-{method}-{seed}"
    about = {"data": name, "method": method, "seed": seed, "commit": commit().get("id", "unknown")[:7]}
    try:
        run = bv.train(
            "tiny-cnn", data, create(method, threat), epochs=plan.epochs, batch_size=64,
            optimizer=bv.SGD(0.1), rate=bv.Triangle(0.4), validation=Validation(10, 500), seed=seed,
            threads=1, out=folder, overwrite=True,
        )  # fmt: skip
    except NonFinite:
        return about | {"diverged_in_epoch": len(RunFolder(folder).read_metrics()) + 1}
    model = bv.load(folder)
    found = audit(model, data.test, threat, n=POINTS, budget_passes=BUDGET, seed=seed)
    alarms = Counter(alarm["kind"] for line in run.history for alarm in line["alarms"])
    return about | {
        "clean": found.clean,
        "accuracy": found.accuracy,
        "worst": found.worst,
        "verdict": found.verdict,
        "evidence": [check.name for check in found.failed_checks],
        "alarms": dict(alarms),
        "alignment": run.history[-1].get("sentinel_alignment"),
        "best_epoch": max(run.history, key=lambda line: line["robust"])["epoch"],
        "held_out": max(line["robust"] for line in run.history),
        "held_out_last": run.history[-1]["robust"],
    }


HEAD = (
    "| data | method | clean % | FGSM % | PGD-20 % | all attacks % | PGD-20 less all | alignment, last "
    "| sentinel's alarms | verdicts | evidence |\n"
    "| --- | --- | --: | --: | --: | --: | --: | --: | --- | --- | --- |"
)


def row(records: list[dict[str, Any]]) -> str:
    """A row of the table: means over the seeds whose training ended."""
    name = f"{records[0]['data']} | {records[0]['method']}"
    lost = [r["diverged_in_epoch"] for r in records if "diverged_in_epoch" in r]
    diverged = f"diverged in epoch {' and '.join(map(str, lost))}" * bool(lost)
    records = [r for r in records if "diverged_in_epoch" not in r]
    if not records:
        return f"| {name} |{' - |' * 7} {diverged} | - |"

    def mean(values: list[float]) -> float:
        return 100 * statistics.fmean(values)

    fgsm, pgd = (mean([r["accuracy"][key] for r in records]) for key in ("fgsm", "pgd"))
    worst, clean = mean([r["worst"] for r in records]), mean([r["clean"] for r in records])
    aligned = [r["alignment"] for r in records if r["alignment"] is not None]
    alignment = f"{statistics.fmean(aligned):.2f}" if aligned else "-"
    alarms = sum((Counter(r["alarms"]) for r in records), Counter())
    verdicts, evidence = (
        Counter(r["verdict"] for r in records),
        Counter(e for r in records for e in r["evidence"]),
    )

    def counted(found: Counter[str]) -> str:
        return ", ".join(f"{name} {count}" for name, count in found.most_common()) or "-"

    cells = (name, f"{clean:.1f}", f"{fgsm:.1f}", f"{pgd:.1f}",
             f"{worst:.1f}", f"{pgd - worst:.1f}", alignment, counted(alarms),
             ", ".join(filter(None, [counted(verdicts), diverged])), counted(evidence))  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Train what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--keep-page", action="store_true", help="print only, and leave the docs alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    RECORDS.mkdir(parents=True, exist_ok=True)
    rows, commits = [], set[str]()
    for name in options.sets:
        for method in METHODS:
            records = []
            for seed in SETS[name].seeds:
                path = RECORDS / f"{name}-{method}-{seed}.json"
                if not path.exists():
                    write_json(path, examine(name, method, seed))
                records.append(json.loads(path.read_text(encoding="utf-8")))
            rows.append(row(records))
            commits |= {r["commit"] for r in records}
            print(rows[-1], flush=True)
    seeds = "; ".join(f"{name} {', '.join(map(str, SETS[name].seeds))}" for name in options.sets)
    foot = (
        f"`python -m benchmarks.smoothed --sets {' '.join(options.sets)}`, commit "
        f"{', '.join(sorted(commits))}, one thread; audits of {POINTS} points at the quick level of the best "
        f"weights of a tiny-cnn, means over the seeds ({seeds})."
    )
    if not options.keep_page:
        head, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        _, _, tail = rest.partition(END)
        body = "\n".join([HEAD, *rows, "", foot])
        write_text(PAGE, f"{head}{BEGIN}\n\n{body}\n\n{END}{tail}")


if __name__ == "__main__":
    main()
