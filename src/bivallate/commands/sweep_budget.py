"""The budget of a sweep: the epochs of each combination, and what they were planned to cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bivallate.reports.collect import labels_of
from bivallate.reports.comparison.comparison_table import Comparison
from bivallate.run.budget import PlannedCost, affordable
from bivallate.run.config import Config, Data
from bivallate.run.defaults import fitted
from bivallate.run.from_config import load_data, resolved_data

__all__ = ["SweepBudget", "with_plans"]

USED = "training passes"  # the column of what a training has cost


@dataclass
class SweepBudget:
    """The passes an example that each training of a sweep may cost.

    Every data set is loaded once, and every plan counted once.
    """

    passes: float
    _sizes: dict[Data, tuple[int, int]] = field(default_factory=dict)
    _known: dict[str, PlannedCost] = field(default_factory=dict)

    def cost(self, plan: Config, options: Mapping[str, Any]) -> PlannedCost:
        """The epochs that a combination affords.

        Args:
            plan: its configuration, but for the options.
            options: option of `train` -> value, of which the data's folder and the batch size matter.

        Raises:
            UserError: one epoch costs more than the budget.
        """
        for key, option in (("data.data_dir", "data-dir"), ("batch_size", "batch-size")):
            plan = plan.set(key, options[option]) if options.get(option) is not None else plan
        if (known := self._known.get(repr(plan))) is not None:
            return known
        rows, classes = self._size(plan.data)
        chosen = options.get("batch-size") is not None or options.get("recipe") is not None
        sized = plan if chosen else fitted(plan, rows)
        _, cost = affordable(sized, self.passes, rows, classes)
        return self._known.setdefault(repr(plan), cost)

    def _size(self, data: Data) -> tuple[int, int]:
        """(training rows, classes) of a data set."""
        if data not in self._sizes:
            loaded = load_data(resolved_data(data), 0)
            self._sizes[data] = len(loaded.train), len(loaded.classes)
        return self._sizes[data]


def with_plans(table: Comparison, costs: Mapping[Path, PlannedCost], budget: float) -> Comparison:
    """A comparison with one column more: what each run was planned to cost, beside what it has cost.

    Args:
        table: the comparison.
        costs: folder of every run compared, in the order of the comparison -> its cost.
        budget: the passes an example that were allowed.
    """
    labels = dict(zip(labels_of([path.resolve() for path in costs]), costs.values(), strict=True))
    place = table.columns.index(USED)
    cells, rows = [], []
    for cell, row in zip(table.cells, table.rows, strict=True):
        plan = labels[row["runs"][0] if "runs" in row else row["run"]]
        cells.append((*cell[:place], f"{plan.at_most}\n{plan.length}", *cell[place:]))
        rows.append({**row, "planned_passes": plan.passes, "epochs": plan.epochs})
    columns = (*table.columns[:place], "planned passes", *table.columns[place:])
    note = f"planned: what the epochs may cost at most, of {budget:.12g} passes an example"
    about = {**table.about, "passes_allowed": budget}
    return replace(
        table, about=about, columns=columns, cells=tuple(cells), rows=tuple(rows), notes=(*table.notes, note)
    )
