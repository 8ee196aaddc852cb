"""`bivallate diagnose`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from bivallate.commands.options import DataName, Machine, Several, WeightsSource
from bivallate.errors import UserError
from bivallate.terminal import say


def diagnose(
    *runs: Path,
    what: Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)] = (),
    out: Path | None = None,
    n: Several = 500,
    attack: str = "pgd-20",
    fosc_form: Literal["ball", "box"] = "ball",
    data: DataName | None = None,
    source: WeightsSource = WeightsSource(),  # noqa: B008  frozen
    machine: Machine = Machine(),  # noqa: B008
) -> None:
    """Draw diagnostic figures of runs and save each with its data.

    Figures of one model show the first run, comparisons all runs.

    Parameters
    ----------
    runs
        folders of the runs.
    what
        curves, alignment, alignment-over-epochs, alignment-by-epoch and fosc-over-epochs (of runs that keep
        weights), fosc, fosc-traces, landscape, classes, confusion, attacked, eps, ranks, weights,
        weights-over-epochs, weights-by-margin, omega (BiLAW), examples, likelihoods; of two runs or more
        plane, training-eps (of several radii), landscapes, cross, transfer; of two weightings,
        weight-scatter; repeatable. [default: all]
    out
        folder for NAME.svg, .png, .pdf and .json or .npz. [default: FIRST RUN/diagnosis, for other weights
        than the best ones FIRST RUN/diagnosis/WEIGHTS]
    n
        test points at most.
    attack
        for the accuracies by class and the confusions.
    fosc_form
        FOSC over the ball, as in Dynamic AT's eq. 4, or over the box, the ball's part within [0, 1].
    data
        where the runs' data are now, if they were moved. [default: as in training]
    """
    from bivallate.reports.diagnostics.by_name import DIAGNOSES
    from bivallate.reports.diagnostics.diagnose_runs import diagnose as drawn

    for name in (str(run) for run in runs if str(run) in DIAGNOSES and not run.exists()):
        raise UserError(f"there is no run in {name}, which is the name of a figure: write --what {name}")
    device = machine.prepare()
    asked = {"what": what, "out": out, "n": n, "attack": attack, "fosc_form": fosc_form, "device": device}
    asked |= {"data": data}
    drawn(*runs, **asdict(source), **asked, progress=_told)


def _told(name: str, what: Path | UserError) -> None:
    if isinstance(what, UserError):
        say(f"{name}: left out, {what}", to_stderr=True)
    else:
        say(f"{name}: {what}")
