"""Compositions against their rivals at equal cost and with equal tuning: the records of docs/contest.md.

    python -m benchmarks.contest tune [--data D ...] [--cost low high] [--only NAME ...] [--jobs 2]
    python -m benchmarks.contest judge [--data D ...] [--cost low high] [--jobs 2]
    python -m benchmarks.contest table

`tune` trains everyone once with each of three values of one parameter, and measures held-out images. `judge`
chooses by them: the best rival and the best composition, the best of each for the worst class among those
that lose at most half a point, and the yardstick of that cost. It trains these with two more seeds and runs
AutoAttack on test images, once. A training leaves one JSON record in results/contest/ and is not repeated;
the commands can be interrupted at any time, and continue.

Costs are forward and backward passes an example over the whole training: low is what N-FGSM costs in the
epochs of the setting, high what PGD-10 AT costs in them. Everyone has as many epochs as the cost allows, the
same network, images, optimiser and rate, and the averaged weights (EMA).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bivallate as bv
from benchmarks.contest_entrants import ENTRANTS, Entrant
from bivallate import Linf, Method
from bivallate.files import write_json
from bivallate.reports.cards import PARTS, one_line
from bivallate.reproduce.machine import commit, machine
from bivallate.reproduce.running import cut
from bivallate.reproduce.running import trained as finished
from bivallate.run.budget import affordable
from bivallate.run.config import Config, Data, Model, Precision, Validation
from bivallate.run.from_config import load_data
from bivallate.run.optim import SGD
from bivallate.run.rates import Triangle
from bivallate.run.resuming import computable
from bivallate.run.sentinel import Sentinel
from bivallate.run.trainer import limit_threads

RECORDS, RUNS = Path("results/contest"), Path("runs/contest")
JUDGE, TEST = "apgd-t-20-2", "autoattack"  # on held-out images, and on test images
CLASSES, CIFAR10 = 10, 50_000  # of every data set, and training images of the one that is not cut
SEEDS = (0, 1, 2)  # the first is that of the trials
LOSS = 0.005  # robust accuracy that the worst class may cost
PASSES = {"low": 4, "high": 22}  # an epoch of N-FGSM, and of PGD-10 AT
YARDSTICK = {"low": "n-fgsm", "high": "at"}


@dataclass(frozen=True)
class Setting:
    """What all trainings on a data set share.

    Attributes:
        eps: radius in Linf. network, width: architecture. rows, held, points: number of training images (0:
            all), held-out images and test images. epochs: of N-FGSM at the low cost, and of AT at the high.
        batch, lr, decay, augment, precision: as in a configuration.
    """

    eps: float
    network: str
    rows: int
    epochs: int = 20
    width: float = 1.0
    held: int = 2000
    points: int = 1000
    batch: int = 32
    lr: float = 0.05
    decay: float = 2e-4
    augment: str = "none"
    precision: Precision = "float32"

    @property
    def images(self) -> int:
        """Number of training images."""
        return self.rows or CIFAR10 - self.held


SETTINGS = {
    "fashion-mnist": Setting(0.1, "tiny-cnn", 2000),
    "mnist": Setting(0.1, "tiny-cnn", 2000),
    "cifar10": Setting(
        8 / 255, "preact-resnet18", 0, width=0.25, batch=128, lr=0.2, decay=5e-4, augment="crop:4,flip",
        precision="bf16",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Trial:
    """One training.

    Attributes:
        number: of the value of the parameter among the entrant's.
    """

    data: str
    cost: str
    name: str
    number: int
    seed: int = 0

    @property
    def entrant(self) -> Entrant:
        """The one that is trained."""
        return next(e for e in ENTRANTS[self.cost] if e.name == self.name)

    @property
    def method(self) -> Method:
        """The method with the trial's value."""
        return self.entrant.make(Linf(SETTINGS[self.data].eps), self.entrant.values[self.number])

    @property
    def label(self) -> str:
        """The name in files."""
        return f"{self.name}-{self.number}-seed{self.seed}"

    @property
    def record(self) -> Path:
        """The file of the record."""
        return RECORDS / self.data / self.cost / f"{self.label}.json"

    def read(self) -> dict[str, Any]:
        """The record, which must be there."""
        return json.loads(self.record.read_text(encoding="utf-8"))

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return RUNS / self.data / self.cost / self.label


def configure(trial: Trial, device: str = "auto") -> Config:
    """The configuration of a trial; only the method and its number of epochs differ between entrants."""
    setting, method = SETTINGS[trial.data], trial.method
    config = Config(
        method=method,
        data=Data(name=trial.data, validation=setting.held, augment=setting.augment),
        model=Model(setting.network, normalise=False, width=setting.width),
        optimizer=SGD(setting.lr, weight_decay=setting.decay),
        rate=Triangle(0.2),
        batch_size=setting.batch,
        seed=trial.seed,
        average=0.99,
        validation=Validation(steps=0, rows=1),
        sentinel=Sentinel(on=False),
        precision=setting.precision,
        device=device,
        threads=1,
    )
    return affordable(config, setting.epochs * PASSES[trial.cost], setting.images, CLASSES)[0]


