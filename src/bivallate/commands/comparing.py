"""`bivallate compare`."""

from __future__ import annotations

import json as json_module
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from bivallate.cli import APP
from bivallate.errors import UserError, unknown
from bivallate.reports.comparison.table import Compared

Flag = Annotated[bool, Parameter(negative=())]
MARK, OLD = "*", "!"  # behind a p-value; behind the name of a run
SCORES = ("robust_accuracy", "clean_accuracy", "tail_30", "worst_class")
HEADS = ("robust %", "vs first", "clean %", "tail 30 %", "worst class %", "training passes", "attack passes")
COSTS = ("training_passes", "training_seconds", "passes", "seconds")


@APP.command
def compare(
    *runs: Path,
    sort: str = "robust_accuracy",
    ascending: bool | None = None,
    attack: str | None = None,
    eps: str | None = None,
    norm: str | None = None,
    weights: str = "best",
    split: str = "test",
    over_seeds: Flag = False,
    markdown: Flag = False,
    json: Flag = False,
) -> None:
    """Put the stored evaluations of several runs into one table, with what is significant and what it cost.

    Nothing is attacked: the verdicts in RUN/evaluation are read. Without a choice, the evaluations that all
    runs have in common at the radius that most were trained for are taken that are of the most points (1000
    are enough), and of these the one that leaves least.

    Parameters
    ----------
    runs
        folders of the runs.
    sort
        robust_accuracy, clean_accuracy, tail_30, worst_class, passes, seconds (of the evaluation),
        training_passes or training_seconds.
    ascending
        smallest first. [default: for costs only]
    attack
        name of the attack, as given to evaluate. [default: the strongest that all have]
    eps
        radius, such as 8/255. [default: the one that most runs were trained for]
    norm
        linf or l2. [default: likewise]
    weights
        best, last, ema or epoch-N.
    split
        test, validation or train.
    over_seeds
        one row for the runs that differ in their seed only: mean, standard deviation and interval.
    markdown
        print a Markdown table.
    json
        print everything as JSON.
    """
    from bivallate.evaluate.compare import KEYS
    from bivallate.reports.collect import collect
    from bivallate.reports.comparison.choosing import Wanted, choose
    from bivallate.run.folder import check_weights

    for what, given, known in (
        ("column", sort, KEYS),
        ("split", split, ("test", "validation", "train")),
    ):
        if given not in known:
            raise unknown(what, given, known)
    check_weights(weights)
    if not runs:
        raise UserError("name at least one run folder to compare: bivallate compare RUN RUN ...")
    if markdown and json:
        raise UserError("give --markdown or --json, not both")
    records = collect(list(runs))
    stored = {e.score.attack for record in records for e in record.evaluations}
    wanted = Wanted.of(weights, split, attack, norm, eps, stored)
    chosen = choose(records, runs, wanted)
    descending = None if ascending is None else not ascending
    made = (_seeds if over_seeds else _single)(records, chosen, sort, descending)
    if json:
        print(json_module.dumps(made.to_json(), allow_nan=False))
    elif markdown:
        print(made.to_markdown())
    else:
        made.show()


def _about(records: Sequence[Any], chosen: Sequence[Any], sort: str) -> dict[str, Any]:
    score = chosen[0].score
    prints = {e.score.data_fingerprint for e in chosen}
    return {
        "attack": score.attack,
        "threat": {"kind": type(score.threat).__name__, "eps": score.threat.eps},
        "weights": chosen[0].weights,
        "split": chosen[0].split,
        "n": score.n if len(prints) == 1 else None,
        "sort": sort,
    }


def _trained(record: Any) -> Any:
    """What a run's training cost, from its metrics; None if it wrote none."""
    from bivallate.evaluate.compare import TrainingCost

    last = record.history[-1] if record.history else {}
    if "total_forward" not in last:
        return None
    return TrainingCost(last["total_forward"], last["total_backward"], record.seconds)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _percent(value: float, interval: Any = None) -> str:
    text = f"{100 * value:.2f}"
    return text if interval is None else f"{text}\n{100 * interval[0]:.1f}-{100 * interval[1]:.1f}"


def _cost(passes: float, seconds: float) -> str:
    from bivallate.reports.tables import duration

    return f"{passes:.4g}\n{duration(seconds)}" if math.isfinite(passes) else "-"


def _p(value: float | None, adjusted: float | None, significant: bool) -> str:
    if value is None or adjusted is None:
        return "-"
    text = f"{adjusted:.2g}" if adjusted >= 1e-4 else "<1e-4"
    return f"p {text}{' ' + MARK if significant else ''}"


def _different(records: Sequence[Any], chosen: Sequence[Any]) -> list[str]:
    """What the reader of any table must know: age, warnings; points, trainings and radii that differ."""
    from bivallate.evaluate.compare import same_threat
    from bivallate.reports.collect import STALE

    notes = []
    stale = [r.label for r, e in zip(records, chosen, strict=True) if e.stale]
    if stale:
        notes.append(f"{OLD}: {STALE}: {', '.join(stale)}.")
    notes += [
        f"{r.label}: {warning}" for r, e in zip(records, chosen, strict=True) for warning in e.score.warnings
    ]
    if len({e.score.data_fingerprint for e in chosen}) > 1:
        counts = ", ".join(f"{r.label}: {e.score.n}" for r, e in zip(records, chosen, strict=True))
        notes.append(
            f"The runs were not evaluated on the same points ({counts}), so differences between those that "
            "were not are not tested; evaluate them with the same --n or --first and --seed."
        )
    pairs = zip(records, chosen, strict=True)
    home = [r.label for r, e in pairs if not same_threat(r.config.method.threat, e.score.threat)]
    if home:
        notes.append(f"Trained for another threat than the one compared here: {', '.join(home)}.")
    unfinished = [r.label for r in records if len(r.history) < r.config.epochs]
    if unfinished:
        notes.append(f"Not trained to the end: {', '.join(unfinished)}.")
    return notes


