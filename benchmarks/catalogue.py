"""Train every method of the catalogue on digits with three seeds: the table of docs/methods.md.

    python -m benchmarks.catalogue [--jobs N] [--only METHOD ...]     trains what is missing, writes the table
    python -m benchmarks.catalogue --table                            writes the table from the records alone

One JSON record a cell in results/catalogue/; what is there is not trained again, so it can be interrupted at
any time.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bivallate.evaluation.statistics import gini, wilson

if TYPE_CHECKING:  # torch is imported by the processes that train
    from torch.nn import Module

    from bivallate.data import Dataset
    from bivallate.method import Method
    from bivallate.run.config import Config

RECORDS, PAGE = Path("results/catalogue"), Path("docs/methods.md")
EPS, EPOCHS, SEEDS, SHARE = 0.2, 24, (0, 1, 2), 0.7
COLUMNS = (
    "family", "method", "SA", "RA-PGD-20", "RA-Tail-30", "worst class", "Gini", "RA last",
    "passes over training", "ESS", "seeds", "70 % of AT",
)  # fmt: skip

# One sentence for each method that stays below 70 % of the robust accuracy of AT, or is not a defence at all.
REASONS_FILE = Path("benchmarks/catalogue_reasons.json")


def cell(task: tuple[str, int]) -> str:
    """Train and attack one method with one seed, and write its record."""
    name, seed = task
    if (RECORDS / f"{name}-{seed}.json").exists():
        return f"{name} seed {seed}: there already"
    import torch

    import bivallate as bv
    from bivallate.files import write_json
    from bivallate.methods.entries import create, registry
    from bivallate.run.execution import execute

    torch.set_num_threads(1)
    others = {"others": (bv.L2(0.75), bv.L1(2.0))} if "others" in registry()[name].parameters else {}
    method = create(name, bv.Linf(EPS), **others)
    config = configured(method, seed)
    dataset = bv.data.load("digits", seed=seed)
    model = digits_network(dataset, seed)
    folder = Path("runs/catalogue") / f"{name}-{seed}"
    began = time.monotonic()
    try:
        run = execute(config, dataset, model, folder, overwrite=True)
    except bv.UserError as error:
        failure = {"method": name, "seed": seed, "failed": str(error), "commit": provenance()["commit"]}
        write_json(RECORDS / f"{name}-{seed}.json", failure)
        return f"{name} seed {seed}: {error}"
    scores = {
        w: bv.evaluate(bv.load(folder, w), dataset.test, method.threat, "pgd-20") for w in ("best", "last")
    }
    best, last = scores["best"], scores["last"]
    record = {
        "method": name,
        "seed": seed,
        "eps": EPS,
        "epochs": config.epochs,
        "clean": best.clean_accuracy,
        "robust": best.robust_accuracy,
        "tail_30": best.tail(30),
        "per_class": best.per_class,
        "class_points": best.counts.tolist(),
        "last_clean": last.clean_accuracy,
        "last_robust": last.robust_accuracy,
        "forward": run.history[-1]["total_forward"],
        "backward": run.history[-1]["total_backward"],
        "effective": statistics.fmean(line["effective"] for line in run.history),
        "effective_last": run.history[-1]["effective"],
        "seconds": time.monotonic() - began,
        **provenance(),
    }
    write_json(RECORDS / f"{name}-{seed}.json", record)
    return f"{name} seed {seed}: clean {best.clean_accuracy:.1%} robust {best.robust_accuracy:.1%}"


def provenance() -> dict[str, str]:
    """The commit and the kind of machine, as a record has them."""
    from bivallate.reproduce.machine import commit, machine

    of = machine("cpu", 1)
    return {
        "commit": commit().get("id", "unknown")[:7],
        "machine": "{processor}, {instructions}, one thread of {cores} cores, torch {torch}".format(**of),
    }


def configured(method: Method, seed: int) -> Config:
    """The training of the catalogue, for any method and threat."""
    import bivallate as bv
    from bivallate.run.config import Config, Data, Model, Validation

    return Config(
        method=method,
        data=Data(name="digits"),
        model=Model(name="tiny-cnn"),
        optimizer=bv.SGD(0.1 / method.replays if method.accumulate else 0.1),
        rate=bv.Triangle(0.4),
        epochs=EPOCHS if method.accumulate else max(2, round(EPOCHS / method.replays)),
        batch_size=64,
        seed=seed,
        validation=Validation(steps=10, rows=1000),
        threads=1,
    )


def digits_network(dataset: Dataset, seed: int) -> Module:
    """The network of the catalogue, untrained."""
    import bivallate as bv

    return bv.models.create(
        "tiny-cnn", num_classes=10, shape=(1, 8, 8), mean=dataset.mean, std=dataset.std, seed=seed
    )


def table() -> str:
    """The text of docs/methods.md from the records."""
    from bivallate.methods.entries import registry

    entries = {n: e for n, e in registry().items() if e.make.__module__.startswith("bivallate.")}
    records = _records()
    reasons: dict[str, str] = json.loads(REASONS_FILE.read_text()) if REASONS_FILE.exists() else {}
    reference = [r["robust"] for r in records.get("at", []) if "robust" in r]
    bar = SHARE * statistics.fmean(reference) if reference else None
    rows, remarks = [], []
    for name, entry in sorted(entries.items(), key=lambda pair: (pair[1].family, pair[0])):
        tried, start = records.get(name, []), f"| {entry.family} | [{name}](methods/{name}.md) |"
        found = [r for r in tried if "robust" in r]
        if not found:
            said = "ended with an error" if tried else "not run"
            rows.append(f"{start} {said} |{' |' * (len(COLUMNS) - 3)}")
            continue
        robust = statistics.fmean(r["robust"] for r in found)
        reached = "yes" if bar is not None and robust >= bar else "**no**"
        if reached != "yes":
            remarks.append(f"- **{name}** ({robust:.1%}): {reasons.get(name, 'reason not established')}")
        seeds = str(len(found)) if len(found) == len(tried) else f"{len(found)} of {len(tried)}"
        rows.append(f"{start} {' | '.join([*_figures(found), seeds, reached])} |")
    commits = sorted({r["commit"] for rs in records.values() for r in rs if "commit" in r})
    machines = sorted({r["machine"] for rs in records.values() for r in rs if "machine" in r})
    points = [n for rs in records.values() for r in rs for n in r.get("class_points", []) if n]
    half = min(points) // 2
    low, high = (f"{100 * end:.0f}" for end in wilson(half, 2 * half))
    return HEAD.format(
        eps=EPS, epochs=EPOCHS, bar="not known" if bar is None else f"{bar:.1%}", commits=", ".join(commits),
        machines="; ".join(machines), rows="\n".join(rows), remarks="\n".join(remarks) or "None.",
        columns=f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}",
        fewest=min(points), most=max(points), low=low, high=high,
    )  # fmt: skip


def _figures(found: list[dict[str, Any]]) -> list[str]:
    """The cells of one method, from SA to ESS."""
    return [
        *(_spread(100 * r[key] for r in found) for key in ("clean", "robust", "tail_30")),
        _spread(100 * worst(r) for r in found),
        _spread((inequality(r) for r in found), "{:.3f}"),
        _spread(100 * r["last_robust"] for r in found),
        f"{_mean(found, 'forward', '{:.0f}')}F + {_mean(found, 'backward', '{:.0f}')}B",
        _mean(found, "effective", "{:.0%}"),
    ]


def worst(record: dict[str, Any]) -> float:
    """The lowest robust accuracy of a class that has points."""
    return min(share for share in record["per_class"] if share is not None)


def inequality(record: dict[str, Any]) -> float:
    """The Gini coefficient of the classes' robust accuracies; infinite if all are zero, as in `compare`."""
    found = gini(*class_hits(record))
    return math.inf if found is None else found


