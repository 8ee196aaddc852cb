"""`compare`: the stored evaluations of several runs in one table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bivallate.errors import UserError, unknown
from bivallate.evaluation import metrics
from bivallate.evaluation.metrics import by_key
from bivallate.evaluation.pairs import pairs
from bivallate.evaluation.threat_union import threat_json, threats_in
from bivallate.lower.threat import ThreatModel
from bivallate.reports.collect import RunRecord, Runs, collect, folders
from bivallate.reports.comparison.comparable import EvaluationFilter, choose
from bivallate.reports.comparison.comparison_table import Comparison
from bivallate.reports.comparison.notes import data_name
from bivallate.reports.comparison.rows import by_method, single
from bivallate.reports.stored_evaluations import Evaluation
from bivallate.run.folder import check_weights
from bivallate.terminal import text_callback

PAIRS = {"pairs": "Tango's score interval of the difference on the same points"}
OVER_SEEDS = "Student, of the mean over seeds"


def compare(
    *runs: Runs,
    sort: str = "robust_accuracy",
    ascending: bool | None = None,
    attack: str | None = None,
    eps: str | float | None = None,
    norm: str | None = None,
    threat: ThreatModel | Sequence[ThreatModel] | None = None,
    weights: str = "best",
    split: str = "test",
    over_seeds: bool = False,
    progress: bool | Callable[[str], object] = False,
) -> Comparison:
    """Compare several runs by their stored evaluations, with significance tests and costs.

    The verdicts in the runs' folders are read; nothing is attacked. By default the runs are compared by the
    strongest evaluation that all of them have, at the radius that most of them were trained for. If a run has
    a stronger evaluation, its row shows that one too.

    Args:
        runs: folders, or what `train` returned; also in one list.
        sort: key of the column to sort by.
        ascending: sort the smallest first; default only for costs.
        attack, eps, norm: attack and threat of the evaluations, as given to `evaluate`; default as above.
        threat: in place of eps and norm; of several, points count that withstand the attack within each. That
            is the default where all runs were trained under the same several and have such evaluations.
        weights: best, last, ema or epoch-N.
        split: test, validation or train.
        over_seeds: make one row of the runs that differ only in their seed, with mean, standard deviation and
            95 % interval.
        progress: True to print each stage to standard error, or a function that is called with its name.

    Returns:
        A table that prints itself, and has `to_json()` and `to_markdown()`. Accuracies in its rows are
        fractions in [0, 1].

    Raises:
        UserError: there are no runs, a run is named twice, a name is unknown, or a run lacks the evaluation
            (the error says which command makes it).
    """
    by_key(sort)
    if split not in (splits := ("test", "validation", "train")):
        raise unknown("split", split, splits)
    check_weights(weights)
    if not runs:
        raise UserError("name at least one run folder to compare: bivallate compare RUN RUN ...")
    paths, tell = folders(runs), text_callback(progress)
    tell(f"reading {len(paths)} runs")
    records = collect(paths)
    stored = {e.score.attack for record in records for e in record.evaluations}
    ball = norm, None if eps is None else str(eps), threats_in(threat)
    wanted = EvaluationFilter.of(weights, split, attack, *ball, stored)
    falling = None if ascending is None else not ascending
    return compare_by(wanted, records, paths, sort, falling, over_seeds=over_seeds, tell=tell)


def compare_by(
    wanted: EvaluationFilter,
    records: Sequence[RunRecord],
    paths: Sequence[Path],
    sort: str = "robust_accuracy",
    falling: bool | None = None,
    *,
    over_seeds: bool = False,
    tell: Callable[[str], object] = lambda words: None,
) -> Comparison:
    """Compare runs by the evaluations that a filter lets through.

    Args:
        wanted: the filter.
        records, paths: the runs, and their folders as the user named them.
        sort, over_seeds: as in `compare`.
        falling: whether the largest comes first; None: as is usual for the column.
        tell: is called with what is compared.

    Raises:
        UserError: a run lacks the evaluation.
    """
    chosen = choose(records, paths, wanted)
    tell(f"comparing {chosen[0].score.attack} on {chosen[0].score.n} points")
    about = _about(records, chosen, sort, over_seeds)
    return (by_method if over_seeds else single)(about, records, chosen, falling)


def _about(
    records: Sequence[RunRecord], chosen: Sequence[Evaluation], sort: str, over_seeds: bool
) -> dict[str, Any]:
    """The settings of a comparison as plain data, with the tests of all pairs of runs on the same points."""
    score = chosen[0].score
    prints = {e.score.data_fingerprint for e in chosen}
    names = {data_name(record) for record in records}
    shares = [metric.key for metric in metrics.METRICS if metric.is_share]
    intervals = {
        metric.key: metric.interval_name for metric in metrics.METRICS if metric.interval is not None
    }
    return {
        "attack": score.attack,
        "threat": threat_json(score.threat),
        "weights": chosen[0].weights,
        "split": chosen[0].split,
        "n": score.n if len(prints) == 1 else None,
        "data": names.pop() if len(names) == 1 else None,
        "sort": sort,
        "intervals": intervals | PAIRS | (dict.fromkeys(shares, OVER_SEEDS) if over_seeds else {}),
        "pairs": [p.to_json() for p in pairs([e.score for e in chosen], [r.label for r in records])],
    }
