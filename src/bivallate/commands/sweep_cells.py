"""The grid of a sweep: its combinations, each the words of a training."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from bivallate.commands.configuration import plan_of
from bivallate.errors import UserError, check_seed
from bivallate.evaluation import parse
from bivallate.from_text import pair
from bivallate.quoting import command, file_name

__all__ = ["Combination", "SweepOptions", "cells_of"]

OPTIONS = ("eps", "lr", "epochs", "batch_size", "model", "recipe", "average")  # of train; others are of --set
OWN = {"seed": "seeds", "threads": "threads"}  # said to every run last, whatever --set says


@dataclass(frozen=True)
class SweepOptions:
    """What holds for all runs of a sweep.

    Attributes:
        options: of train, by name; None where nothing was said. fixed: KEY=VALUE. attack, n: of the
            evaluations. jobs, threads: as typed.
    """

    options: Mapping[str, Any]
    fixed: tuple[str, ...]
    attack: str
    n: int | None
    jobs: int
    threads: int

    @property
    def each(self) -> int:
        """Threads of a run."""
        return self.threads or max(1, (os.cpu_count() or 1) // self.jobs)

    def words(self, *names: str) -> list[str]:
        """The options of these names, as they are typed."""
        return [f"--{name}={self.options[name]}" for name in names if self.options[name] is not None]


@dataclass(frozen=True)
class Combination:
    """One combination.

    Attributes:
        name: of its folder. folder: of the run. train: the words after `bivallate train`, without folder and
            threads. threat: that it is trained for. own: options that commands on this run need for code of
            the user's.
    """

    name: str
    folder: Path
    train: tuple[str, ...]
    threat: Any
    own: dict[str, str]

    @property
    def line(self) -> str:
        """What trains it."""
        return command("train", *self.train, "--out", self.folder)


def cells_of(
    methods: str, seeds: str, settings: tuple[str, ...], common: SweepOptions, out: Path
) -> list[Combination]:
    """All combinations, in the order in which they are run: all methods and values of a seed first.

    Raises:
        UserError: an axis twice, a value twice, or a combination that `train` would refuse.
    """
    parse(common.attack)
    names = _distinct("method", methods.split(","))
    axes = {}
    for item in settings:
        key, values = pair(item)
        _varies(key)
        if key in axes:
            raise UserError(f"{key} is set twice: name its values together, --set {key}=...,...")
        axes[key] = _distinct(f"value of {key}", values.split(","))
    for item in common.fixed:
        _varies(key := pair(item)[0])
        if key in axes:
            raise UserError(f"{key} is both varied by --set and held by --fix: leave one out")
    cells = [
        _cell(method, dict(zip(axes, values, strict=True)), seed, common, out)
        for seed in _seeds(seeds)
        for method in names
        for values in product(*axes.values())
    ]
    clash = {cell.name for cell in cells}
    if len(clash) < len(cells):
        raise UserError("two combinations would have the same folder: name their values differently")
    return cells


def _varies(key: str) -> None:
    """Raise UserError for what the sweep itself tells every run, so that a value of it would not count."""
    if key in OWN:
        raise UserError(f"{key} is not set by --set or --fix in a sweep: use --{OWN[key]}")


def _seeds(text: str) -> list[int]:
    """The seeds of a number of them, or of a list."""
    try:
        numbers = [int(item) for item in text.split(",") if item.strip()]
    except ValueError:
        raise UserError(f"--seeds is a number of seeds or a list such as 3,7, got {text!r}") from None
    if "," not in text and numbers and numbers[0] < 1:
        raise UserError(f"--seeds must be at least 1, got {text}")
    seeds = numbers if "," in text else list(range(*numbers))
    if not seeds:
        raise UserError(f"--seeds is a number of seeds or a list such as 3,7, got {text!r}")
    return [check_seed(int(seed)) for seed in _distinct("seed", [str(seed) for seed in seeds])]


def _distinct(what: str, items: list[str]) -> list[str]:
    found = [item.strip() for item in items]
    if not all(found) or len(set(found)) < len(found):
        raise UserError(f"every {what} is named once, with commas between them, got {','.join(items)!r}")
    return found


def _cell(method: str, values: dict[str, str], seed: int, common: SweepOptions, out: Path) -> Combination:
    pairs = {**dict(pair(item) for item in common.fixed), **values}
    options = {**common.options, **{k.replace("_", "-"): v for k, v in pairs.items() if k in OPTIONS}}
    rest = tuple(f"{k}={v}" for k, v in pairs.items() if k not in OPTIONS)
    typed = [f"--{name}={value}" for name, value in options.items() if value is not None]
    words = (method, *typed, *(f"--set={item}" for item in rest), f"--seed={seed}")
    taken = {"eps": options.get("eps"), "recipe": options["recipe"], "model": options["model"]}
    plan = plan_of(
        method, None, options["data"], taken["eps"], options["norm"], taken["recipe"], rest, taken["model"]
    )
    parts = [method, *(f"{k.rpartition('.')[2]}={v}" for k, v in values.items()), f"seed{seed}"]
    name = "-".join(file_name(part.replace("=", "")) for part in parts)
    own = {"method": method} if ":" in method else {}
    model = options["model"] or ""
    own |= {"model": model} if ":" in model and not model.startswith("timm:") else {}
    return Combination(name, out / name, words, plan.method.threat, own)
