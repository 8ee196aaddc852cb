"""The folder that a run lives in."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

from bivallate.errors import UserError, unknown
from bivallate.files import is_temporary, make_folder, remove, sweep, sync_folder, write_text
from bivallate.quoting import command
from bivallate.run.checkpoint import clear_orphans, list_all
from bivallate.run.lock import NAME as LOCK
from bivallate.schema import MEGABYTE, Amount, Count, Digits, Share, parse, read_text
from bivallate.untrusted_files import check_regular

WEIGHTS = ("best", "last", "ema")  # those that a report prefers first
OTHER_WORDS = {"model": "last", "average": "ema"}
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
FIRST_LINE = "# Resolved and complete"  # of config.toml
REPORTS = ("report.html", "report.md", "report.tex")
FOLDERS = ("checkpoints", "evaluation", "audit", "diagnosis", "report-figures", "logs")


def check_weights(name: str) -> str:
    """The name of some of a run's weights: best, last, ema, or epoch-N.

    `model`, as the file of the last is called, is another word for last, and `average` for ema, which holds
    any average. Raises UserError for another.
    """
    if name in OTHER_WORDS:
        return OTHER_WORDS[name]
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


class EpochLine(TypedDict):
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
    """The files of a run.

    config.toml, metrics.jsonl, model.safetensors + model.json, best, ema and epoch-N, checkpoints/,
    evaluation/; what the commands that look at it put there: audit/, diagnosis/ and reports.
    """

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
        """A folder that is free for a run: new, empty, or with nothing but a run's beginning in it.

        A run's beginning has no state to go on from. Raises UserError if it holds more; `overwrite` clears a
        run.
        """
        folder = RunFolder(path)
        if not folder.free and not overwrite:
            raise UserError(
                f"the run folder {path} exists already: choose another --out, continue it with "
                f"`{command('resume', path)}`, or replace it with --overwrite"
            )
        if not folder.free and not folder.is_run:
            raise UserError(
                f"{path} is not a run folder, so --overwrite will not clear it; choose another --out"
            )
        try:
            make_folder(path)
        except OSError as error:
            raise UserError(f"cannot create the run folder {path}: {error.strerror or error}") from error
        return folder

    @staticmethod
    def open(path: Path) -> RunFolder:
        """An existing run. Raises UserError if there is none, or if a folder of it is a link."""
        folder = RunFolder(Path(path))
        if not folder.config.exists() and not list_all(folder.checkpoints):
            raise UserError(
                f"no run in {path}: it has no config.toml; name a folder that `bivallate train` wrote"
            )
        folder.check_own()
        return folder

    def check_own(self) -> None:
        """Raise UserError where a folder of the run is a link, through which would be written elsewhere."""
        for place in (self.path / name for name in FOLDERS):
            if place.is_symlink():
                raise UserError(
                    f"{place} is a link, and a run keeps what is its own in its own folder: put the files "
                    "themselves there, or link the whole run's folder"
                )

    @property
    def free(self) -> bool:
        """Whether nothing would be lost if a run began here. Raises UserError for what is no folder."""
        if not self.path.exists():
            return True
        if not self.path.is_dir():
            raise UserError(f"{self.path} is a file; name a folder for the run with --out")
        return all(self._is_beginning(entry) for entry in self._entries())

    @property
    def is_run(self) -> bool:
        """Whether it is a run's, even one that was half cleared."""
        return self.config.exists() or all(self._is_own(entry.name) for entry in self._entries())

    def _entries(self) -> list[Path]:
        return [p for p in self.path.iterdir() if p.name != LOCK and not is_temporary(p.name)]

    def _is_beginning(self, entry: Path) -> bool:
        if entry.name == "checkpoints" and entry.is_dir() and not entry.is_symlink():
            return not list_all(entry)
        empty = entry.name in FOLDERS and entry.is_dir() and not any(entry.iterdir())
        return empty or (entry == self.config and self._is_ours(entry))

    @staticmethod
    def _is_ours(config: Path) -> bool:
        """Whether a file is a configuration that a run wrote."""
        try:
            check_regular(config)
            with config.open("rb") as stream:
                return stream.read(len(FIRST_LINE)) in (b"", FIRST_LINE.encode())
        except (OSError, UserError):
            return False

    @staticmethod
    def _is_own(name: str) -> bool:
        kept = name.endswith(".safetensors") and KEPT.fullmatch(name.removesuffix(".safetensors"))
        return name in (*CONTENTS, *REPORTS, *FOLDERS) or bool(kept)

    def clear(self) -> None:
        """Remove what a run and the commands that look at it leave, the checkpoints last.

        Files of the user's own stay, and config.toml, which the next one replaces: a folder that is half
        cleared still is a run's. Of links, only the link is removed.

        Raises UserError for what cannot be removed.
        """
        own = [entry for entry in self._entries() if self._is_own(entry.name) and entry != self.config]
        for entry in sorted(own, key=lambda entry: entry.name == "checkpoints"):
            remove(entry)
        make_folder(self.checkpoints)
        sync_folder(self.path)

    def tidy(self) -> None:
        """Remove what processes that are no more have left unfinished."""
        for place in (self.path, *(self.path / name for name in FOLDERS)):
            if place.is_dir() and not place.is_symlink():
                sweep(place)
        clear_orphans(self.checkpoints)

    def write_metrics(self, history: list[dict[str, Any]]) -> None:
        """All epochs so far."""
        write_text(self.metrics, lines_of(history))

    def read_metrics(self) -> list[dict[str, Any]]:
        """All epochs so far. Raises UserError for a line that is no epoch, with its number and key."""
        if not self.metrics.exists():
            return []
        lines = read_text(self.metrics, "record of epochs", 1024 * MEGABYTE).splitlines()
        places = (f"{self.metrics}, line {k}" for k in range(1, len(lines) + 1))
        return [parse(line, place, "epoch", EpochLine) for line, place in zip(lines, places, strict=True)]


def lines_of(history: list[dict[str, Any]]) -> str:
    """The text of metrics.jsonl."""
    return "".join(json.dumps(line, allow_nan=False) + "\n" for line in history)