def train(trial: Trial, device: str = "auto") -> str:
    """Train one trial, measure it on held-out images and record it, unless there is a record."""
    limit_threads(1)
    if trial.record.exists():
        return f"{trial.label} on {trial.data}: there already"
    config = computable(configure(trial, device))
    dataset = cut(load_data(config.data, 0), SETTINGS[trial.data].rows)
    run, model = finished(config, dataset, trial.folder, "ema")
    held = bv.evaluate(model, dataset.validation, config.method.threat, JUDGE)
    history, entry = run.read_metrics(), config.method.to_dict()
    record = {
        "schema": "bivallate-contest-1",
        "data": trial.data,
        "cost": trial.cost,
        "name": trial.name,
        "seed": trial.seed,
        "parameter": trial.entrant.parameter,
        "value": trial.entrant.values[trial.number],
        "number": trial.number,
        "parts": {part: one_line(entry[part]) for part in PARTS},
        "rows": len(dataset.train),
        "epochs": config.epochs,
        "passes": history[-1]["total_forward"] + history[-1]["total_backward"],
        "train_robust": history[-1]["train_robust"],
        "seconds": sum(line["seconds"] for line in history),
        "judge": JUDGE,
        "held_out": figures(held),
        "commit": commit(),
        "machine": machine(config.device, 1),
    }
    write_json(trial.record, record)
    return f"{trial.label} on {trial.data}, {config.epochs} epochs: {told(record['held_out'])}"


def attack(trial: Trial, device: str = "auto") -> str:
    """Run AutoAttack on test images, once, and add what it leaves to the record of the trial."""
    record = trial.read()
    if "test" in record:
        return f"{trial.label} on {trial.data}: tested already"
    limit_threads(1)
    setting = SETTINGS[trial.data]
    points = load_data(configure(trial, device).data, 0).test
    score = bv.evaluate(bv.load(trial.folder, "ema"), points, Linf(setting.eps), TEST, n=setting.points)
    right = "".join(str(int(r)) for r in score.robust.tolist())  # of each point, the same for all trials
    write_json(trial.record, {**record, "test": {"attack": TEST, **figures(score), "right": right}})
    return f"{trial.label} on {trial.data}, test: {told(figures(score))}"


def figures(score: bv.Score) -> dict[str, Any]:
    """The number of points, and clean, robust, worst-class and tail accuracy."""
    return {
        "n": score.n,
        "clean": score.clean_accuracy,
        "robust": score.robust_accuracy,
        "worst_class": min(c for c in score.per_class if c is not None),
        "tail_30": score.tail(30),
    }


def shown(value: Any) -> str:
    """The value of a tuned parameter in words."""
    return f"{value:.3g}" if isinstance(value, float) else "its schedule" if value is None else str(value)


def told(found: dict[str, Any]) -> str:
    """Figures in one line."""
    return ", ".join(f"{what} {value:.3f}" for what, value in found.items() if what != "n")


def trials(data: str, cost: str, only: Sequence[str] = ()) -> list[Trial]:
    """Everyone with each value; of `only` if it names some."""
    everyone = [e for e in ENTRANTS[cost] if not only or e.name in only]
    return [Trial(data, cost, e.name, number) for number in (1, 0, 2) for e in everyone]


def tuned(data: str, cost: str) -> dict[str, dict[str, Any]]:
    """Name -> the record of the value with the highest robust accuracy on held-out images.

    Only of entrants that have a record of every value, so that all have been tuned alike.
    """
    best = {}
    for entrant in ENTRANTS[cost]:
        own = trials(data, cost, [entrant.name])
        if all(trial.record.exists() for trial in own):
            best[entrant.name] = max((t.read() for t in own), key=lambda r: r["held_out"]["robust"])
    return best


def chosen(best: dict[str, dict[str, Any]], cost: str) -> dict[str, str]:
    """Role -> name of the one that is judged, by what `tuned` found; empty before everyone is tuned."""
    if len(best) < len(ENTRANTS[cost]):
        return {}
    composed = {e.name: e.composed for e in ENTRANTS[cost]}
    roles = {"yardstick": YARDSTICK[cost]}
    for ours, who in ((False, "rival"), (True, "composition")):
        held = {name: r["held_out"] for name, r in best.items() if composed[name] == ours}
        roles[f"best {who}"] = top = max(held, key=lambda name: held[name]["robust"])
        close = [name for name in held if held[name]["robust"] >= held[top]["robust"] - LOSS]
        roles[f"fairest {who}"] = max(close, key=lambda name: held[name]["worst_class"])
    return roles


def judged(data: str, cost: str) -> list[Trial]:
    """All seeds of those that are judged, each once, with the value that was chosen."""
    best = tuned(data, cost)
    names = dict.fromkeys(chosen(best, cost).values())
    return [Trial(data, cost, name, best[name]["number"], seed) for name in names for seed in SEEDS]


def main() -> None:
    """Train, judge, or write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("tune", "judge", "table"))
    parser.add_argument("--data", nargs="+", choices=SETTINGS, default=list(SETTINGS)[:2])
    parser.add_argument("--cost", nargs="+", choices=PASSES, default=list(PASSES))
    parser.add_argument("--only", nargs="+", default=())
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once, one thread each")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    if options.what == "table":
        from benchmarks.contest_page import write_page

        write_page()
        return
    with ProcessPoolExecutor(options.jobs) as pool:
        for data in options.data:
            for cost in options.cost:
                if options.what == "tune":
                    _all(pool, train, trials(data, cost, options.only), options.device)
                    continue
                if not (those := judged(data, cost)):
                    print(f"{data}, {cost} cost: tune everyone first", flush=True)
                _all(pool, train, those, options.device)
                _all(pool, attack, those, options.device)


def _all(pool: ProcessPoolExecutor, work: Any, those: Sequence[Trial], device: str) -> None:
    for said in pool.map(work, those, [device] * len(those)):
        print(said, flush=True)


if __name__ == "__main__":
    main()
