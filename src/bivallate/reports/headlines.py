"""The headlines of a report: each run's accuracy under its strongest attack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bivallate.evaluation import Score
from bivallate.evaluation.threat_union import radius
from bivallate.reports.collect import RunRecord
from bivallate.reports.stored_evaluations import Evaluation
from bivallate.reports.tables import share_cell, worst_class

MOST = 12  # runs; for more of them a report shows the table alone


@dataclass(frozen=True)
class Headline:
    """The headline of a run, as texts.

    Attributes:
        run, method: label of the run; names of its method and data.
        robust, interval: robust accuracy and 95 % interval in per cent; empty if it was never attacked.
        attack: the attack with its points, radius and weights.
        clean, tail, worst: clean accuracy, mean of the weakest 30 % of the classes, and the worst class, with
            intervals.
        beside: result of the next strongest attack.
        verdict: verdict of the audit; empty without one.
    """

    run: str
    method: str
    robust: str = ""
    interval: str = ""
    attack: str = ""
    clean: str = ""
    tail: str = ""
    worst: str = ""
    beside: str = ""
    verdict: str = ""


def headlines(runs: Sequence[RunRecord]) -> list[Headline]:
    """One headline for each run; none if there are more than `MOST` runs."""
    return [_headline(run) for run in runs] if len(runs) <= MOST else []


def _headline(run: RunRecord) -> Headline:
    strong, about = run.strongest, f"{run.config.method.name}, {run.config.data.name or 'tensors'}"
    several = len(run.config.method.threats) > 1  # a verdict says nothing about the other threats
    fresh = [
        f"{a.verdict} at {radius(a.threat)}" if several else a.verdict for a in run.audits if not a.stale
    ]
    verdict = ", ".join(dict.fromkeys(fresh))
    if strong is None:
        return Headline(run.label, about, verdict=verdict)
    score = strong.score
    low, high = score.interval_95
    old = ", stale" if strong.stale else ""
    return Headline(
        run.label,
        about,
        f"{100 * score.robust_accuracy:.1f}",
        f"{100 * low:.1f} to {100 * high:.1f}",
        f"{_attack(score)}, {radius(score.threat)}, {strong.weights} weights{old}",
        share_cell(score.clean_accuracy, score.clean_interval_95),
        share_cell(score.tail(30), score.tail_interval(30)),
        worst_class(run, score),
        _beside(run, strong),
        verdict,
    )


def _attack(score: Score) -> str:
    return f"{score.attack} on {score.n} points"


def _beside(run: RunRecord, strong: Evaluation) -> str:
    """Result of the next strongest evaluation of the same weights in the same threat, as text."""
    others = [e for e in run.leading(strong.weights, "test", strong.score.threat) if e.files != strong.files]
    if not others:
        return ""
    score = others[0].score
    old = " (stale)" if others[0].stale else ""
    return f"{_attack(score)} left {share_cell(score.robust_accuracy, score.interval_95)}{old}"
