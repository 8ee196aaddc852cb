"""`bivallate compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bivallate.commands.options import Flag, Names, Split, threats_of, without_folders
from bivallate.errors import UserError
from bivallate.terminal import say, say_json


def compare(
    *runs: Path,
    sort: str = "robust_accuracy",
    ascending: bool | None = None,
    attack: str | None = None,
    eps: str | None = None,
    norm: str | None = None,
    threat: Names = (),
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
    threat
        in place of --norm and --eps, a norm and a radius, or several: linf:8/255 l2:0.5. Of several, the
        points count that withstand the attacks within each. [default: likewise; where all runs were trained
        under the same several threats and evaluated within each, all of these]
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
    texts, folders = without_folders(threat)
    threats = threats_of(texts, beside=(eps, norm) != (None, None))
    which: dict[str, Any] = {"attack": attack, "eps": eps, "norm": norm, "threat": threats, "split": split}
    order: dict[str, Any] = {"sort": sort, "ascending": ascending, "over_seeds": over_seeds}
    made = compared(*runs, *folders, weights=weights, **which, **order)
    if plane is not None:
        say(f"plane of mean and worst class: {made.plane().save(plane)}", to_stderr=True)
    if json:
        say_json(made.to_json())
    elif markdown:
        say(made.to_markdown())
    else:
        made.show()
