"""Verdicts on claims of the form "A above B", tested on the same points if both have verdicts on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bivallate.evaluation.statistics import Z95, at_chance, paired_score_interval
from bivallate.reproduce.paper_table import Claim, PaperTable, Reported
from bivallate.reproduce.records import LOWEST, Record, of_cell, paired_differences

__all__ = ["Judgement", "Status", "judge_claim", "sign_flip"]

Status = Literal["confirmed", "not confirmed", "undecided", "not run"]
LEVEL = 0.05
FEWEST = 6  # fewest seeds to decide on a time: the sign test has p = 0.03 if all six have the same sign


@dataclass(frozen=True)
class Judgement:
    """The verdict of the records on a claim.

    Attributes:
        claim, group: the claim, and the group of columns.
        status: "confirmed" if the claim's inequality holds at the 5 % level by the interval and, if there is
            one, by the exact test; "not confirmed" if its opposite does; "undecided" if neither does, or if a
            row is at chance; "not run" if a record is missing.
        difference, interval_95: our difference, positive in the claim's direction, and its 95 % interval.
        p: two-sided p-value of the exact test, or None.
        how: name of the test.
        seeds: seeds that both rows have.
        paper: the paper's difference in the printed unit, or None.
        unit: unit of our difference.
        unweighted: rows whose example weights were nearly equal up to the reported epoch.
        at_chance: rows of which half of the networks or more are at chance on clean images; the claim is
            then undecided, whatever the test says.
    """

    claim: Claim
    group: str
    status: Status
    difference: float | None = None
    interval_95: tuple[float, float] | None = None
    p: float | None = None
    how: str = ""
    seeds: tuple[int, ...] = ()
    paper: float | None = None
    unit: str = "fraction"
    unweighted: tuple[str, ...] = ()
    at_chance: tuple[str, ...] = ()

    @property
    def paper_agrees(self) -> bool | None:
        """Whether the paper's own figures agree with the claim here; None if there are none."""
        if self.paper is None:
            return None
        return self.paper >= -100 * self.claim.margin if self.claim.margin else self.paper > 0

    def to_json(self) -> dict[str, Any]:
        """The verdict as plain data."""
        return {
            "claim": self.claim.text,
            "group": self.group,
            "status": self.status,
            "difference": self.difference,
            "interval_95": list(self.interval_95) if self.interval_95 else None,
            "p": self.p,
            "how": self.how,
            "seeds": list(self.seeds),
            "paper": self.paper,
            "unit": self.unit,
            "question": self.claim.question,
            "theirs": self.claim.theirs,
            "paper_agrees": self.paper_agrees,
            "unweighted": list(self.unweighted),
            "at_chance": list(self.at_chance),
        }


def judge_claim(table: PaperTable, claim: Claim, group: str, records: Sequence[Record]) -> Judgement:
    """Judge one claim in one group of columns."""
    first = {r.seed: r for r in of_cell(records, claim.better, group) if claim.column in r.columns}
    second = {r.seed: r for r in of_cell(records, claim.worse, group) if claim.column in r.columns}
    seeds = tuple(sorted(first.keys() & second.keys()))
    paper = _paper(table, claim, group)
    if not seeds:
        return Judgement(claim, group, "not run", paper=paper)
    pairs = [(first[s], second[s]) for s in seeds]
    if any(a.trained_on != b.trained_on for a, b in pairs):
        return Judgement(
            claim, group, "undecided", how="trained on different images", seeds=seeds, paper=paper
        )
    sign = -1.0 if claim.lower else 1.0
    difference, interval, p, how = _compare(pairs, claim.column, sign)
    if claim.margin and p is not None:
        p = None  # the test is of equality, but the claim allows for a margin
        how = "paired score interval" if len(pairs) == 1 else "paired interval over the seeds"
    unit = pairs[0][0].columns[claim.column]["unit"]
    sides = list(zip((claim.better, claim.worse), zip(*pairs, strict=True), strict=True))
    alike = tuple(row for row, side in sides if any(record.unweighted for record in side))
    guessing = tuple(row for row, side in sides if _guesses(side, claim.column))
    status = "undecided" if guessing else _status(claim, interval, p)
    return Judgement(claim, group, status, difference, interval, p, how, seeds, paper, unit, alike, guessing)


def _guesses(records: Sequence[Record], column: str) -> bool:
    """Whether the networks of half of the seeds or more are at chance on the clean images of a column."""
    guesses = sum((of := record.answers(column)) is not None and at_chance(*of) for record in records)
    return 2 * guesses >= len(records)


