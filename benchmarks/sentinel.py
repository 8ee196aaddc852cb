"""Compare Fast-AT and FGSM-AT with and without the sentinel, in settings where they collapse.

`python -m benchmarks.sentinel` trains each setting twice for each seed: the sentinel only watches, or it
rolls back. The last weights are attacked on test data. Writes the table between the markers of
docs/sentinel.md and docs/figures/sentinel.svg; the numbers behind the figure go to runs/sentinel. Takes a few
minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import nn

import bivallate as bv
from bivallate import models
from bivallate.files import write_text
from bivallate.methods.entries import create
from bivallate.reports.diagnostics.diagnostic import Diagnostic
from bivallate.reproduce.machine import commit
from bivallate.run.config import Validation
from bivallate.run.rates import Cosine, Rate
from bivallate.run.sentinel import Sentinel
from bivallate.style import COLOURS, figure

DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- sentinel: begin -->", "<!-- sentinel: end -->"
RULES = {"watches": Sentinel(), "rolls back": Sentinel(rollback=True)}
POINTS = 500


@dataclass(frozen=True)
class Setting:
    """One training that collapses.

    Attributes:
        about: description in the table. rows: number of training images, 0 for all. hidden: units of the
            hidden layer of a perceptron on raw pixels; with 0 the model of that name is used.
    """

    about: str
    method: str
    data: str
    model: str
    eps: float
    epochs: int
    lr: float
    rate: Rate
    batch_size: int = 128
    rows: int = 0
    hidden: int = 0
    seeds: tuple[int, ...] = (0, 1, 2)


SETTINGS = {
    "digits": Setting(
        "Fast-AT, digits, fc1 of 128 units, eps 0.3", "fast-at", "digits", "fc1", 0.3, 60, 0.1, bv.Triangle(),
        hidden=128,
    ),
    "mnist": Setting(
        "FGSM-AT, 5000 images of MNIST, Tiny-CNN, eps 0.25", "fgsm-at", "mnist", "tiny-cnn", 0.25, 16, 0.05,
        Cosine(), batch_size=64, rows=5000, seeds=(0, 1),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """The results of one run; accuracies are fractions of the test points, for the last weights."""

    seed: int
    rule: str
    clean: float
    fgsm: float
    pgd: float
    history: list[dict[str, Any]]
    seconds: float
    commit: str

    @property
    def alarms(self) -> list[dict[str, Any]]:
        """The alarms, in their order."""
        return [alarm for line in self.history for alarm in line["alarms"]]

    @property
    def rollbacks(self) -> int:
        """The number of rollbacks."""
        return sum(alarm["rolled_back"] for alarm in self.alarms)

    @property
    def passes(self) -> float:
        """Forward and backward passes of training, for each training image and epoch."""
        last = self.history[-1]
        return (last["total_forward"] + last["total_backward"]) / len(self.history)


def train(setting: Setting, rule: str, seed: int, data: bv.data.Dataset) -> Trained:
    """Train once and attack the last weights."""
    threat, began = bv.Linf(setting.eps), time.perf_counter()
    run = bv.train(
        perceptron(setting, data, seed) if setting.hidden else setting.model,
        data,
        create(setting.method, threat),
        epochs=setting.epochs,
        batch_size=setting.batch_size,
        optimizer=bv.SGD(setting.lr),
        rate=setting.rate,
        sentinel=RULES[rule],
        validation=Validation(10, 100),
        seed=seed,
    )
    n = min(POINTS, len(data.test))
    fgsm, pgd = (bv.evaluate(run.model, data.test, threat, attack, n=n) for attack in ("fgsm", "pgd-20"))
    seconds = time.perf_counter() - began
    accuracies = (pgd.clean_accuracy, fgsm.robust_accuracy, pgd.robust_accuracy)
    return Trained(seed, rule, *accuracies, run.history, seconds, commit().get("id", "unknown")[:7])


def perceptron(setting: Setting, data: bv.data.Dataset, seed: int) -> nn.Module:
    """A network with one hidden layer of the setting's width, on raw pixels."""
    classes = len(data.classes)
    return models.create("fc1", num_classes=classes, shape=data.shape, seed=seed, hidden=setting.hidden)


@cache
def load(setting: Setting) -> bv.data.Dataset:
    """Load the images of a setting."""
    data = bv.data.load(setting.data)
    return data.but(train=data.train.subset(slice(0, setting.rows))) if setting.rows else data


