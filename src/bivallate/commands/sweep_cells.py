"""The grid of a sweep: its combinations, each with the arguments of its training."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from bivallate.commands.configuration import one_length, plan_of
from bivallate.commands.sweep_budget import SweepBudget
from bivallate.errors import UserError, check_seed, unknown
from bivallate.evaluation import attack_named
from bivallate.evaluation.threat_union import union_of
from bivallate.from_text import pair
from bivallate.models import architectures
from bivallate.quoting import command, file_name
from bivallate.run.budget import PlannedCost

__all__ = ["Combination", "SweepOptions", "cells_of"]

OPTIONS = ("eps", "lr", "epochs", "batch_size", "model", "recipe", "average")  # of train; others go to --set
OWN = {"seed": "seeds", "threads": "threads"}  # keys that the sweep sets itself -> its options for them


@dataclass(frozen=True)
class SweepOptions:
    """Settings of all runs of a sweep.

    Attributes:
        options: option of `bivallate train` -> value; None if not given.
        fixed: KEY=VALUE of --fix.
        attack: name of the attack.
        n: number of test points; None for all.
        jobs: runs at the same time.
        threads: of each run; 0 divides the processors among the jobs.
        passes: that every run may cost an example; None for the epochs of `options` and the grid.
    """

    options: Mapping[str, Any]
    fixed: tuple[str, ...]
    attack: str
    n: int | None
    jobs: int
    threads: int
    passes: float | None = None

    @property
    def each(self) -> int:
        """The number of threads of each run."""
        return self.threads or max(1, (os.cpu_count() or 1) // self.jobs)

    @property
    def points(self) -> tuple[int | None, int | None, int]:
        """The points that every run is attacked on, as an `EvaluationFilter` has them."""
        return self.n, None, 0

    def words(self, *names: str) -> list[str]:
        """Command-line arguments for the options of these names that were given."""
        return [f"--{name}={self.options[name]}" for name in names if self.options[name] is not None]


@dataclass(frozen=True)
class Combination:
    """One combination of method, values and seed.

    Attributes:
        name: of the folder.
        folder: of the run.
        train: arguments of `bivallate train`, without --out and --threads.
        threat: the threat that it is trained for; the union of several.
        own: options by which other commands find the user's own method or network.
        cost: its epochs and passes, of a sweep with a budget.
    """

    name: str
    folder: Path
    train: tuple[str, ...]
    threat: Any
    own: dict[str, str]
    cost: PlannedCost | None = None

    @property
    def line(self) -> str:
        """The command line that trains it."""
        return command("train", *self.train, "--out", self.folder)


def cells_of(
    methods: str, seeds: str, settings: tuple[str, ...], common: SweepOptions, out: Path
) -> list[Combination]:
    """List all combinations in the order of their runs: one seed after another.

    Args:
        methods: names with commas.
        seeds: their number, or a list with commas.
        settings: KEY=VALUE,VALUE,... of the grid.
        common: settings of all runs.
        out: folder of the sweep.

    Raises:
        UserError: a key or a value given twice, a combination that `train` would refuse or that the budget
            does not pay for, or two combinations with the same folder name.
    """
    attack_named(common.attack)
    names = _distinct("method", methods.split(","))
    axes = {}
    for item in settings:
        key, values = pair(item)
        _varies(key)
        if key in axes:
            raise UserError(f"{key} is set twice: name its values together, --set {key}=...,...")
        axes[key] = _distinct(f"value of {key}", values.split(","))
        if key == "average" and len(axes[key]) > 1:
            raise UserError(
                "a sweep compares the best weights, which no average changes: leave average out or --fix it, "
                "and `evaluate --weights ema`"
            )
    held = [pair(item)[0] for item in common.fixed]
    for key in held:
        _varies(key)
        if key in axes:
            raise UserError(f"{key} is both varied by --set and held by --fix: leave one out")
        if held.count(key) > 1:
            raise UserError(f"{key} is held twice by --fix: leave one out")
    one_length(common.passes, None, (*settings, *common.fixed))
    budget = None if common.passes is None else SweepBudget(common.passes)
    cells = [
        _cell(method, dict(zip(axes, values, strict=True)), seed, common, out, budget)
        for seed in _seeds(seeds)
        for method in names
        for values in product(*axes.values())
    ]
    clash = {cell.name for cell in cells}
    if len(clash) < len(cells):
        raise UserError("two combinations would have the same folder: name their values differently")
    return cells


def _varies(key: str) -> None:
    """Raise UserError for a key that the sweep itself sets for every run."""
    if key in OWN:
        raise UserError(f"{key} is not set by --set or --fix in a sweep: use --{OWN[key]}")


def _seeds(text: str) -> list[int]:
    """Parse --seeds: "3" gives 0, 1, 2, and "3,7" gives 3, 7."""
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


def _cell(
    method: str,
    values: dict[str, str],
    seed: int,
    common: SweepOptions,
    out: Path,
    budget: SweepBudget | None,
) -> Combination:
    pairs = {**dict(pair(item) for item in common.fixed), **values}
    options = {**common.options, **{k.replace("_", "-"): v for k, v in pairs.items() if k in OPTIONS}}
    rest = tuple(f"{k}={v}" for k, v in pairs.items() if k not in OPTIONS)
    taken = {"eps": options.get("eps"), "recipe": options["recipe"], "model": options["model"]}
    plan = plan_of(
        method,
        None,
        options["data"],
        taken["eps"],
        options["norm"],
        taken["recipe"],
        rest,
        taken["model"],
        options.get("average"),
    )
    if plan.model.name not in architectures.names() and ":" not in plan.model.name:
        raise unknown("model", plan.model.name, architectures.names())
    cost = budget.cost(plan, options) if budget is not None else None
    options |= {} if cost is None else {"epochs": cost.epochs}
    typed = [f"--{name}={value}" for name, value in options.items() if value is not None]
    words = (method, *typed, *(f"--set={item}" for item in rest), f"--seed={seed}")
    parts = [method, *(f"{k.rpartition('.')[2]}={v}" for k, v in values.items()), f"seed{seed}"]
    name = "-".join(file_name(part.replace("=", "")) for part in parts)
    own = {"method": method} if ":" in method else {}
    model = options["model"] or ""
    own |= {"model": model} if ":" in model and not model.startswith("timm:") else {}
    return Combination(name, out / name, words, union_of(plan.method.threats), own, cost)
