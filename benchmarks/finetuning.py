"""Measure what `--recipe finetune` makes of plainly trained weights: the table of docs/finetuning.md.

    python -m benchmarks.finetuning [--only digits ...]
    python -m benchmarks.finetuning --table     writes the page from the records alone

For each data set a network is trained plainly by the package's defaults. The recipe, with AT and TRADES, then
starts from its weights, and, at the same cost, from fresh ones. Data are cut to a number of training images,
500 held-out and 500 test images, drawn with the seed. Each training leaves one JSON record in
results/finetuning/ and is not repeated.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bivallate as bv
from bivallate.data import holdout
from bivallate.data.registry import training_defaults
from bivallate.files import write_json, write_text
from bivallate.from_text import parse_number
from bivallate.parts import encode, portable
from bivallate.reproduce.machine import commit
from bivallate.run.progress import TerminalProgress

RECORDS, PAGE, RUNS = Path("results/finetuning"), Path("docs/finetuning.md"), Path("runs/finetuning")
BEGIN, END = "<!-- finetuning: begin -->", "<!-- finetuning: end -->"
HELD, SEED = 500, 0


@dataclass(frozen=True)
class Subject:
    """A data set and the trainings on it.

    Attributes:
        rows, test: number of training and of test images. model: network. plain, epochs: epochs of plain
            training and of the recipe. methods: that the recipe trains with.
    """

    name: str
    model: str
    rows: int
    test: int
    plain: int
    epochs: int
    methods: tuple[str, ...]


SUBJECTS = (
    Subject("digits", "tiny-cnn", 1294, 359, 20, 10, ("at", "trades")),
    Subject("fashion-mnist", "tiny-cnn", 10000, 500, 10, 5, ("at",)),
    Subject("cifar10", "preact-resnet18-narrow", 3000, 200, 12, 6, ("n-fgsm",)),
)


def cut(subject: Subject) -> bv.data.Dataset:
    """Cut a data set to the given number of images."""
    data = bv.data.load(subject.name, seed=SEED)
    parts = {}
    for name, most in (("train", subject.rows), ("validation", HELD), ("test", subject.test)):
        split = getattr(data, name)
        parts[name] = holdout(split, most, SEED, "cut")[1] if len(split) > most else split
    return data.but(**parts)


def trainings(subject: Subject) -> dict[str, dict[str, Any]]:
    """Name -> arguments of `bv.train`, in the order of training."""
    common = {"seed": SEED, "threads": 1, "overwrite": True}
    plain = RUNS / f"{subject.name}-plain"
    found: dict[str, dict[str, Any]] = {
        "plain": {"method": "plain", "epochs": subject.plain, "model": subject.model}
    }
    for method in subject.methods:
        tuned = {"method": method, "recipe": "finetune", "epochs": subject.epochs}
        found[f"{method}-tuned"] = {**tuned, "init": plain, "model": None}
        found[f"{method}-fresh"] = {**tuned, "model": subject.model}
    return {name: {**common, **own, "out": RUNS / f"{subject.name}-{name}"} for name, own in found.items()}


def measured(subject: Subject, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Train once and run AutoAttack on the best weights; returns the record."""
    data, out = cut(subject), arguments["out"]
    model, method, began = arguments["model"], arguments["method"], time.perf_counter()
    options = {k: v for k, v in arguments.items() if k not in ("model", "method")}
    eps = training_defaults(subject.name).eps
    run = bv.train(model, data, method, eps=eps, progress=TerminalProgress(name), **options)
    spent = time.perf_counter() - began
    last, weights = run.history[-1], "last" if method == "plain" else "best"
    network = bv.load(out, weights=weights)
    threat = bv.Linf(parse_number(eps))
    score = bv.evaluate(network, data.test, threat, "autoattack", seed=SEED)
    return {
        "data": subject.name,
        "rows": len(data.train),
        "model": subject.model,
        "training": name,
        "weights": weights,
        "epochs": arguments["epochs"],
        "passes": [last["total_forward"], last["total_backward"]],
        "seconds": spent,
        "n": score.n,
        "clean_accuracy": score.clean_accuracy,
        "robust_accuracy": score.robust_accuracy,
        "interval_95": list(score.interval_95),
        "threat": portable(encode(threat)),
        "commit": commit(),
    }


def table() -> str:
    """The records as Markdown."""
    head = "| data | training | passes an image | clean | AutoAttack | 95 % interval | points |"
    lines = [head, "| --- | --- | --- | --- | --- | --- | --- |"]
    for subject in SUBJECTS:
        for name in trainings(subject):
            place = RECORDS / f"{subject.name}-{name}.json"
            if not place.exists():
                continue
            r = json.loads(place.read_text())
            low, high = r["interval_95"]
            words = {"plain": "plain", "tuned": "from plain weights", "fresh": "from fresh weights"}
            method, _, kind = name.rpartition("-")
            what = f"`{method}`, {words[kind]}" if method else words[kind]
            lines.append(
                f"| {subject.name}, {r['rows']:,} images, eps {training_defaults(subject.name).eps} "
                f"| {what}, {r['epochs']} epochs | {sum(r['passes']):.0f} | {r['clean_accuracy']:.1%} "
                f"| {r['robust_accuracy']:.1%} | {low:.1%} to {high:.1%} | {r['n']} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Train and evaluate what has no record yet, then write the page's table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[s.name for s in SUBJECTS])
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    for subject in SUBJECTS if not asked.table else ():
        for name, arguments in trainings(subject).items() if subject.name in asked.only else ():
            place = RECORDS / f"{subject.name}-{name}.json"
            if not place.exists():
                record = measured(subject, name, arguments)
                place.parent.mkdir(parents=True, exist_ok=True)
                write_json(place, record)
    if PAGE.exists():
        text = PAGE.read_text()
        before, after = text[: text.index(BEGIN)], text[text.index(END) :]
        write_text(PAGE, f"{before}{BEGIN}\n{table()}\n{after}")
    print(table())


if __name__ == "__main__":
    main()
