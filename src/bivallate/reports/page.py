"""`report`: one page on several runs, as HTML in one file, or as Markdown or LaTeX with figures beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import torch
from markupsafe import Markup

from bivallate import quoting
from bivallate.errors import UserError
from bivallate.evaluation.threat_union import ThreatUnion, radius
from bivallate.files import write_text
from bivallate.reports import evidence_tables, tables
from bivallate.reports.collect import RunRecord, Runs, collect, folders
from bivallate.reports.comparison.notes import other_data
from bivallate.reports.headlines import headlines
from bivallate.reports.pictures import (
    FigureFiles,
    Images,
    InlineFigures,
    Picture,
    attacked_pictures,
    pictures,
)
from bivallate.reports.stored_evaluations import STALE
from bivallate.run.origin import commit
from bivallate.terminal import text_callback
from bivallate.version import __version__

FORMATS = {".html": "html", ".md": "md", ".tex": "tex"}


def report(
    *runs: Runs,
    out: str | Path | None = None,
    images: bool = True,
    data: str | None = None,
    data_dir: str | None = None,
    model: str | None = None,
    progress: bool | Callable[[str], object] = False,
) -> Path:
    """Write a report on one or several runs; return its path.

    The page has tables of accuracies with 95 % intervals, tests, audits, learning curves, accuracies by
    class, confusion matrices, attacked images and settings.

    Args:
        runs: folders, or what `train` returned; also in one list.
        out: file that ends in .html (one file with everything inside), .md or .tex (figures in a folder
            beside it); default report.html, in the run's folder if there is one run, else in the working
            directory.
        images: attack a few images of each run, to show them.
        data: where the runs' data are now, if they have moved.
        data_dir: folder of named data sets, if it has moved.
        model: `package.module:factory` for a network of your own.
        progress: True to print each stage to standard error, or a function that is called with its name.

    Raises:
        UserError: the ending of `out` is unknown, there are no runs, a folder is not a run, or a file in one
            is damaged.
    """
    paths = folders(runs)
    place = paths[0] if len(paths) == 1 else Path()
    wanted = Images(data_dir, model, data) if images else None
    return write_report(
        paths, Path(out) if out is not None else place / "report.html", wanted, text_callback(progress)
    )


def write_report(
    paths: Sequence[Path],
    out: Path,
    images: Images | None = None,
    tell: Callable[[str], object] = lambda text: None,
) -> Path:
    """Write the report on some run folders; the ending of `out` chooses the format.

    An HTML report is one file without references to anything outside. The figures of a Markdown or LaTeX
    report are in the folder NAME-figures beside it. Without `images` no model is loaded.

    Raises:
        UserError: the ending of `out` is unknown, there are no runs, a folder is not a run, or a file in one
            is damaged.
    """
    kind = FORMATS.get(out.suffix.lower())
    if kind is None:
        raise UserError(f"a report is written as .html, .md or .tex, got {out.name!r}")
    if not paths:
        raise UserError("name at least one run folder")
    tell(f"reading {len(paths)} runs")
    runs = collect(list(paths))
    if images is not None:
        tell("attacking a few images of each")
    shown, notes = attacked_pictures(runs, images) if images is not None else ([], [])
    show = InlineFigures() if kind == "html" else FigureFiles(out, "svg" if kind == "md" else "pdf")
    figures = [(p, show(p)) for p in (*pictures(runs), *shown)]
    tell("writing")
    write_text(out, render(kind, runs, figures, notes))
    return out


def render(
    kind: str, runs: Sequence[RunRecord], figures: Sequence[tuple[Picture, str]], notes: Sequence[str] = ()
) -> str:
    """The text of a report. Each figure is paired with its inline SVG or the name of its file."""
    first = [tables.runs_table(runs), evidence_tables.pairs_table(runs), evidence_tables.audits_table(runs)]
    first += [tables.evaluations_table(runs), tables.alarms_table(runs)]
    last = [
        *evidence_tables.confusion_tables(runs),
        *tables.classes_table(runs),
        tables.differences_table(runs),
    ]
    last += [evidence_tables.origins_table(runs)]
    code = commit().get("id", "")[:12]
    entry: dict[str, Any] = {
        "title": "bivallate: " + ", ".join(run.label for run in runs),
        "made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "code": f"bivallate {__version__}{f' (commit {code})' if code else ''}, torch {torch.__version__}",
        "runs": runs,
        "headlines": headlines(runs),
        "first": [t for t in first if t is not None and (t.rows or t.note)],
        "last": [t for t in last if t is not None],
        "configs": {run.label: tables.flatten(run.written.entry) for run in runs},
        "warnings": [*_warnings(runs), *notes],
        "figures": figures,
    }
    return _environment(kind).get_template(f"report.{kind}.j2").render(**entry)


def _warnings(runs: Sequence[RunRecord]) -> list[str]:
    """The notes at the top of the report: what limits the meaning of its numbers."""
    notes = []
    for run in runs:
        if not run.config.ended(run.history):
            notes.append(f"{run.label} is not finished: {len(run.history)} of {run.config.epochs} epochs.")
        if run.strongest is None:
            own = run.config.model.name
            network = ["--model", own] if ":" in own and not own.startswith("timm:") else []
            cure = quoting.command("evaluate", run.path, *network, "--attack", "autoattack")
            where = "at its training threat"
            if isinstance(run.home, ThreatUnion):
                where = "with the same weights and points within each threat of its training"
            notes.append(f"{run.label} has not been attacked {where}: {cure}")
        notes += run.left_out
        notes += [f"{run.label}, {e.score.attack}: {STALE}." for e in run.evaluations if e.stale]
        notes += [
            f"{run.label}, {e.score.attack}: {w}" for e in run.evaluations for w in run.warnings(e.score)
        ]
    notes += other_data(runs) if len(runs) > 1 else []
    within = {run.label: radius(run.strongest.score.threat) for run in runs if run.strongest is not None}
    if len(set(within.values())) > 1:
        each = "; ".join(f"{label}: {threat}" for label, threat in within.items())
        notes.append(f"The robust accuracies are within different threats and cannot be compared: {each}.")
    attacks = {run.strongest.score.attack for run in runs if run.strongest is not None}
    if len(attacks) > 1:
        notes.append(
            "The runs were attacked with different strength "
            f"({', '.join(sorted(attacks))}): their robust accuracies cannot be compared."
        )
    return notes


def _spoken(value: Any) -> Any:
    """A value for a template, with invisible characters made visible; markup stays as it is."""
    return value if isinstance(value, Markup) else quoting.visible(value)


def _environment(kind: str) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bivallate.reports"),
        autoescape=kind == "html",
        finalize=_spoken,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    if kind == "tex":  # jinja's usual braces mean something in LaTeX
        environment.variable_start_string, environment.variable_end_string = "<<", ">>"
        environment.block_start_string, environment.block_end_string = "<%", "%>"
        environment.comment_start_string, environment.comment_end_string = "<#", "#>"
    environment.filters |= {"tex": quoting.tex, "md": quoting.markdown}
    environment.filters["coded"] = lambda text: Markup(quoting.coded(text))
    return environment
