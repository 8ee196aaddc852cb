"""`bivallate report`."""

from __future__ import annotations

from pathlib import Path

from bivallate.cli import APP


@APP.command
def report(*runs: Path, out: Path | None = None) -> None:
    """Put one or several runs on one page: tables with intervals, curves, classes, confusions, settings.

    Parameters
    ----------
    runs
        folders of the runs.
    out
        file to write: .html (one file with everything inside), .md or .tex (figures in a folder beside it).
        [default: report.html, of one run in its folder]
    """
    from bivallate.reports.page import write_report

    place = runs[0] if len(runs) == 1 else Path()
    print(f"report: {write_report(runs, out or place / 'report.html')}")