def _paper(table: PaperTable, claim: Claim, group: str) -> float | None:
    figures = [
        table.reported.get(row, {}).get(group, {}).get(claim.column) for row in (claim.better, claim.worse)
    ]
    if None in figures:
        return None
    better, worse = (Reported.read(str(text)).value for text in figures)
    return round(worse - better if claim.lower else better - worse, 6)


def _status(claim: Claim, interval: tuple[float, float] | None, p: float | None) -> Status:
    if interval is None:
        return "undecided"
    low, high = interval
    if p is not None and p >= LEVEL and not claim.margin:
        return "undecided"
    if low > -claim.margin:
        return "confirmed"
    return "not confirmed" if high < -claim.margin else "undecided"


Comparison = tuple[float, tuple[float, float] | None, float | None, str]


def _compare(pairs: Sequence[tuple[Record, Record]], column: str, sign: float) -> Comparison:
    what = pairs[0][0].columns[column]["what"]
    if what in LOWEST:
        return _apart(pairs, column, sign, "intervals of both tails")
    gained = paired_differences([(a.points(column), b.points(column)) for a, b in pairs])
    if gained is None:
        return _apart(pairs, column, sign, "intervals on different points")
    each = sign * gained
    point = each.mean(0)
    mean, n = float(point.mean()), len(point)
    if what.startswith("fosc"):
        half = Z95 * float(point.std(ddof=1)) / math.sqrt(n) if n > 1 else math.inf
        return mean, (mean - half, mean + half), None, f"paired interval on {n} points"
    p = sign_flip(np.rint(each.sum(0)).astype(int))
    return mean, _score_interval(each), p, f"exact paired test on {n} points"


def sign_flip(sums: np.ndarray) -> float:
    """Exact two-sided p-value of the paired sign-flip test on whole numbers (n,), one for each point.

    A point's number is the sum over the seeds of the difference of two verdicts. Under the null hypothesis
    every number has either sign with probability 1/2. With one seed this is McNemar's exact test.

    Example:
        >>> round(sign_flip(np.array([1] * 8 + [-1] * 2)), 4)
        0.1094
    """
    from scipy.stats import binom

    sizes, counts = np.unique(np.abs(sums[sums != 0]), return_counts=True)
    if len(sizes) == 0:
        return 1.0
    law = np.ones(1)  # distribution of (total + sum of sizes) / 2, a whole number
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        spread = np.zeros(size * count + 1)
        spread[::size] = binom.pmf(np.arange(count + 1), count, 0.5)
        law = np.convolve(law, spread)
    totals = 2 * np.arange(len(law)) - (len(law) - 1)
    return float(min(1.0, law[np.abs(totals) >= abs(int(sums.sum()))].sum()))


def _score_interval(gains: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the mean of gains (seeds, points), which are -1, 0 or 1.

    With one seed it is the paired score interval. With several it is the interval of the points' means over
    the seeds, with z^2/2 gains and z^2/2 losses added (after Agresti and Min), so that its width is not zero
    if no point differs.
    """
    if len(gains) == 1:
        return paired_score_interval(int((gains > 0).sum()), int((gains < 0).sum()), gains.size)
    mean = gains.mean(0)
    n = len(mean) + Z95**2
    centre = float(mean.sum()) / n
    half = Z95 * math.sqrt(max((float((mean**2).sum()) + Z95**2) / n - centre**2, 0) / n)
    return centre - half, centre + half


def _apart(pairs: Sequence[tuple[Record, Record]], column: str, sign: float, how: str) -> Comparison:
    """Newcombe's interval of a difference, from the intervals of both sides.

    It is used if the points differ, and for tails and worst classes. A bootstrap of their difference would
    choose the weakest classes of each resample anew, which favours the more unequal method.
    """
    entries = [(a.columns[column], b.columns[column]) for a, b in pairs]
    means = [float(np.mean([pair[side]["value"] for pair in entries])) for side in (0, 1)]
    difference = sign * (means[0] - means[1])
    if any(entry["interval_95"] is None for pair in entries for entry in pair):
        return difference, _of_seeds(entries, sign), None, "spread over the seeds"
    bounds = [np.mean([pair[side]["interval_95"] for pair in entries], 0) for side in (0, 1)]
    up, down = (0, 1) if sign > 0 else (1, 0)
    low = difference - math.hypot(means[up] - bounds[up][0], bounds[down][1] - means[down])
    high = difference + math.hypot(bounds[up][1] - means[up], means[down] - bounds[down][0])
    return difference, (low, high), None, how


def _of_seeds(
    entries: list[tuple[dict[str, Any], dict[str, Any]]], sign: float
) -> tuple[float, float] | None:
    """The range of the differences over the seeds; None for fewer than `FEWEST` seeds."""
    each = [sign * (a["value"] - b["value"]) for a, b in entries]
    return (min(each), max(each)) if len(each) >= FEWEST else None
