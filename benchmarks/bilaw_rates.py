"""Measure at which learning rates the weights of BiLAW's network differ: `python -m benchmarks.bilaw_rates`.

Trains with K = 3 attack steps on digits and on parts of MNIST and CIFAR-10, and writes the table between the
markers of docs/bilaw.md. The weights shown are those of held-out images. Takes an hour and a half on one
core; `--only` measures some rows again and leaves the others.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import torch

import bivallate as bv
from bivallate.files import write_text
from bivallate.methods.entries import create
from bivallate.reports.diagnostics.weighed_points import weigh_points
from bivallate.reproduce.machine import commit
from bivallate.reproduce.running import cut
from bivallate.run.config import Config, Validation
from bivallate.run.from_config import create_model, load_data
from bivallate.run.progress import Progress
from bivallate.run.recipes.published import recipe_for
from bivallate.run.session import Session
from bivallate.run.trainer import Trainer
from bivallate.types import Clock

PAGE, BEGIN, END = Path("docs/bilaw.md"), "<!-- rates: begin -->", "<!-- rates: end -->"
RUNS = (  # data, method, optimiser, rate
    *(("digits", "bilaw", "descent", rate) for rate in (0.1, 1.0, 10.0, 30.0)),
    ("digits", "bilaw", "adam", 1e-3),
    *(("digits", "bilaw-trades", "descent", rate) for rate in (1.0, 10.0, 30.0)),
    *(("mnist", "bilaw", "descent", rate) for rate in (1.0, 10.0, 100.0)),
    *(("cifar10", "bilaw", "descent", rate) for rate in (1.0, 10.0, 100.0)),
    ("cifar10", "bilaw-trades", "descent", 10.0),
)
ROWS = {"digits": 0, "mnist": 6000, "cifar10": 3000}  # training images; 0: all
COLUMNS = (
    "data", "method", "optimiser", "rate", "largest meta-gradient", "least effective size",
    "least sure tenth", "surest tenth", "largest / least weight",
    "rank correlation with the margin", "commit",
)  # fmt: skip
WORDS = 3  # columns that are not numbers


def settings(data: str, method: str, optimiser: str, rate: float) -> Config:
    """The configuration: a short training that is long enough for AT to learn."""
    eps = {"digits": 0.2, "mnist": 0.1, "cifar10": 0.031}[data]
    chosen = create(method, bv.Linf(eps), steps=3, net_optimizer=optimiser, net_lr=rate)
    config = recipe_for("bilaw", chosen, data)
    watched = Validation(5, 100)
    if data == "cifar10":  # T-B2's network at scale cpu
        config = config.set("model.width", "0.25").set("batch_size", "32").set("data.meta", "500")
        return dataclasses.replace(config, epochs=5, threads=1, validation=watched)
    config = config.set("model.name", "tiny-cnn")
    if data == "digits":
        config = config.set("data.meta", "200").set("batch_size", "64").set("optimizer.lr", "0.1")
        return dataclasses.replace(
            config.set("data.validation", "0.1"), rate=bv.Triangle(0.4), epochs=16, threads=1,
            validation=watched,
        )  # fmt: skip
    config = config.set("optimizer.lr", "0.05").set("data.validation", "1000").set("batch_size", "32")
    return dataclasses.replace(config, epochs=6, threads=1, validation=watched)


def row(data: str, method: str, optimiser: str, rate: float) -> str:
    """Train once; returns a row with the weights of held-out images by margin."""
    config = settings(data, method, optimiser, rate)
    made = commit().get("id", "unknown")[:7]
    dataset = cut(load_data(config.data, 0), ROWS[data])
    session = Session(config, dataset, create_model(config.model, dataset, 0))
    Trainer(session, None, Progress()).run()
    found = weigh_points(
        session.model, session.method, dataset.validation, Clock(config.epochs - 1, config.epochs), n=1000
    )
    tenths = [part.mean() for part in np.array_split(found.weights[np.argsort(found.margin)], 10)]
    ranks = [np.argsort(np.argsort(values)) for values in (found.margin, found.weights)]
    effective = min(line["effective"] for line in session.history)
    gradient = max(line["meta_gradient"] for line in session.history)
    cells = (
        data, method, optimiser, f"{rate:g}", f"{gradient:.1e}", f"{effective:.3f}",
        f"{tenths[0]:.2f}", f"{tenths[-1]:.2f}", f"{found.weights.max() / found.weights.min():.2f}",
        f"{np.corrcoef(ranks[0], ranks[1])[0, 1]:+.2f}", made,
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def written(lines: list[str]) -> None:
    """Put rows into the page's table; each replaces the row with the same data, method and rate."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    body, after = rest.split(END)
    known = {_key(line): line for line in body.splitlines() if line.startswith("|") and "---" not in line}
    known |= {_key(line): line for line in lines}
    order = [f"| {data} | {method} | {optimiser} | {rate:g} " for data, method, optimiser, rate in RUNS]
    head = f"| {' | '.join(COLUMNS)} |\n| {' | '.join(['---'] * WORDS + ['--:'] * (len(COLUMNS) - WORDS))} |"
    table = "\n".join((head, *(known[key] for key in order if key in known)))
    made = "`python -m benchmarks.bilaw_rates`, seed 0, one thread."
    write_text(PAGE, f"{before}{BEGIN}\n\n{table}\n\n{made}\n\n{END}{after}")


def _key(line: str) -> str:
    return "|".join(line.split("|")[:5])


def main() -> None:
    """Train, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", type=int, help="rows of the table, from 0")
    parser.add_argument("--dry", action="store_true", help="print, leave docs/bilaw.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines: list[str] = []
    for k, run in enumerate(RUNS):
        if options.only is None or k in options.only:
            lines.append(row(*run))
            print(lines[-1], flush=True)
            if not options.dry:
                written(lines)


if __name__ == "__main__":
    main()
