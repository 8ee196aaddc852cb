"""The demo: four methods on scikit-learn's digits, attacked, in one table and one picture."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bivallate import data, methods
from bivallate.evaluation import Identity, attack_and_score
from bivallate.files import write_json
from bivallate.lower.threat import Linf
from bivallate.method import Method
from bivallate.quoting import command
from bivallate.run.arithmetic import limit_threads
from bivallate.run.load_model import load
from bivallate.run.optim import SGD
from bivallate.run.progress import TerminalProgress
from bivallate.run.rates import Triangle
from bivallate.run.training import train
from bivallate.terminal import literal_console

EPS = 0.2  # of a pixel range of 1: plain training loses almost all accuracy, adversarial training does not
ATTACK = "pgd-20"


def chosen() -> list[Method]:
    """Plain training, AT, Fast-BAT and DONE-Adam."""
    threat = Linf(EPS)
    return [methods.plain(threat), methods.at(threat), methods.fast_bat(threat), methods.done_adam(threat)]


def run_demo(out: Path, *, epochs: int, threads: int) -> list[dict[str, Any]]:
    """Train and attack the methods, print the table, draw the picture, and say where the files are."""
    console = literal_console(soft_wrap=True)
    wide = literal_console(width=max(console.width, 112))
    limit_threads(min(threads, os.cpu_count() or 1))
    dataset = data.load("digits")
    held = len(dataset.validation or [])
    console.print(
        f"digits: {len(dataset.train)} training, {held} held-out, {len(dataset.test)} test images, 8x8.\n"
        f"The attacker may change every pixel by up to {EPS} of the range from black to white."
    )
    rows = []
    for method in chosen():
        folder = out / method.name
        run = train(
            "tiny-cnn",
            dataset,
            method,
            epochs=epochs,
            batch_size=64,
            optimizer=SGD(0.1),
            rate=Triangle(0.4),
            out=folder,
            overwrite=True,
            progress=TerminalProgress(f"{method.name:<9}", every=10, explain=not rows),
            threads=0,
        )
        rows.append(_measured(method, folder, run.history, dataset))
    write_json(out / "table.json", rows)
    _print(wide, rows)
    from bivallate.reports.demo_figure import demo_figure

    picture = demo_figure(out, rows)
    console.print(
        f"\nruns, metrics and evaluations: {out}/<method>\npicture: {picture}\nnext:\n"
        + "\n".join(f"  {line}" for line in _next(out))
    )
    return rows


def _next(out: Path) -> list[str]:
    """Commands to try next: the standard attack ensemble, a report, a longer training, all methods."""
    return [
        command("evaluate", out / "at", "--attack", "autoattack"),
        command("report", out / "at", out / "fast-bat", "--out", "report.html"),
        command("train", "done-adam", "--data", "digits", "--epochs", 60),
        command("methods"),
    ]


def _measured(method: Method, folder: Path, history: list[dict[str, Any]], dataset: Any) -> dict[str, Any]:
    """Evaluate the best and the last weights of a run on the test set; return its row of the table."""
    scores = {
        w: attack_and_score(load(folder, w), dataset.test, method.threat, ATTACK) for w in ("best", "last")
    }
    for weights, score in scores.items():
        identity = Identity(weights=weights)
        name = identity.file_name(method.threat, ATTACK, 0)
        replace(score, identity=identity).save(folder / "evaluation" / name)
    score = scores["best"]
    best = max(history, key=lambda line: line["robust"])
    return {
        "method": method.name,
        "clean": score.clean_accuracy,
        "robust": score.robust_accuracy,
        "last_clean": scores["last"].clean_accuracy,
        "last_robust": scores["last"].robust_accuracy,
        "interval_95": list(score.interval_95),
        "tail_30": score.tail(30),
        "forward": history[-1]["forward"],
        "backward": history[-1]["backward"],
        "seconds": sum(line["seconds"] for line in history),
        "best_epoch": best["epoch"],
        "epochs": len(history),
        "per_class": score.per_class,
    }


def _print(console: Console, rows: list[dict[str, Any]]) -> None:
    table = Table(title=f"test set, {ATTACK} at eps {EPS}", title_justify="left")
    names = ("method", "SA", "RA-PGD [95 %]", "RA-Tail-30", "epoch", "last: SA", "RA-PGD", "cost", "seconds")
    for column in names:
        table.add_column(column, justify="left" if column == "method" else "right", no_wrap=True)
    for r in rows:
        low, high = r["interval_95"]
        table.add_row(
            r["method"],
            f"{r['clean']:.1%}",
            f"{r['robust']:.1%} [{100 * low:.0f}, {100 * high:.0f}]",
            f"{r['tail_30']:.1%}",
            f"{r['best_epoch']}/{r['epochs']}",
            f"{r['last_clean']:.1%}",
            f"{r['last_robust']:.1%}",
            f"{r['forward']:.0f}F + {r['backward']:.0f}B",
            f"{r['seconds']:.1f}",
        )
    console.print(table)
    console.print(
        "SA: clean accuracy. RA-PGD: under attack. RA-Tail-30: that of the weakest 30 % of classes.\n"
        "First with the weights of the epoch that was most robust held-out, then with the last ones.\n"
        "Cost: forward and backward passes per training example and epoch."
    )
