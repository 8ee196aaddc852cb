"""`bivallate report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from bivallate.commands.options import DataFolder, DataName
from bivallate.terminal import say


def report(
    *runs: Path,
    out: Path | None = None,
    images: Annotated[bool, Parameter(negative="--no-images")] = True,
    data: DataName | None = None,
    data_dir: DataFolder | None = None,
    model: str | None = None,
) -> None:
    """Write a report of one or several runs.

    It has tables with intervals, significance tests, audits, curves, accuracies by class, confusions,
    attacked images and settings.

    Parameters
    ----------
    runs
        folders of the runs.
    out
        file to write: .html (one file with everything inside), .md or .tex (figures in a folder beside it).
        [default: report.html, of one run in its folder]
    images
        attack a few images of each run, to show them.
    data
        where the runs' data are now, if they were moved. [default: as in training]
    data_dir
        where named sets are looked for, to show their images. [default: BIVALLATE_DATA]
    model
        package.module:factory, for a run that trained a network of your own.
    """
    from bivallate.reports.page import report as written

    place = written(*runs, out=out, images=images, data=data, data_dir=data_dir, model=model)
    say(f"report: {place}")
