"""`bivallate reproduce`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from bivallate.commands.options import Amount, Count, DataFolder, Flag, Names
from bivallate.errors import UserError, unknown
from bivallate.terminal import say, to_json

FORMATS = ("markdown", "latex", "json")


def reproduce(
    table: str | None = None,
    /,
    *,
    scale: str = "smoke",
    seeds: Count = 1,
    only: Names = (),
    group: Names = (),
    jobs: Count = 1,
    out: Path | None = None,
    runs: Path = Path("runs") / "reproduce",
    format: str = "markdown",
    list_: Annotated[bool, Parameter(name="--list", negative=(), show_default=False)] = False,
    tables: Flag = False,
    docs: Path = Path("docs") / "results.md",
    data_dir: DataFolder | None = None,
    device: str = "auto",
    threads: Amount = 1,
) -> int:
    """Train and attack the cells of a paper's TABLE, and print the paper's numbers and ours side by side.

    Cells that have a record in OUT are not run again, and interrupted trainings go on, so a campaign can be
    stopped and started at any time.

    Parameters
    ----------
    table
        T-D1 to T-D4, T-F1 to T-F11, T-B1, T-B2, T-B3, T-B6, T-B7, T-B8, T-Y1 to T-Y3, T-S1, T-C1, or a
        figure, such as E10 or E16-EPS; the command alone lists all.
    scale
        smoke (minutes; tests the path, its figures mean nothing), cpu (what two cores can finish) or full
        (the paper's).
    seeds
        trainings of each cell, with seeds 0, 1, ...
    only
        rows or methods, such as --only AT BiLAW; a figure is drawn of these instead of the paper's.
    group
        parts of the names of column groups, such as --group MNIST.
    jobs
        cells at once, each in its own process.
    out
        folder of the records. [default: results; runs/reproduce/results at scale smoke]
    runs
        folder of the trainings.
    format
        markdown, latex or json, of what is printed; all three are written to OUT/TABLE/.
    list_
        print what would be run, and stop.
    tables
        rebuild the page of all results from the records in OUT, and stop.
    docs
        the page that --tables writes.
    data_dir
        where named sets are looked for. [default: BIVALLATE_DATA]
    device
        auto, cpu, cuda or mps.
    threads
        of the processor, for each cell.
    """
    if data_dir is not None:
        if not Path(data_dir).is_dir():
            raise UserError(f"--data-dir must be a folder, got {data_dir}")
        os.environ["BIVALLATE_DATA"] = data_dir  # for worker processes too
    records = out or (runs / "results" if scale == "smoke" and not tables else Path("results"))
    if tables:
        from bivallate.reproduce.results_page import write_page

        if not any(records.glob("*/*/*-seed*.json")):
            raise UserError(
                f"{records} holds no record, and the page would be empty: name their folder, --out"
            )
        say(f"results: {write_page(records, docs)}")
        return 0
    if table is None:
        return _list_tables()
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    if table.upper().startswith("E"):
        given = {"--group": group, "--seeds": seeds > 1, "--jobs": jobs > 1}
        for flag in (flag for flag, value in given.items() if value):
            raise UserError(
                f"{table} is a figure, drawn of one training of each of its methods: leave out {flag}"
            )
        return _figure(table, only, scale, records, runs, only_list=list_, device=device, threads=threads)
    return _table(
        table, scale, records, runs, format, list_, jobs,
        seeds=range(seeds), only=only, groups=group, device=device, threads=threads,
    )  # fmt: skip


def _list_tables() -> int:
    from bivallate.reproduce.papers.catalogue import tables
    from bivallate.reproduce.papers.figure_list import FIGURES

    for entry in tables().values():
        say(f"{entry.name:<7}{len(entry.cells):>3} cells  {entry.title} ({entry.source})")
    for figure in FIGURES.values():
        say(f"{figure.name:<7}           {figure.title}")
    return 0


def _table(
    name: str,
    scale: Any,
    records: Path,
    runs: Path,
    form: str,
    only_list: bool,
    at_once: int,
    **choices: Any,
) -> int:
    from bivallate.reproduce.campaign import pending, run_campaign, to_stderr
    from bivallate.reproduce.papers.catalogue import find
    from bivallate.reproduce.planning import jobs_of
    from bivallate.reproduce.results_page import write_table
    from bivallate.reproduce.scaling import describe
    from bivallate.run.from_config import pick_device
    from bivallate.run.progress import TerminalProgress

    chosen = find(name)
    jobs = jobs_of(chosen, scale, out=records, runs=runs, **choices)
    if only_list:
        left = pending(jobs)
        for job in jobs:
            say(f"{'to run' if job in left else 'done':<7} {job.title}  ({job.cell.name})")
        return 0
    pick_device(choices["device"])  # before the first cell, not once for each
    to_stderr(f"{chosen.name} at scale {scale}: {describe(chosen, scale)}")
    shown = None if scale == "smoke" else TerminalProgress
    outcome = run_campaign(jobs, at_once=at_once, say=to_stderr, shown=shown)
    report, text = write_table(chosen, scale, records)
    say(to_json(report, 1) if form == "json" else text[form])
    if outcome.failed:
        failures = "\n".join(f"  {title}: {why.splitlines()[0]}" for title, why in outcome.failed.items())
        to_stderr(f"{len(outcome.failed)} cells failed:\n{failures}")
        return 1
    return 0


def _figure(
    name: str,
    only: Names,
    scale: Any,
    records: Path,
    runs: Path,
    *,
    only_list: bool,
    device: str,
    threads: int,
) -> int:
    from bivallate.reproduce.campaign import to_stderr
    from bivallate.reproduce.paper_figures import cells_of, draw, find_figure
    from bivallate.run.progress import TerminalProgress

    figure, papers = find_figure(name, only), find_figure(name)
    cells = cells_of(figure, scale)
    to_stderr(f"{figure.name}: {figure.title}, from {figure.table}'s trainings on {cells[0].group}")
    if figure.rows != papers.rows:
        to_stderr(f"of {', '.join(figure.rows)} instead of the paper's {', '.join(papers.rows)}")
    if figure.differs:
        to_stderr(f"differs from the paper's: {figure.differs}")
    if only_list:
        for cell in cells:
            say(f"{cell.row}, {cell.group}  ({cell.name})")
        return 0
    shown = None if scale == "smoke" else TerminalProgress
    options = {"device": device, "threads": threads, "say": to_stderr, "shown": shown}
    drawn = draw(figure, scale, records, runs, **options)
    for path in drawn:
        say(path)
    return 0 if drawn else 1
