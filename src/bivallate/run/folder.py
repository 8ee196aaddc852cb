"""The folder of a run."""

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

WEIGHTS = ("best", "last", "ema")  # in the order in which a report prefers them
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
    """The proper name of a run's weights: best, last, ema or epoch-N.

    `model`, the name of the file, stands for last, and `average` for ema, which may be any average. Raises
    UserError for other names.
    """
    if name in OTHER_WORDS:
        return OTHER_WORDS[name]
    if name not in WEIGHTS and not KEPT.fullmatch(name):
        raise unknown("weights", name, [*WEIGHTS, "epoch-N (of a run with keep=N)"])
    return name


class Alarm(TypedDict):
    """An alarm of the sentinel."""

    kind: str
    epoch: int
    step: int
    text: str
    rolled_back: NotRequired[bool]


class EpochLine(TypedDict):
    """The entries of a line of metrics.jsonl that the program reads; methods may log further entries."""

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

    They are config.toml, metrics.jsonl, model.safetensors with model.json, best.safetensors, ema.safetensors,
    epoch-N.safetensors, checkpoints/ and evaluation/. Other commands add audit/, diagnosis/ and reports.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.toml"

    @property
    def metrics(self) -> Path:
        """One JSON line per epoch."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def evaluation(self) -> Path:
        """Folder of the evaluations: one JSON file for each combination of weights, threat, attack, seed."""
        return self.path / "evaluation"

    @staticmethod
    def create(path: Path, *, overwrite: bool = False) -> RunFolder:
        """Create a folder for a new run.

        An existing folder must be empty, or hold a run that ended before its first checkpoint. With
        `overwrite` it may hold any run, which `clear` then removes. Raises UserError otherwise.
        """
        folder = RunFolder(path)
        if not folder.free and not overwrite and not folder.is_run:
            raise UserError(f"{path} exists already, is not empty and is no run: choose another --out")
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
        """Open the folder of an existing run. Raises UserError if there is none, or a subfolder is a link."""
        folder = RunFolder(Path(path))
        if not folder.config.exists() and not list_all(folder.checkpoints):
            raise UserError(
                f"no run in {path}: it has no config.toml; name a folder that `bivallate train` wrote"
            )
        folder.check_own()
        return folder

    def check_own(self) -> None:
        """Raise UserError if a subfolder is a link: files would be written outside of the run's folder."""
        for place in (self.path / name for name in FOLDERS):
            if place.is_symlink():
                raise UserError(
                    f"{place} is a link, and a run keeps what is its own in its own folder: put the files "
                    "themselves there, or link the whole run's folder"
                )

    @property
    def free(self) -> bool:
        """Whether a run can begin here without losing anything. Raises UserError if it is a file."""
        if not self.path.exists():
            return True
        if not self.path.is_dir():
            raise UserError(f"{self.path} is a file; name a folder for the run with --out")
        return all(self._is_beginning(entry) for entry in self._entries())

    @property
    def is_run(self) -> bool:
        """Whether the folder is a run's, even if it was partly cleared."""
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
        """Whether a run wrote this configuration file."""
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
        """Remove the files of a run and of the commands that read it; the checkpoints last.

        The user's own files stay. config.toml stays too, until the next run replaces it, so that a partly
        cleared folder is still recognised as a run's. If an entry is a link, only the link is removed.

        Raises UserError if something cannot be removed.
        """
        own = [entry for entry in self._entries() if self._is_own(entry.name) and entry != self.config]
        for entry in sorted(own, key=lambda entry: entry.name == "checkpoints"):
            remove(entry)
        make_folder(self.checkpoints)
        sync_folder(self.path)

    def tidy(self) -> None:
        """Remove unfinished files of processes that have ended."""
        for place in (self.path, *(self.path / name for name in FOLDERS)):
            if place.is_dir() and not place.is_symlink():
                sweep(place)
        clear_orphans(self.checkpoints)

    def write_metrics(self, history: list[dict[str, Any]]) -> None:
        """Write the lines of all epochs so far."""
        write_text(self.metrics, lines_of(history))

    def read_metrics(self) -> list[dict[str, Any]]:
        """Read the lines of all epochs so far. Raises UserError for a wrong line, with its number and key."""
        if not self.metrics.exists():
            return []
        lines = read_text(self.metrics, "record of epochs", 1024 * MEGABYTE).splitlines()
        places = (f"{self.metrics}, line {k}" for k in range(1, len(lines) + 1))
        return [parse(line, place, "epoch", EpochLine) for line, place in zip(lines, places, strict=True)]


def lines_of(history: list[dict[str, Any]]) -> str:
    """The text of metrics.jsonl."""
    return "".join(json.dumps(line, allow_nan=False) + "\n" for line in history)
