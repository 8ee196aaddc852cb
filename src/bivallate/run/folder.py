"""The folder that a run lives in."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

from bivallate.errors import UserError, unknown
from bivallate.files import write_text
from bivallate.schema import MEGABYTE, Amount, Count, Digits, Share, parse, read_text

WEIGHTS = ("best", "last", "ema")  # those that a report prefers first
KEPT = re.compile(r"epoch-([1-9][0-9]*)")  # the name of weights that `Config.keep` asked for
CONTENTS = (
    "config.toml",
    "metrics.jsonl",
    "model.safetensors",
    "model.json",
    "best.safetensors",
    "ema.safetensors",
)
Row = Annotated[str, Digits()]
REPORTS = ("report.html", "report.md", "report.tex")
FOLDERS = ("checkpoints", "evaluation", "audit", "diagnosis", "report-figures")


def check_weights(name: str) -> str:
    """The name of some of a run's weights: best, last, ema, or epoch-N. Raises UserError for another."""
    if name not in WEIGHTS and not KEPT.fullmatch(name):
        raise unknown("weights", name, [*WEIGHTS, "epoch-N (of a run with keep=N)"])
    return name


class Alarm(TypedDict):
    """What the sentinel reported."""

    kind: str
    epoch: int
    step: int
    text: str
    rolled_back: NotRequired[bool]


class Line(TypedDict):
    """A line of metrics.jsonl, as far as something reads it; what a method logs besides stays as it is."""

    epoch: Count
    loss: float
    train_robust: float
    weight_mean: float
    effective: float
    forward: Amount
    backward: Amount
    total_forward: Amount
    total_backward: Amount
    seconds: Amount
    lr: NotRequired[float]
    clean: NotRequired[Share]
    robust: NotRequired[Share]
    average_clean: NotRequired[Share]
    average_robust: NotRequired[Share]
    temperature: NotRequired[float | None]
    sentinel_fgsm: NotRequired[float | None]
    sentinel_pgd: NotRequired[float | None]
    sentinel_alignment: NotRequired[float | None]
    weight_quantiles: NotRequired[list[float]]
    watched: NotRequired[dict[Row, tuple[float, float]]]
    watched_clean: NotRequired[dict[Row, float]]
    alarms: NotRequired[list[Alarm]]


@dataclass(frozen=True)
class RunFolder:
    """config.toml, metrics.jsonl, model.safetensors + model.json, best, ema and epoch-N, checkpoints/,
    evaluation/; what the commands that look at it put there: audit/, diagnosis/ and reports."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.toml"

    @property
    def metrics(self) -> Path:
        """One JSON line an epoch."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """What an exact resume needs."""
        return self.path / "checkpoints"

    @property
    def evaluation(self) -> Path:
        """One JSON file for each weights, threat, attack and seed."""
        return self.path / "evaluation"

    @staticmethod
    def create(path: Path, *, overwrite: bool = False) -> RunFolder:
        """A new folder. Raises UserError if it exists and holds anything, unless `overwrite` says to clear
        the run."""
        folder = RunFolder(path)
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is a file; name a folder for the run with --out")
        if path.is_dir() and any(path.iterdir()):
            if not overwrite:
                raise UserError(
                    f"the run folder {path} exists already: choose another --out, continue it with "
                    f"`bivallate resume {path}`, or replace it with --overwrite"
                )
            if not folder.config.exists():
                raise UserError(
                    f"{path} is not a run folder, so --overwrite will not clear it; choose another --out"
                )
            folder._clear()
        try:
            folder.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot create the run folder {path}: {error.strerror}") from error
        return folder

    @staticmethod
    def open(path: Path) -> RunFolder:
        """An existing run. Raises UserError if there is none."""
        folder = RunFolder(Path(path))
        if not folder.config.exists():
            raise UserError(
                f"no run in {path}: it has no config.toml; name a folder that `bivallate train` wrote"
            )
        return folder

    def _clear(self) -> None:
        """Removes what a run and the commands that look at it leave; files of the user's own stay."""
        for name in (*CONTENTS, *REPORTS):
            (self.path / name).unlink(missing_ok=True)
        for kept in self.path.glob("epoch-*.safetensors"):
            if KEPT.fullmatch(kept.stem):
                kept.unlink()
        for name in FOLDERS:
            shutil.rmtree(self.path / name, ignore_errors=True)

    def write_metrics(self, history: list[dict[str, Any]]) -> None:
        """All epochs so far."""
        lines = (json.dumps(line, allow_nan=False) + "\n" for line in history)
        write_text(self.metrics, "".join(lines))

    def read_metrics(self) -> list[dict[str, Any]]:
        """All epochs so far. Raises UserError for a line that is no epoch, with its number and key."""
        if not self.metrics.exists():
            return []
        lines = read_text(self.metrics, "record of epochs", 1024 * MEGABYTE).splitlines()
        places = (f"{self.metrics}, line {k}" for k in range(1, len(lines) + 1))
        return [parse(line, place, "epoch", Line) for line, place in zip(lines, places, strict=True)]
