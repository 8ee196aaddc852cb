"""Measure what `bivallate train METHOD --data X` reaches by default: the table of docs/defaults.md.

    python -m benchmarks.defaults [--data NAME ...] [--methods NAME ...] [--rows 2000]
    python -m benchmarks.defaults --table     writes the page from the records alone

Method, radius, network, rate, warm-up, batch and epochs are the defaults. Only the data are cut, to `--rows`
training images, 200 held-out and 500 test images, drawn with the seed. Each training leaves one JSON record
in results/defaults/ and is not repeated, so the command can be stopped at any time.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

import bivallate as bv
from bivallate.data import holdout
from bivallate.data.registry import training_defaults
from bivallate.files import write_json, write_text
from bivallate.lower.threat import threat
from bivallate.methods.entries import create
from bivallate.parts import decode, encode, from_portable, portable
from bivallate.reproduce.definition import without_machine
from bivallate.reproduce.machine import commit
from bivallate.run.config import Config
from bivallate.run.defaults import fitted
from bivallate.run.execution import execute
from bivallate.run.from_config import create_model, load_data
from bivallate.run.progress import TerminalProgress
from bivallate.run.recipes.published import recipe_for

RECORDS, PAGE = Path("results/defaults"), Path("docs/defaults.md")
RUNS = Path("runs/defaults")
DATA = ("digits", "mnist", "fashion-mnist", "gtsrb", "cifar10")
METHODS = ("at", "trades", "fast-at", "fast-bat", "done-adam")
HELD, TEST, ATTACK, SEED = 200, 500, "pgd-20", 0
BEGIN, END = "<!-- defaults: begin -->", "<!-- defaults: end -->"


def cut(dataset: bv.data.Dataset, rows: int) -> bv.data.Dataset:
    """Cut a data set to at most `rows` training images, `HELD` held-out and `TEST` test images."""
    parts = {}
    for name, most in (("train", rows), ("validation", HELD), ("test", TEST)):
        split = getattr(dataset, name)
        assert split is not None
        parts[name] = holdout(split, most, SEED, "cut")[1] if len(split) > most else split
    return dataset.but(**parts)


def trained(name: str, method: str, rows: int) -> dict[str, Any]:
    """Train and evaluate once; returns the record."""
    made = create(method, threat("linf", training_defaults(name).eps))
    config = recipe_for(None, made, name)
    dataset = cut(load_data(config.data, SEED), rows)
    config = fitted(config, len(dataset.train)).set("threads", 1)
    folder = RUNS / f"{name}-{method}"
    began = time.monotonic()
    network = create_model(config.model, dataset, SEED)
    shown = TerminalProgress(f"{name} {method}", every=5)
    run = execute(config, dataset, network, folder, progress=shown, overwrite=True)
    score = bv.evaluate(bv.load(folder, "best"), dataset.test, made.threat, ATTACK)
    counts = dataset.test.counts(len(dataset.classes))
    return {
        "config": portable(encode(config)),
        "rows": len(dataset.train),
        "clean": score.clean_accuracy,
        "robust": score.robust_accuracy,
        "interval_95": list(score.interval_95),
        "points": score.n,
        "commonest": max(counts) / sum(counts),
        "best_epoch": max(run.history, key=lambda line: line["robust"])["epoch"],
        "alarms": [alarm["kind"] for line in run.history for alarm in line["alarms"]],
        "passes": run.history[-1]["total_forward"] + run.history[-1]["total_backward"],
        "seconds": time.monotonic() - began,
        "commit": commit().get("id", "unknown")[:7],
    }


def table() -> str:
    """The table, one row a data set: its defaults, chance level, and each method's accuracies."""
    lines = [
        f"| data | eps | network | rate | warm-up | batch | images | chance | {' | '.join(METHODS)} |",
        f"|{' --- |' * (8 + len(METHODS))}",
    ]
    commits = set()
    for name in DATA:
        found = _records(name)
        kept = list(found.values())
        if not kept:
            continue
        commits |= {r["commit"] for r in kept}
        one, own = kept[0], kept[0]["config"]
        said = (
            name, training_defaults(name).eps, own["model"]["name"], own["optimizer"]["lr"], own["warm_up"],
            own["batch_size"], one["rows"], f"{one['commonest']:.1%}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(map(str, said))} | {' | '.join(_cell(found.get(m)) for m in METHODS)} |")
    foot = f"`python -m benchmarks.defaults`, commit {', '.join(sorted(commits))}, seed {SEED}, one thread."
    return "\n".join([*lines, "", foot])


def _cell(record: dict[str, Any] | None) -> str:
    if record is None:
        return "not run"
    low, high = record["interval_95"]
    text = f"{record['clean']:.0%} / {record['robust']:.0%} [{100 * low:.0f}, {100 * high:.0f}]"
    return text + (f", alarm: {', '.join(sorted(set(record['alarms'])))}" if record["alarms"] else "")


def _record(name: str, method: str) -> dict[str, Any] | None:
    path = RECORDS / f"{name}-{method}-{SEED}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _records(name: str) -> dict[str, dict[str, Any]]:
    """Method -> its record on a data set."""
    return {m: record for m in METHODS if (record := _record(name, m)) is not None}


def current(record: dict[str, Any], name: str, method: str) -> bool:
    """Whether a record was made with the present defaults, on no fewer images than others of its data set."""
    if any(of["rows"] > record["rows"] for of in _records(name).values()):
        return False
    config: Config = recipe_for(None, create(method, threat("linf", training_defaults(name).eps)), name)
    return without_machine(decode(from_portable(record["config"]))) == without_machine(
        fitted(config, record["rows"])
    )


def main() -> None:
    """Train what is missing and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", default=DATA, choices=DATA)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--table", action="store_true", help="write the page from the records alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, method in [(n, m) for m in options.methods for n in options.data]:
        kept = _record(name, method)
        if options.table or (kept is not None and current(kept, name, method)):
            continue
        record = trained(name, method, options.rows)
        write_json(RECORDS / f"{name}-{method}-{SEED}.json", record)
        print(f"{name} {method}: {_cell(record)}, {record['seconds']:.0f} s", flush=True)
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, tail = rest.partition(END)
    write_text(PAGE, f"{head}{BEGIN}\n\n{table()}\n\n{END}{tail}")


if __name__ == "__main__":
    main()
