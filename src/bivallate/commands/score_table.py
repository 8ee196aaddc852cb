"""Print the score of an evaluation: as tables, or in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from bivallate.quoting import line
from bivallate.terminal import NAME_WIDTH, literal_console, say

if TYPE_CHECKING:
    from bivallate.evaluation import Score


def one_line(label: str, score: Score) -> None:
    """Print one of several scores in one line."""
    robust = percent(score.robust_accuracy, score.interval_95)
    say(f"{label}: clean {percent(score.clean_accuracy)}, robust {robust}, {score.n} points")
    for warning in score.warnings:
        say(f"warning: {label}: {warning}", to_stderr=True)


def percent(value: float | None, interval: tuple[float, float] | None = None) -> str:
    """Format a fraction in [0, 1] as a percentage, with its interval if given."""
    if value is None:
        return "none"
    text = f"{100 * value:.2f} %"
    return text if interval is None else f"{text}  [{100 * interval[0]:.2f}, {100 * interval[1]:.2f}]"


def show(score: Score, classes: list[str]) -> None:
    """Print a score as tables.

    Args:
        classes: names of the data's classes.
    """
    from bivallate.evaluation.metrics import by_key

    console = literal_console()
    eps = score.threat.eps
    console.print(
        f"{score.attack} at {type(score.threat).__name__} eps {eps:.5g} ({255 * eps:.3g}/255), "
        f"{score.n} points, seed {score.seed}",
    )
    table = Table("accuracy", "value [95 % interval]")
    table.add_row("clean", percent(score.clean_accuracy, score.clean_interval_95))
    table.add_row("robust", percent(score.robust_accuracy, score.interval_95))
    table.add_row("robust, tail 30 % of classes", percent(score.tail(30), score.tail_interval(30)))
    known = classes[: score.classes]  # of the data, which may name other classes than the model has
    names = [line(name, NAME_WIDTH) for name in (*known, *range(len(known), score.classes))]
    worst, value = score.worst_class
    table.add_row(f"worst class: {names[worst]}", percent(value, score.worst_class_interval_95))
    table.add_row("Gini coefficient of the classes", by_key("class_gini").cell(score, None, names))
    console.print(table)
    if len(score.stages) > 2:
        console.print(
            "left after each stage: " + ", ".join(f"{k} {percent(v)}" for k, v in score.stages.items())
        )
    each = Table("class", "clean %", "robust %", "mostly taken for")
    clean, robust = score.per_class_clean_interval_95, score.per_class_interval_95
    confusion = score.confusion.clone().fill_diagonal_(0)
    for k, label in enumerate(names):
        into = int(confusion[k].argmax())
        often = f"{names[into]} ({int(confusion[k, into])})" if int(confusion[k, into]) else "-"
        each.add_row(
            label, _short(score.per_class_clean[k], clean[k]), _short(score.per_class[k], robust[k]), often
        )
    console.print(each)
    passes = ", ".join(f"{value:.4g} {kind}" for kind, value in score.passes.items())
    console.print(f"{passes} passes per point; {score.seconds:.1f} s")
    for warning in score.warnings:
        say(f"warning: {warning}", to_stderr=True)


def _short(value: float | None, bounds: tuple[float, float] | None) -> str:
    """Format a percentage with its interval, short enough for two of them in a row."""
    if value is None or bounds is None:  # a class without points
        return "none"
    return f"{100 * value:.1f} [{100 * bounds[0]:.1f}, {100 * bounds[1]:.1f}]"