def _single(records: Sequence[Any], chosen: Sequence[Any], sort: str, descending: bool | None) -> Compared:
    """A row for each run."""
    from bivallate.evaluate.compare import compare as ranked

    scores = [e.score for e in chosen]
    names = [record.label for record in records]
    by_label = {record.label: (record, e) for record, e in zip(records, chosen, strict=True)}
    costs = [_trained(record) for record in records]
    found = ranked(*scores, names=names, sort=sort, descending=descending, training=costs)
    cells, rows = [], []
    for row in found:
        record, evaluation = by_label[row.name]
        score = row.score
        worst, value = score.worst_class
        label = record.classes[worst] if worst < len(record.classes) else str(worst)
        cells.append(
            (
                f"{row.name}{' ' + OLD if evaluation.stale else ''}\n{record.config.method.name}",
                _percent(row.robust_accuracy, row.interval_95),
                "first" if row is found[0] else _p(row.p_value, row.p_adjusted, row.significant),
                _percent(row.clean_accuracy, score.clean_interval_95),
                _percent(row.tail_30, score.tail_interval(30)),
                f"{label}: {_percent(value, score.worst_class_interval_95)}",
                _cost(row.training_passes, row.training_seconds),
                _cost(row.passes, row.seconds),
            )
        )
        rows.append(
            {
                "run": row.name,
                "path": str(record.path),
                "method": record.config.method.name,
                "seed": record.config.seed,
                "evaluation": str(evaluation.path),
                "n": score.n,
                "stale": evaluation.stale,
                **{key: getattr(row, key) for key in SCORES},
                "interval_95": list(row.interval_95),
                "clean_interval_95": list(score.clean_interval_95),
                "tail_30_interval_95": list(score.tail_interval(30)),
                "worst_class_name": label,
                "worst_class_interval_95": list(score.worst_class_interval_95),
                "p_value": row.p_value,
                "p_adjusted": row.p_adjusted,
                "significant": row.significant,
                **{key: _finite(getattr(row, key)) for key in COSTS},
                "evaluation_passes": score.passes,
            }
        )
    notes = [_intervals(), *([_tests()] if len(found) > 1 else []), _costs(), *_different(records, chosen)]
    heads = ("run\nmethod", *HEADS)
    return Compared(_about(records, chosen, sort), heads, tuple(cells), tuple(rows), tuple(notes), 1)


def _intervals() -> str:
    return (
        "Below each accuracy: its 95 % interval over points (Wilson; bootstrap for the tail, which is the "
        "mean over the weakest 30 % of the classes, and for the worst class, whichever that is)."
    )


def _tests() -> str:
    return (
        f"{MARK}: robust accuracy differs from the first row's, p < 0.05 by the exact McNemar test on the "
        "same points, after Holm's correction for all pairs of rows (p as shown). It says that these two "
        "models differ, not that their methods do: for that train several seeds and add --over-seeds."
    )


def _costs() -> str:
    return (
        "Cost: forward and backward passes, per training example over the whole training and per evaluated "
        "point; below them wall time, which depends on the machine."
    )


def _seeds(records: Sequence[Any], chosen: Sequence[Any], sort: str, descending: bool | None) -> Compared:
    """A row for the seeds of each method."""
    from bivallate.evaluate.compare import COSTS as ALL_COSTS
    from bivallate.reports.comparison.seeds import by_seed, welch_tests

    groups = by_seed(records, chosen, [_trained(record) for record in records])
    falling = sort not in ALL_COSTS if descending is None else descending
    groups.sort(key=lambda group: group.spreads[sort].mean, reverse=falling)
    tests = welch_tests(groups)
    stale = {record.label for record, e in zip(records, chosen, strict=True) if e.stale}
    cells, rows = [], []
    for k, group in enumerate(groups):
        p, adjusted, significant = tests[k]
        cells.append(
            (
                f"{group.method}\n{', '.join(f'{r} {OLD}' if r in stale else r for r in group.runs)}",
                group.cell("robust_accuracy"),
                "first" if k == 0 else _p(p, adjusted, significant),
                *(group.cell(key) for key in SCORES[1:]),
                _cost(group.spreads["training_passes"].mean, group.spreads["training_seconds"].mean),
                _cost(group.spreads["passes"].mean, group.spreads["seconds"].mean),
            )
        )
        marks = {"p_value": p, "p_adjusted": adjusted, "significant": significant}
        rows.append(group.to_json() | marks | {"stale": [r for r in group.runs if r in stale]})
    notes = [
        "Mean over seeds; below it the standard deviation and Student's 95 % interval of the mean.",
        f"{MARK}: mean robust accuracy differs from the first row's, p < 0.05 by Welch's t-test over seeds, "
        "after Holm's correction for all pairs of rows (p as shown).",
        _costs(),
        *_different(records, chosen),
    ]
    heads = ("method\nruns", *HEADS)
    return Compared(_about(records, chosen, sort), heads, tuple(cells), tuple(rows), tuple(notes), 1)
