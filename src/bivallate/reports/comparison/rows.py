"""The rows of a comparison: one for each run, or one for the seeds of each method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from bivallate.evaluation import metrics
from bivallate.evaluation.metrics import Metric, TrainingCost, by_key
from bivallate.evaluation.significance import Row, rank
from bivallate.reports.collect import RunRecord
from bivallate.reports.comparison import notes
from bivallate.reports.comparison.comparison_table import Comparison
from bivallate.reports.comparison.notes import MARK, OLD
from bivallate.reports.comparison.seeds import by_seed, welch_tests
from bivallate.reports.stored_evaluations import Evaluation


def other_columns() -> list[Metric]:
    """The metrics beside the headline that have a column."""
    return [
        metric
        for metric in metrics.unique(metrics.METRICS)
        if metric.title and metric is not metrics.HEADLINE
    ]


def titles() -> list[str]:
    """The titles of the columns: the headline, the tests of the headline, and the other metrics."""
    return [metrics.HEADLINE.title, "vs first", *(metric.title for metric in other_columns())]


def single(
    about: dict[str, Any],
    records: Sequence[RunRecord],
    chosen: Sequence[Evaluation],
    descending: bool | None,
) -> Comparison:
    """A comparison with one row for each run."""
    costs = [_trained(record) for record in records]
    strongest = dict(zip([r.label for r in records], notes.leading(records, chosen), strict=True))
    by_label = {record.label: (record, e) for record, e in zip(records, chosen, strict=True)}
    ranked = rank(
        *(e.score for e in chosen),
        names=[record.label for record in records],
        sort=about["sort"],
        descending=descending,
        training=costs,
    )
    shown = any(strongest[row.name].files != by_label[row.name][1].files for row in ranked)
    cells, rows = [], []
    for row in ranked:
        record, evaluation = by_label[row.name]
        strong = (_strongest(strongest[row.name]),) if shown else ()
        first, *others = _cells(row, record, evaluation, row is ranked[0])
        cells.append((first, *strong, *others))
        rows.append(_entry(row, record, evaluation, strongest[row.name]))
    said = [notes.INTERVALS, *([notes.STRONGEST] if shown else [])]
    said += [*([notes.TESTS] if len(ranked) > 1 else []), notes.COSTS]
    said += [*notes.beside(records, chosen), *notes.different(records, chosen)]
    columns = ("run\nmethod", *(["strongest %"] if shown else []), *titles())
    return Comparison(about, columns, tuple(cells), tuple(rows), tuple(said), 1)


def _cells(row: Row, record: RunRecord, evaluation: Evaluation, is_first: bool) -> tuple[str, ...]:
    names = record.names(row.score.classes)
    return (
        f"{row.name}{' ' + OLD if evaluation.stale else ''}\n{record.config.method.name}",
        metrics.HEADLINE.cell(row.score, row.training, names),
        "first" if is_first else _p(row.p_value, row.p_adjusted, row.significant),
        *(metric.cell(row.score, row.training, names) for metric in other_columns()),
    )


def _strongest(strongest: Evaluation) -> str:
    score = strongest.score
    return f"{metrics.HEADLINE.cell(score, None, ())}\n{score.attack}\n{score.n} points"


def _entry(row: Row, record: RunRecord, evaluation: Evaluation, strongest: Evaluation) -> dict[str, Any]:
    """A run's row as plain data; accuracies are fractions."""
    score = row.score
    return {
        "run": row.name,
        "path": str(record.path),
        "method": record.config.method.name,
        "seed": record.config.seed,
        "data": notes.data_name(record),
        "data_fingerprint": score.data_fingerprint,
        "classes": len(record.classes),
        "evaluation": str(evaluation.path),
        "evaluations": [str(file) for file in evaluation.files],
        "n": score.n,
        "stale": evaluation.stale,
        **{key: _finite(value) for key, value in row.values.items()},
        **{m.json_key: list(m.interval(score)) for m in metrics.METRICS if m.interval is not None},
        "worst_class_name": record.worst_class(score)[0],
        "strongest": {
            "attack": strongest.score.attack,
            "n": strongest.score.n,
            "robust_accuracy": strongest.score.robust_accuracy,
            "interval_95": list(strongest.score.interval_95),
            "evaluation": str(strongest.path),
            "stale": strongest.stale,
        },
        "p_value": row.p_value,
        "p_adjusted": row.p_adjusted,
        "significant": row.significant,
        "evaluation_passes": score.passes,
    }


def by_method(
    about: dict[str, Any],
    records: Sequence[RunRecord],
    chosen: Sequence[Evaluation],
    descending: bool | None,
) -> Comparison:
    """A comparison with one row for the seeds of each method."""
    sort = about["sort"]
    groups = by_seed(records, chosen, [_trained(record) for record in records])
    groups.sort(key=lambda group: by_key(sort).sort_key(group.spreads[sort].mean, descending))
    tests = welch_tests(groups)
    stale = {record.label for record, e in zip(records, chosen, strict=True) if e.stale}
    cells, rows = [], []
    for k, group in enumerate(groups):
        p, adjusted, significant = tests[k]
        cells.append(
            (
                f"{group.method}\n{', '.join(f'{r} {OLD}' if r in stale else r for r in group.runs)}",
                group.cell(metrics.HEADLINE),
                "first" if k == 0 else _p(p, adjusted, significant),
                *(group.cell(metric) for metric in other_columns()),
            )
        )
        marks = {"p_value": p, "p_adjusted": adjusted, "significant": significant}
        rows.append(group.to_json() | marks | {"stale": [r for r in group.runs if r in stale]})
    said = [notes.SEEDS, notes.SEED_TESTS, notes.COSTS]
    said += [*notes.stronger(records, chosen), *notes.beside(records, chosen)]
    said += notes.different(records, chosen)
    return Comparison(about, ("method\nruns", *titles()), tuple(cells), tuple(rows), tuple(said), 1)


def _trained(record: RunRecord) -> TrainingCost | None:
    """The cost of a run's training, from its metrics; None if it has none."""
    last = record.history[-1] if record.history else {}
    if "total_forward" not in last:
        return None
    return TrainingCost(last["total_forward"], last["total_backward"], record.seconds)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _p(value: float | None, adjusted: float | None, significant: bool) -> str:
    if value is None or adjusted is None:
        return "-"
    text = f"{adjusted:.2g}" if adjusted >= 1e-4 else "<1e-4"
    return f"p {text}{' ' + MARK if significant else ''}"