@dataclass(frozen=True)
class Curves(Diagnostic):
    """Held-out PGD-10 accuracy in every epoch, without and with rollback.

    Attributes:
        runs: title of a panel -> its runs.
    """

    runs: dict[str, list[Trained]]

    def data(self) -> dict[str, Any]:
        """Setting -> run -> accuracies and alarms."""
        return {
            about: {
                f"{run.rule}, seed {run.seed}": {
                    "robust": [line["robust"] for line in run.history],
                    "alarms": run.alarms,
                    "test_pgd_20": run.pgd,
                }
                for run in runs
            }
            for about, runs in self.runs.items()
        }

    def draw(self) -> Figure:
        """Draw a panel for each setting with a line for each run."""
        fig, axes = figure(len(self.runs), height=2.3, width=1.0 * len(self.runs), squeeze=False)
        for ax, (about, runs) in zip(axes[0], self.runs.items(), strict=True):
            for rule, colour, style in zip(RULES, (COLOURS[1], COLOURS[0]), ("--", "-"), strict=True):
                for k, run in enumerate(r for r in runs if r.rule == rule):
                    epochs = [line["epoch"] for line in run.history]
                    values = [100 * line["robust"] for line in run.history]
                    label = f"sentinel {rule}" if k == 0 else None
                    ax.plot(epochs, values, color=colour, ls=style, lw=1, label=label)
            ax.set_title(about)
            ax.set_xlabel("epoch")
            ax.set_ylabel("held-out PGD-10 accuracy (%)")
            ax.set_ylim(bottom=0)
            ax.legend(loc="upper left")
        return fig


HEAD = (
    "| seed | sentinel | clean % | FGSM % | PGD-20 % | best epoch, held-out % | passes a row and epoch "
    "| of them the sentinel's % | alarms | rollbacks |\n"
    "| --: | --- | --: | --: | --: | --: | --: | --: | --: | --: |"
)


def row(run: Trained) -> str:
    """One row of the table."""
    best, share = max(line["robust"] for line in run.history), run.history[-1]["sentinel_share"]
    cells = (
        run.seed, run.rule, f"{100 * run.clean:.1f}", f"{100 * run.fgsm:.1f}", f"{100 * run.pgd:.1f}",
        f"{100 * best:.1f}", f"{run.passes:.1f}", f"{100 * share:.1f}", len(run.alarms), run.rollbacks,
    )  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    """Make the tables and the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of each setting's own")
    parser.add_argument("--out", type=Path, default=Path("runs/sentinel"))
    parser.add_argument("--keep", action="store_true", help="take the runs that --out holds already")
    parser.add_argument("--keep-page", action="store_true", help="print only, and leave the docs alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    for name in options.settings:
        setting = SETTINGS[name]
        print(f"{setting.about}\n{HEAD}", flush=True)
        found[setting.about] = [
            kept(setting, rule, seed, options.out / f"{name}-{seed}-{rule.replace(' ', '-')}.json", options)
            for seed in options.seeds or setting.seeds
            for rule in RULES
        ]
    drawn = Curves(found).save(options.out / "sentinel")
    if options.keep_page:
        return
    shutil.copyfile(drawn, DOCS / "figures" / "sentinel.svg")
    body = "\n\n".join(f"### {about}\n\n{table(runs)}" for about, runs in found.items())
    page = DOCS / "sentinel.md"
    head, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, tail = rest.partition(END)
    write_text(page, f"{head}{BEGIN}\n\n{body}\n\n{foot(found)}\n\n{END}{tail}")


def kept(setting: Setting, rule: str, seed: int, path: Path, options: argparse.Namespace) -> Trained:
    """A run, read from its file if that is wanted and the file exists, else trained."""
    if options.keep and path.exists():
        run = Trained(**json.loads(path.read_text(encoding="utf-8")))
    else:
        run = train(setting, rule, seed, load(setting))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(asdict(run)) + "\n")
    print(row(run), f"{run.seconds:.0f} s", flush=True)
    return run


def table(runs: list[Trained]) -> str:
    """The rows of a setting."""
    return "\n".join([HEAD, *map(row, runs)])


def foot(found: dict[str, list[Trained]]) -> str:
    """The note on how the tables were made."""
    commits = sorted({run.commit for runs in found.values() for run in runs})
    return (
        f"`python -m benchmarks.sentinel`, commit {', '.join(commits)}, one thread; the last weights on "
        f"{POINTS} test images, or all where there are fewer."
    )


if __name__ == "__main__":
    main()
