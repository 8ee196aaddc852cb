"""The tables of a report, as cells of text for every format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bivallate.evaluation import Score
from bivallate.evaluation.metrics import by_key
from bivallate.evaluation.progress_display import duration
from bivallate.evaluation.threat_union import radius
from bivallate.quoting import line
from bivallate.reports.collect import RunRecord
from bivallate.reports.diagnostics.per_class import MANY, extremes_of
from bivallate.reports.stored_evaluations import STALE, Evaluation

NONE = "-"
CLASS = 36  # most characters of a class's name in a cell
ACCURACIES = ("SA %", "RA %", "RA-Tail-30 %", "worst class %", "class Gini")
RUNS = (
    "SA: accuracy on clean images. RA: under the strongest evaluation of the run at its training threat, or "
    "within all of several, all points on which any part succeeded counted as broken; the strongest is the "
    "one that left least of the points that all evaluations of the run judged (at least 50). RA-Tail-30: "
    "mean over the weakest 30 % of the classes. In brackets: 95 % intervals (Wilson; bootstrap for the tail "
    "and for the worst class, whichever that is). Class Gini: inequality of the classes' robust accuracies, "
    "0 if all are equal. Cost: forward and backward passes per training example over the whole training. "
    "Bold: highest, where data, radius, attack and number of points are the same."
)
WILSON = "In brackets: 95 % intervals (Wilson), each class for itself."


@dataclass(frozen=True)
class Table:
    """A table of text cells.

    Attributes:
        title: what it shows.
        columns: heads of the columns.
        rows: cells.
        text: number of leading columns with words, which are aligned left; the others hold numbers.
        best: (row, column) of the cells with the highest value of a column, to be set bold.
        note: how to read the table.
        sentences: whether the last column holds sentences, which may be broken into lines.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text: int = 1
    best: frozenset[tuple[int, int]] = frozenset()
    note: str = ""
    sentences: bool = False


def share_cell(value: float | None, interval: tuple[float, float] | None = None) -> str:
    """A fraction in per cent, with its 95 % interval if given."""
    if value is None:
        return NONE
    text = f"{100 * value:.1f}"
    return text if interval is None else f"{text} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def runs_table(runs: Sequence[RunRecord]) -> Table:
    """One row per run: its settings, its cost, and its accuracies under its strongest attack."""
    rows, values = [], []
    for run in runs:
        config, strong = run.config, run.strongest
        score = strong.score if strong else None
        last = run.history[-1] if run.history else {}
        named = f"{strong.score.attack} ({strong.weights}{_age(strong)})" if strong else NONE
        rows.append(
            (
                run.label,
                config.method.name,
                config.data.name or "tensors",
                config.model.name,
                ", ".join(map(radius, config.method.threats)),
                named,
                str(score.n) if score else NONE,
                *_accuracies(run, score),
                f"{len(run.history)}/{config.epochs}",
                f"{last['total_forward']:.4g}F + {last['total_backward']:.4g}B" if last else NONE,
                duration(run.seconds, 1),
            )
        )
        values.append(
            (score.clean_accuracy, score.robust_accuracy, score.tail(30)) if score else (None, None, None)
        )
    columns = ("run", "method", "data", "model", "eps", "strongest attack", "points")
    compared = {(row[2], row[4], row[5], row[6]) for row in rows}
    return Table(
        "Runs",
        (*columns, *ACCURACIES, "epochs", "cost", "time"),
        tuple(rows),
        text=6,
        best=_best(values, 7) if len(compared) == 1 else frozenset(),
        note=RUNS,
    )


def _accuracies(run: RunRecord, score: Score | None) -> tuple[str, ...]:
    """The cells of the columns `ACCURACIES`."""
    if score is None:
        return (NONE,) * len(ACCURACIES)
    return (
        share_cell(score.clean_accuracy, score.clean_interval_95),
        share_cell(score.robust_accuracy, score.interval_95),
        share_cell(score.tail(30), score.tail_interval(30)),
        worst_class(run, score),
        by_key("class_gini").cell(score, None, ()),
    )


def worst_class(run: RunRecord, score: Score) -> str:
    """Name, robust accuracy and interval of the class with the lowest robust accuracy."""
    name, value = run.worst_class(score)
    return f"{line(name, CLASS)}: {share_cell(value, score.worst_class_interval_95)}"


def _source(e: Evaluation) -> str:
    """The weights; also the split if it is not test, the data if not the run's own, and whether stale."""
    split = f", {e.split}" if e.split != "test" else ""
    return f"{e.weights}{split}{f', on {e.data}' if e.data else ''}{_age(e)}"


