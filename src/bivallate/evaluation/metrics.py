"""The metrics of `compare`, each declared once in `METRICS`: by it they are sorted, printed and stored.

A metric that needs a value for each point which no evaluation stores yet: see `point_columns`.

Example:
    A further column, in the package or in a program that calls `bv.compare`: the share of points that the
    attack broke, smallest first::

        lost = lambda score, _: score.clean_accuracy - score.robust_accuracy
        metrics.add(metrics.Metric("lost", "lost %", lost, less_is_better=True))

    `bivallate compare` on the command line knows the package's own metrics alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bivallate.errors import UserError, unknown
from bivallate.evaluation.progress_display import duration
from bivallate.evaluation.score import Score

__all__ = ["METRICS", "Metric", "TrainingCost", "add", "by_key"]

Interval = tuple[float, float]
ROW_KEYS = {
    *("classes", "data", "data_fingerprint", "evaluation", "evaluation_passes", "evaluations"),
    *("method", "n", "name"),
    *("p_adjusted", "p_value", "path", "run", "runs", "score", "seed", "seeds", "significant", "stale"),
    *("strongest", "training", "values", "worst_class_name"),
}  # other entries of a row in JSON, and other attributes of a `significance.Row`


@dataclass(frozen=True)
class TrainingCost:
    """The training cost of a model: forward and backward passes per training example, and wall seconds."""

    forward: float
    backward: float
    seconds: float


def share_text(share: float) -> str:
    """A share in per cent, without the per cent sign."""
    return f"{100 * share:.2f}"


@dataclass(frozen=True)
class Metric:
    """One number of an evaluation, or of the training behind it.

    Attributes:
        key: its name for `--sort` and in JSON.
        title: heading of its column; empty if it has no column.
        value: (score, training cost) -> the number; infinite if unknown.
        less_is_better: whether smaller values are better and sorted first.
        interval: score -> its 95 % interval, printed below the number; None if it has none.
        interval_name: kind of the interval, for notes.
        interval_key: key of the interval in JSON, if it is not KEY_interval_95.
        format: number -> text; None for a fraction in [0, 1], which is written in per cent. Over seeds only a
            fraction is printed with its standard deviation and interval, anything else as its mean.
        companion_key: key of the metric that is printed below it in the same cell, as the seconds below the
            passes; empty for none.
        prefix: (score, names of the classes) -> text before the number, as the name of the worst class; None
            for no text.

    See `add`, which checks the keys.
    """

    key: str
    title: str
    value: Callable[[Score, TrainingCost | None], float]
    less_is_better: bool = False
    interval: Callable[[Score], Interval] | None = None
    interval_name: str = ""
    interval_key: str = ""
    format: Callable[[float], str] | None = None
    companion_key: str = ""
    prefix: Callable[[Score, Sequence[str]], str] | None = None

    @property
    def json_key(self) -> str:
        """The key of its interval in JSON."""
        return self.interval_key or f"{self.key}_interval_95"

    @property
    def is_share(self) -> bool:
        """Whether it is a fraction in [0, 1], written in per cent."""
        return self.format is None

    def text(self, value: float) -> str:
        """A value of this metric as text, without its unit."""
        return share_text(value) if self.format is None else self.format(value)

    def sort_key(self, value: float, descending: bool | None = None) -> tuple[bool, float]:
        """The key that sorts its values: best first, or as told; unknown values last in either order."""
        falling = not self.less_is_better if descending is None else descending
        return not math.isfinite(value), -value if falling else value

    def cell(self, score: Score, training: TrainingCost | None, names: Sequence[str]) -> str:
        """The number as text, with its interval or companion in the line below; a dash if unknown."""
        value = self.value(score, training)
        if not math.isfinite(value):
            return "-"
        text = (self.prefix(score, names) if self.prefix else "") + self.text(value)
        if self.interval is not None:
            low, high = (f"{100 * b:.1f}" if self.is_share else self.text(b) for b in self.interval(score))
            return f"{text}\n{low}-{high}"
        return f"{text}\n{self.companion(score, training)}" if self.companion_key else text

    def companion(self, score: Score, training: TrainingCost | None) -> str:
        """The text of the metric that is printed below the number."""
        other = by_key(self.companion_key)
        return other.text(other.value(score, training))


def number(value: float) -> str:
    """Format a count of passes."""
    return f"{value:.4g}"


def seconds(value: float) -> str:
    """Format wall time."""
    return duration(value, 1)


def coefficient(value: float) -> str:
    """Format a coefficient in [0, 1]."""
    return f"{value:.3f}"


def _gini(score: Score, training: TrainingCost | None) -> float:
    """The Gini coefficient; infinite if no class has a robust point."""
    return math.inf if score.class_gini is None else score.class_gini


def unique(metrics: tuple[Metric, ...]) -> tuple[Metric, ...]:
    """The metrics, if every entry of a row has its own key.

    Raises:
        UserError: a metric's key, or that of its interval, is another metric's or one of `ROW_KEYS`.
    """
    taken = set(ROW_KEYS)
    for metric in metrics:
        for key in (metric.key, metric.json_key):
            if key in taken:
                raise UserError(f"{key!r} is another entry of the rows of `compare`; name it otherwise")
            taken.add(key)
    return metrics


def add(metric: Metric) -> None:
    """Add a metric to `METRICS`. Raises UserError if one of its keys is taken, see `unique`."""
    global METRICS
    METRICS = unique((*METRICS, metric))


HEADLINE = Metric(
    "robust_accuracy",
    "robust %",
    lambda score, _: score.robust_accuracy,
    interval=lambda score: score.interval_95,
    interval_name="Wilson",
    interval_key="interval_95",
)
"""The metric that is tested for significance; its column stands first."""

# Written by hand besides: the keys in the help of `bivallate compare --sort`, which imports no torch, the
# notes on intervals (reports/comparison/notes.py), the columns of `report` (reports/tables.py), and what
# `evaluate` prints and stores beside the points (commands/score_table.py, `Score.to_json`).
METRICS = (
    HEADLINE,
    Metric(
        "clean_accuracy",
        "clean %",
        lambda score, _: score.clean_accuracy,
        interval=lambda score: score.clean_interval_95,
        interval_name="Wilson",
        interval_key="clean_interval_95",
    ),
    Metric(
        "tail_30",
        "tail 30 %",
        lambda score, _: score.tail(30),
        interval=lambda score: score.tail_interval(30),
        interval_name="bootstrap over points",
    ),
    Metric(
        "worst_class",
        "worst class %",
        lambda score, _: score.worst_class[1],
        interval=lambda score: score.worst_class_interval_95,
        interval_name="bootstrap over points",
        prefix=lambda score, names: f"{names[score.worst_class[0]]}: ",
    ),
    Metric("class_gini", "class Gini", _gini, less_is_better=True, format=coefficient),
    Metric(
        "training_passes",
        "training passes",
        lambda _, cost: cost.forward + cost.backward if cost else math.inf,
        less_is_better=True,
        format=number,
        companion_key="training_seconds",
    ),
    Metric(
        "training_seconds",
        "",
        lambda _, cost: cost.seconds if cost else math.inf,
        less_is_better=True,
        format=seconds,
    ),
    Metric(
        "passes",
        "attack passes",
        lambda score, _: score.passes["forward"] + score.passes["backward"],
        less_is_better=True,
        format=number,
        companion_key="seconds",
    ),
    Metric("seconds", "", lambda score, _: score.seconds, less_is_better=True, format=seconds),
)
unique(METRICS)


def by_key(key: str) -> Metric:
    """The metric of that key. Raises UserError, which names the nearest one."""
    known = {one.key: one for one in METRICS}
    if key not in known:
        raise unknown("column", key, list(known))
    return known[key]
