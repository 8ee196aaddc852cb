"""Runs that differ only in their seed, as one row of a comparison."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from bivallate.errors import UserError
from bivallate.evaluation import metrics
from bivallate.evaluation.metrics import Metric, TrainingCost, by_key
from bivallate.evaluation.pairs import LEVEL
from bivallate.evaluation.score import Score
from bivallate.evaluation.significance import SeedSpread, check_same_rows
from bivallate.evaluation.statistics import holm, welch
from bivallate.reports.collect import RunRecord
from bivallate.reports.stored_evaluations import Evaluation
from bivallate.reports.tables import flatten
from bivallate.run.config import OF_THE_MACHINE

IRRELEVANT = {"seed", "checkpoint_minutes", *OF_THE_MACHINE} - {"precision"}  # in which seeds may differ


@dataclass(frozen=True)
class Seeds:
    """The runs of one method with different seeds.

    Attributes:
        method: name of the method.
        runs, seeds: labels and seeds of the runs.
        spreads: key of a metric -> its mean, standard deviation and interval over the seeds.
    """

    method: str
    runs: tuple[str, ...]
    seeds: tuple[int, ...]
    spreads: dict[str, SeedSpread]

    def cell(self, metric: Metric) -> str:
        """The text of a cell: mean, standard deviation and interval of an accuracy; means of a cost."""
        spread = self.spreads[metric.key]
        if not math.isfinite(spread.mean):
            return "-"
        text = metric.text(spread.mean)
        if metric.companion_key:
            companion = by_key(metric.companion_key)
            return f"{text}\n{companion.text(self.spreads[companion.key].mean)}"
        if not metric.is_share or spread.std is None or spread.interval_95 is None:
            return text
        low, high = (100 * min(1.0, max(0.0, bound)) for bound in spread.interval_95)
        return f"{text}\n±{100 * spread.std:.2f}\n{low:.1f}-{high:.1f}"

    def to_json(self) -> dict[str, Any]:
        """The row as plain data; None for a cost that is not known."""
        entry: dict[str, Any] = {
            "method": self.method,
            "runs": list(self.runs),
            "seeds": list(self.seeds),
        }
        for key, spread in self.spreads.items():
            if all(map(math.isfinite, spread.values)):
                interval = list(spread.interval_95) if spread.interval_95 is not None else None
                entry[key] = {"values": list(spread.values), "mean": spread.mean, "std": spread.std}
                entry[key]["interval_95"] = interval
            else:
                entry[key] = None
        return entry


def by_seed(
    runs: Sequence[RunRecord], chosen: Sequence[Evaluation], costs: Sequence[TrainingCost | None]
) -> list[Seeds]:
    """Group the runs whose configurations differ only in the seed and in where they were computed.

    Raises UserError if a seed occurs twice in a group.
    """
    groups: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for k, run in enumerate(runs):
        flat = {key: value for key, value in flatten(run.written.entry).items() if key not in IRRELEVANT}
        groups.setdefault(tuple(sorted(flat.items())), []).append(k)
    return [_group(members, runs, [e.score for e in chosen], costs) for members in groups.values()]


def _group(
    members: Sequence[int],
    runs: Sequence[RunRecord],
    scores: Sequence[Score],
    costs: Sequence[TrainingCost | None],
) -> Seeds:
    of_members = [scores[k] for k in members]
    check_same_rows(of_members)
    pairs = list(zip(of_members, (costs[k] for k in members), strict=True))
    spreads = {m.key: _of([m.value(score, cost) for score, cost in pairs]) for m in metrics.METRICS}
    first = runs[members[0]].config.method.name
    labels, seeds = zip(*((runs[k].label, runs[k].config.seed) for k in members), strict=True)
    if len(set(seeds)) < len(seeds):
        raise UserError(
            f"{', '.join(labels)} are one method, but their seeds repeat ({', '.join(map(str, seeds))}): a "
            "seed that counts twice makes the interval too narrow; leave the repeated runs out"
        )
    return Seeds(first, labels, seeds, spreads)


def _of(values: list[float]) -> SeedSpread:
    """Mean, standard deviation and interval; infinite and None if a value is not known."""
    if all(map(math.isfinite, values)):
        return SeedSpread.of(values)
    return SeedSpread(tuple(values), math.inf, None, None)


def welch_tests(groups: Sequence[Seeds]) -> list[tuple[float | None, float | None, bool]]:
    """(p, p corrected for all pairs, whether it is significant) of each group against the first."""
    values = [group.spreads[metrics.HEADLINE.key].values for group in groups]
    pairs = {(i, j): welch(values[i], values[j]) for i, j in combinations(range(len(groups)), 2)}
    known = {pair: p for pair, p in pairs.items() if p is not None}
    adjusted = dict(zip(known, holm(list(known.values())), strict=True))
    tests: list[tuple[float | None, float | None, bool]] = [(None, None, False)]
    for j in range(1, len(groups)):
        p = adjusted.get((0, j))
        tests.append((pairs[0, j], p, p is not None and p < LEVEL))
    return tests