def _age(e: Evaluation) -> str:
    return ", stale" if e.stale else ""


def evaluations_table(runs: Sequence[RunRecord]) -> Table:
    """One row for each evaluation of the runs."""
    rows = []
    for run in runs:
        for e in (*run.evaluations, *run.at_home):
            score = e.score
            rows.append(
                (
                    run.label,
                    _source(e),
                    score.attack,
                    radius(score.threat),
                    str(score.n),
                    *_accuracies(run, score),
                    f"{score.passes.get('forward', 0):.4g}F + {score.passes.get('backward', 0):.4g}B",
                    duration(score.seconds, 1),
                )
            )
    columns = ("run", "weights", "attack", "eps", "points")
    return Table(
        "Evaluations",
        (*columns, *ACCURACIES, "cost", "time"),
        tuple(rows),
        text=4,
        note=f"Cost: forward and backward passes per point. Stale: {STALE}.",
    )


def classes_table(runs: Sequence[RunRecord]) -> list[Table]:
    """Clean and robust accuracy of each class; one table for each set of classes.

    If there are many classes, the table has the weakest and the strongest classes of the first run.
    """
    tables = []
    scored = [(run, run.strongest.score) for run in runs if run.strongest is not None]
    for classes in dict.fromkeys(run.classes for run, _ in scored):
        own = [(run, score) for run, score in scored if run.classes == classes]
        values = own[0][1].per_class
        order = sorted(range(len(classes)), key=lambda k: (values[k] is None, values[k] or 0.0))
        shown = extremes_of(order, values) if len(classes) > MANY else list(range(len(classes)))
        cells = [_class_cells(score) for _, score in own]
        rows = tuple((line(classes[k], CLASS), *(cell for some in cells for cell in some[k])) for k in shown)
        heads = [head for run, _ in own for head in (f"{run.label} SA", f"{run.label} RA")]
        few = f"{own[0][0].label}: the {len(shown)} weakest and strongest of {len(classes)} classes; all are "
        note = f"{few}in its evaluation folder. {WILSON}" if len(shown) < len(classes) else WILSON
        tables.append(Table("Accuracy by class, %", ("class", *heads), rows, note=note))
    return tables


def _class_cells(score: Score) -> list[tuple[str, str]]:
    clean = zip(score.per_class_clean, score.per_class_clean_interval_95, strict=True)
    robust = zip(score.per_class, score.per_class_interval_95, strict=True)
    return [(share_cell(*c), share_cell(*r)) for c, r in zip(clean, robust, strict=True)]


def alarms_table(runs: Sequence[RunRecord]) -> Table | None:
    """The alarms of the sentinel; None if there were none."""
    rows = tuple(
        (run.label, str(a["kind"]), f"{a['epoch']}.{a['step']}", str(a["text"]))
        for run in runs
        for a in run.alarms
    )
    return (
        Table(
            "Alarms of the sentinel",
            ("run", "kind", "epoch.step", "what was seen"),
            rows,
            text=4,
            sentences=True,
        )
        if rows
        else None
    )


def differences_table(runs: Sequence[RunRecord]) -> Table | None:
    """The settings that differ between the runs; None for a single run, or if all settings are equal."""
    flat = [flatten(run.written.entry) for run in runs]
    keys = list(dict.fromkeys(key for entry in flat for key in entry))
    different = [key for key in keys if len({entry.get(key) for entry in flat}) > 1]
    if len(runs) < 2 or not different:
        return None
    rows = tuple((key, *(entry.get(key, NONE) for entry in flat)) for key in different)
    heads = ("setting", *(run.label for run in runs))
    return Table("Settings that differ", heads, rows, text=len(heads))


def flatten(entry: Any, prefix: str = "") -> dict[str, str]:
    """Nested dictionaries as dotted path -> text; the path of a part has the part's kind as its value."""
    if not isinstance(entry, dict):
        text = f"{entry:.6g}" if isinstance(entry, float) else str(entry)
        return {prefix: text}
    flat = {prefix: str(entry["kind"])} if prefix and "kind" in entry else {}
    for key, value in entry.items():
        if key != "kind":
            flat |= flatten(value, f"{prefix}.{key}" if prefix else key)
    return flat


def _best(values: list[tuple[float | None, ...]], offset: int) -> frozenset[tuple[int, int]]:
    """Places of the highest value in each column that has two or more values."""
    found = set()
    for j in range(len(values[0]) if len(values) > 1 else 0):
        column = [row[j] for row in values]
        known = [v for v in column if v is not None]
        if len(known) > 1:
            found |= {(i, j + offset) for i, v in enumerate(column) if v == max(known)}
    return frozenset(found)