def class_hits(record: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Robust points of each class, and points of each; a class without points has neither."""
    counts = np.array(record["class_points"])
    hits = [round((share or 0) * n) for share, n in zip(record["per_class"], counts.tolist(), strict=True)]
    return np.array(hits), counts


HEAD = """# The catalogue on digits

Every method with its default parameters, on scikit-learn's digits: tiny-cnn, Linf eps = {eps}, {epochs}
epochs (`free-at` three, for it updates in each of eight replays), batch 64, SGD with a triangular rate up to
0.1 (`yopo` 0.02, for it sums the gradients of five replays), three seeds; `max-at`, `msd` and `e-at` train
under L2 0.75 and L1 2 too ([three threats](threats.md)). Mean and, in brackets, the lowest and highest seed.
SA is clean accuracy, RA robust accuracy, and RA-Tail-30 that of the weakest 30 % of the
classes ([glossary](glossary.md)); passes are forward (F) and backward (B) ones an example. SA and RA are of
the epoch that was most robust on held-out images, attacked by PGD-20 on the 359 test images; RA last is of
the last epoch. ESS is the effective sample
size of the weights, as a fraction of the minibatch, averaged over training. A training that ended with an
error counts among the seeds, not in the means. The last column asks for 70 % of the robust accuracy of `at`:
{bar}.

Worst class is the lowest robust accuracy of a class, and Gini the Gini coefficient of the classes' robust
accuracies, 0 if all are equal; both are of the same epoch and attack as RA. A class has only {fewest} to
{most} test images: where half of them withstand the attack, the 95 % interval (Wilson) of one seed reaches
from {low} to {high} %. The same images choose the worst class and measure it, so it is too low on average.

Made by `python -m benchmarks.catalogue` (seeds 0, 1, 2; commits {commits}; {machines}).
Another kind of processor rounds otherwise, and a training [carries that on](demo.md); a machine that is
given as x86_64 alone does not tell its kind.
The settings are the same for all and were tuned for none: this table shows which methods train with them,
not which is best. The last column is of the most robust epoch; where RA last is far below RA, as for all DONE
methods, it holds for that epoch alone.

{columns}
{rows}

## Below the bar, and why

{remarks}

The cards in [methods/](methods/index.md) say what each method is, what it costs and where it departs from its
paper.
"""


def _records() -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(RECORDS.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        found.setdefault(record["method"], []).append(record)
    return found


def _mean(records: list[dict[str, Any]], key: str, form: str) -> str:
    return form.format(statistics.fmean(r[key] for r in records))


def _spread(each: Iterable[float], form: str = "{:.1f}") -> str:
    values = list(each)
    mean, low, high = (form.format(v) for v in (statistics.fmean(values), min(values), max(values)))
    return f"{mean} [{low}, {high}]"


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=None)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args(arguments)
    from bivallate.methods.entries import registry

    names = options.only or sorted(
        n for n, e in registry().items() if e.make.__module__.startswith("bivallate.")
    )
    RECORDS.mkdir(parents=True, exist_ok=True)
    tasks = [(n, s) for s in SEEDS for n in names if not (RECORDS / f"{n}-{s}.json").exists()]
    if tasks and not options.table:
        with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
            for k, line in enumerate(pool.imap_unordered(cell, tasks), 1):
                print(f"[{k}/{len(tasks)}] {line}", flush=True)
    PAGE.write_text(table(), encoding="utf-8")
    print(f"{PAGE} written", file=sys.stderr)


if __name__ == "__main__":
    main()
