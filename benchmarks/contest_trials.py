"""The trainings of benchmarks/contest.py, their records, and who is chosen by them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.contest_entrants import ENTRANTS, EPOCHS, PASSES, Entrant
from bivallate import Linf, Method
from bivallate.parts import encode, portable
from bivallate.reproduce.definition import without_machine
from bivallate.run.budget import affordable
from bivallate.run.config import Config, Data, Model, Precision, Validation
from bivallate.run.optim import SGD
from bivallate.run.rates import Triangle
from bivallate.run.sentinel import Sentinel

RECORDS, RUNS = Path("results/contest"), Path("runs/contest")
CLASSES, CIFAR10 = 10, 50_000  # of every data set, and training images of the one that is not cut
SEEDS = (0, 1, 2)  # the first is that of the trials
LOSS = 0.005  # robust accuracy below the most robust of all that the fairest may lose
YARDSTICK = {"low": "n-fgsm", "high": "at"}
WHO = {"rival": False, "composition": True}


@dataclass(frozen=True)
class Setting:
    """What all trainings on a data set share.

    Attributes:
        eps: radius in Linf. network, width: architecture. rows, held, points: number of training images (0:
            all), held-out images and test images.
        tuning: number of training images of the trials that choose the values (0: as many as for the judged).
        batch, lr, decay, augment, precision: as in a configuration.
    """

    eps: float
    network: str
    rows: int
    width: float = 1.0
    held: int = 2000
    points: int = 1000
    tuning: int = 0
    batch: int = 32
    lr: float = 0.05
    decay: float = 2e-4
    augment: str = "none"
    precision: Precision = "float32"

    @property
    def images(self) -> int:
        """Number of training images of those that are judged."""
        return self.rows or CIFAR10 - self.held


SETTINGS = {
    "fashion-mnist": Setting(0.1, "tiny-cnn", 2000),
    "mnist": Setting(0.1, "tiny-cnn", 2000),
    "cifar10": Setting(
        8 / 255, "preact-resnet18", 0, width=0.25, tuning=10_000, batch=128, lr=0.2, decay=5e-4,
        augment="crop:4,flip", precision="bf16",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Trial:
    """One training.

    Attributes:
        number: of the value of the parameter among the entrant's.
        whole: whether it has all images of a setting that tunes with fewer.
    """

    data: str
    cost: str
    name: str
    number: int
    seed: int = 0
    whole: bool = False

    @property
    def entrant(self) -> Entrant:
        """The one that is trained."""
        return next(e for e in ENTRANTS[self.cost] if e.name == self.name)

    @property
    def method(self) -> Method:
        """The method with the trial's value."""
        return self.entrant.make(Linf(SETTINGS[self.data].eps), self.value)

    @property
    def value(self) -> Any:
        """The trial's value of the tuned parameter."""
        return self.entrant.values[self.number]

    @property
    def label(self) -> str:
        """The name in files."""
        return f"{self.name}-{self.number}-seed{self.seed}{'-whole' * self.whole}"

    @property
    def images(self) -> int:
        """Number of training images."""
        setting = SETTINGS[self.data]
        return setting.images if self.whole else setting.tuning or setting.images

    @property
    def record(self) -> Path:
        """The file of the record."""
        return RECORDS / self.data / self.cost / f"{self.label}.json"

    def read(self) -> dict[str, Any]:
        """The record, which must be there."""
        return json.loads(self.record.read_text(encoding="utf-8"))

    @property
    def budget(self) -> int:
        """Forward and backward passes an example that the training may cost."""
        return EPOCHS * PASSES[self.cost]

    @property
    def recorded(self) -> bool:
        """Whether there is a record, of this value, that keeps the budget.

        And of these settings, where it says which; the first ones do not.
        """
        if not self.record.exists():
            return False
        found = self.read()
        same = (found["parameter"], found["value"]) == (self.entrant.parameter, self.value)
        same &= found["rows"] == self.images
        if same and "config" in found:
            same = found["config"] == settings(configure(self))
        return same and found["passes"] <= self.budget

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
    return affordable(config, trial.budget, trial.images, CLASSES)[0]


def settings(config: Config) -> dict[str, Any]:
    """What decides on the weights of a training, as JSON has it."""
    return json.loads(json.dumps(portable(encode(without_machine(config)))))


def trials(data: str, cost: str, only: Sequence[str] = ()) -> list[Trial]:
    """Everyone with each value; of `only` if it names some."""
    everyone = [e for e in ENTRANTS[cost] if not only or e.name in only]
    return [Trial(data, cost, e.name, number) for number in (1, 0, 2) for e in everyone]


def tuned(data: str, cost: str) -> dict[str, dict[Trial, dict[str, Any]]]:
    """Name -> trial -> figures on held-out images, in the order of the values.

    Only of entrants that have a record of every value, so that all have been tuned alike.
    """
    found = {}
    for entrant in ENTRANTS[cost]:
        own = sorted(trials(data, cost, [entrant.name]), key=lambda trial: trial.number)
        if all(trial.recorded for trial in own):
            found[entrant.name] = {trial: trial.read()["held_out"] for trial in own}
    return found


def most(held: dict[Trial, dict[str, Any]], figure: str) -> Trial:
    """The trial with the highest figure; of equals the one with the highest robust accuracy."""
    return max(held, key=lambda trial: (held[trial][figure], held[trial]["robust"]))


def bar(data: str, cost: str) -> tuple[Trial, float]:
    """The most robust trial of all on held-out images, and the robust accuracy of which the fairest are."""
    held = {trial: h for own in tuned(data, cost).values() for trial, h in own.items()}
    top = most(held, "robust")
    return top, held[top]["robust"] - LOSS


def chosen(data: str, cost: str) -> dict[str, Trial]:
    """Role -> the entrant and the value that are judged, by held-out images.

    The best is the most robust; the fairest has the highest worst class of those that reach the `bar`, and is
    missing if nobody of its kind does. Empty before everyone is tuned.
    """
    everyone = tuned(data, cost)
    if len(everyone) < len(ENTRANTS[cost]):
        return {}
    roles, least = {"yardstick": most(everyone[YARDSTICK[cost]], "robust")}, bar(data, cost)[1]
    for who, ours in WHO.items():
        held = {t: h for own in everyone.values() for t, h in own.items() if t.entrant.composed == ours}
        roles[f"best {who}"] = most(held, "robust")
        if close := {trial: h for trial, h in held.items() if h["robust"] >= least}:
            roles[f"fairest {who}"] = most(close, "worst_class")
    return roles


def judged(data: str, cost: str) -> list[Trial]:
    """All seeds of those that are judged, each once, with the value that was chosen, on all images."""
    those, whole = dict.fromkeys(chosen(data, cost).values()), SETTINGS[data].tuning > 0
    return [replace(trial, seed=seed, whole=whole) for trial in those for seed in SEEDS]


def repeats(found: dict[str, Any], recorded: dict[str, Any]) -> bool:
    """Whether a second training found what is recorded; older records lack some figures."""
    return all(found[what] == value for what, value in recorded.items())
