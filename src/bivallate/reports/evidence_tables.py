"""The tables of a report on pairs of runs, audits, the commonest errors, and the origin of the results."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from bivallate.errors import UserError
from bivallate.evaluation import Score
from bivallate.evaluation.pairs import pairs
from bivallate.evaluation.threat_union import radius
from bivallate.quoting import command, line
from bivallate.reports.collect import RunRecord
from bivallate.reports.comparison.comparable import EvaluationFilter, choose
from bivallate.reports.diagnostics.per_class import confusion
from bivallate.reports.stored_evaluations import Evaluation
from bivallate.reports.tables import CLASS, NONE, Table, share_cell


def pairs_table(runs: Sequence[RunRecord]) -> Table | None:
    """Every pair of runs, compared under the strongest attack that all runs have; None for a single run."""
    if len(runs) < 2:
        return None
    try:
        chosen = choose(runs, [run.path for run in runs], EvaluationFilter("best", "test"))
    except UserError:
        return _note_table(
            "Pairs of runs", "The runs have no evaluation in common, so no pair of them is tested."
        )
    score = chosen[0].score
    found = pairs([e.score for e in chosen], [run.label for run in runs])
    attack = f"{score.attack}, {radius(score.threat)}"
    if not found:
        return _note_table("Pairs of runs", f"No two runs were evaluated on the same points ({attack}).")
    rows = tuple(
        (
            pair.first,
            pair.second,
            str(pair.n),
            _signed(pair.difference, pair.interval_95),
            f"{pair.only_first} / {pair.only_second}",
            f"{pair.p_value:.2g}",
            f"{pair.p_adjusted:.2g}{' *' if pair.significant else ''}",
        )
        for pair in found
    )
    return Table(
        f"Pairs of runs: {attack}",
        ("first", "second", "points", "difference in RA, %", "robust in one alone", "p", "p (Holm)"),
        rows,
        text=2,
        note="Robust accuracy of the first run less that of the second, on the same points and under the "
        "strongest attack that all runs have; in brackets Tango's 95 % interval for pairs. p: exact McNemar "
        "test; Holm: corrected for all pairs; *: below 0.05. It says that two models differ, not that their "
        "methods do: for that several seeds are needed (compare --over-seeds).",
    )


def _note_table(title: str, note: str) -> Table:
    return Table(title, (), (), note=note)


def _signed(value: float, interval: tuple[float, float]) -> str:
    return f"{100 * value:+.1f} [{100 * interval[0]:+.1f}, {100 * interval[1]:+.1f}]"


def audits_table(runs: Sequence[RunRecord]) -> Table:
    """One row for each audit, and one for each run without an audit."""
    rows = []
    for run in runs:
        if not run.audits:
            rows.append(
                (
                    run.label,
                    "not audited",
                    NONE,
                    NONE,
                    NONE,
                    NONE,
                    command("audit", run.path),
                )
            )
        for a in run.audits:
            against = "; ".join(f"{name}: {finding}" for name, finding, _advice in a.against) or "nothing"
            split = f", {a.split}" if a.split != "test" else ""
            rows.append(
                (
                    run.label,
                    a.verdict,
                    f"{radius(a.threat)}, {a.level} ({a.weights}{split}{', stale' if a.stale else ''})",
                    str(a.n),
                    f"{share_cell(a.claimed)} ({a.claim})",
                    share_cell(a.worst, a.interval_95),
                    against,
                )
            )
    heads = (
        "run",
        "verdict",
        "audit",
        "points",
        "claimed %",
        "after all attacks %",
        "what speaks against it",
    )
    return Table(
        "Is this robustness real?",
        heads,
        tuple(rows),
        text=7,
        sentences=True,
        note="What `bivallate audit` kept: attacks that know more or do more must not do worse. In brackets: "
        "95 % intervals (Wilson). Stale: audited before the weights changed; audit again.",
    )


def confusion_tables(runs: Sequence[RunRecord], most: int = 15) -> list[Table]:
    """The commonest errors of each run with more than ten classes, whose confusion matrix is hard to read."""
    tables = []
    for run in runs:
        if run.strongest is not None and run.strongest.score.classes > 10:
            tables.append(_errors(run, run.strongest.score, most))
    return [table for table in tables if table.rows]


def _errors(run: RunRecord, score: Score, most: int) -> Table:
    names = run.names(score.classes)
    rows = tuple(
        (
            line(names[true], CLASS),
            line(names[taken], CLASS),
            str(count),
            share_cell(count / max(1, int(score.counts[true]))),
        )
        for true, taken, count in confusion(score, names).commonest(most)
    )
    heads = ("true class", "taken for", "points", "% of the class")
    return Table(f"Commonest errors of {run.label} under {score.attack}", heads, rows, text=2)


def origins_table(runs: Sequence[RunRecord]) -> Table:
    """When each run was trained, with which code and on which data."""
    rows = []
    for run in runs:
        made_by, strongest = run.manifest.get("made_by"), run.strongest
        made_by = made_by if isinstance(made_by, dict) else {}
        commit = made_by.get("commit") if isinstance(made_by.get("commit"), dict) else {}
        changed = " and changes" if commit and commit.get("modified") else ""
        rows.append(
            (
                run.label,
                _when(run.path / "model.safetensors"),
                _evaluated(strongest),
                str(run.manifest.get("code_version") or NONE),
                (str(commit["id"])[:12] + changed) if commit and commit.get("id") else NONE,
                str(made_by.get("torch") or NONE),
                str(run.config.seed),
                str(run.manifest.get("data_fingerprint") or NONE)[:12],
                str(run.best_epoch or NONE),
                str(run.path),
            )
        )
    heads = (
        "run",
        "trained",
        "evaluated",
        "bivallate",
        "commit",
        "torch",
        "seed",
        "data",
        "best epoch",
        "folder",
    )
    return Table(
        "Where this comes from",
        heads,
        tuple(rows),
        text=len(heads),
        note="Trained, evaluated: when the files were written (UTC). Data: beginning of its fingerprint. "
        "Best epoch: the most robust one on held-out data.",
    )


def _evaluated(strongest: Evaluation | None) -> str:
    return _when(strongest.path) if strongest is not None else NONE


def _when(path: Path) -> str:
    try:
        return f"{datetime.fromtimestamp(path.stat().st_mtime, UTC):%Y-%m-%d %H:%M}"
    except OSError:
        return NONE
