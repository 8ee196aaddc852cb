"""`bivallate compare`."""

from __future__ import annotations

from pathlib import Path

from bivallate.commands.options import Flag, Split
from bivallate.errors import UserError
from bivallate.terminal import say, say_json


def compare(
    *runs: Path,
    sort: str = "robust_accuracy",
    ascending: bool | None = None,
    attack: str | None = None,
    eps: str | None = None,
    norm: str | None = None,
    weights: str = "best",
    split: Split = "test",
    over_seeds: Flag = False,
    plane: Path | None = None,
    markdown: Flag = False,
    json: Flag = False,
) -> None:
    """Compare the stored evaluations of several runs in one table, with significance tests and costs.

    Nothing is attacked; the results in RUN/evaluation are read. By default the table shows the strongest
    attack that all runs have in common, at the radius that most of them were trained for. If a run has a
    still stronger evaluation, that one comes first in its row. Differing data sets are reported.

    Parameters
    ----------
    runs
        folders of the runs.
    sort
        a column: robust_accuracy, clean_accuracy, tail_30, worst_class, class_gini, passes, seconds (of the
        evaluation), training_passes, training_seconds.
    ascending
        smallest first. [default: for costs only]
    attack
        name of the attack, as given to evaluate. [default: the strongest that all have]
    eps
        radius, such as 8/255. [default: the one that most runs were trained for]
    norm
        linf, l2 or l1. [default: likewise]
    weights
        best, last, ema or epoch-N.
    over_seeds
        one row for the runs that differ in their seed only: mean, standard deviation and interval.
    plane
        a picture of the weakest class's accuracy against that of all points, with intervals, and its numbers
        beside it: FILE.svg, .png, .pdf and .json.
    markdown
        print a Markdown table.
    json
        print everything as JSON.
    """
    from bivallate.reports.comparison.compare_runs import compare as compared

    if markdown and json:
        raise UserError("give --markdown or --json, not both")
    made = compared(
        *runs,
        sort=sort,
        ascending=ascending,
        attack=attack,
        eps=eps,
        norm=norm,
        weights=weights,
        split=split,
        over_seeds=over_seeds,
    )
    if plane is not None:
        say(f"plane of mean and worst class: {made.plane().save(plane)}", to_stderr=True)
    if json:
        say_json(made.to_json())
    elif markdown:
        say(made.to_markdown())
    else:
        made.show()
