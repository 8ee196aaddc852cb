"""Run folders as one page: HTML with everything inside, or Markdown or LaTeX with figures beside it."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from bivallate import quoting
from bivallate.errors import UserError
from bivallate.files import write_text
from bivallate.reports import tables
from bivallate.reports.collect import STALE, RunRecord, collect
from bivallate.reports.diagnostics.classes import confusion, per_class
from bivallate.reports.diagnostics.curves import learning_curves
from bivallate.reports.diagnostics.drawn import Drawn
from bivallate.reports.style import styled

FORMATS = {".html": "html", ".md": "md", ".tex": "tex"}


@dataclass(frozen=True)
class Picture:
    """A figure of the report.

    Attributes:
        name: of its file. caption: what it shows. drawn: the diagnostic. wide: fills the width of a page.
    """

    name: str
    caption: str
    drawn: Drawn
    wide: bool = True


def write_report(paths: Sequence[Path], out: Path) -> Path:
    """Writes the report of some run folders; the ending of `out` chooses the format.

    HTML is one file without references to anything outside; Markdown and LaTeX put their figures into the
    folder NAME-figures beside them.

    Raises:
        UserError: an unknown ending, no runs, a folder that is no run, a damaged file in one.
    """
    kind = FORMATS.get(out.suffix.lower())
    if kind is None:
        raise UserError(f"a report is written as .html, .md or .tex, got {out.name!r}")
    if not paths:
        raise UserError("name at least one run folder")
    runs = collect(list(paths))
    drawn = pictures(runs)
    show = _Inline() if kind == "html" else _Beside(out, "svg" if kind == "md" else "pdf")
    write_text(out, render(kind, runs, [(p, show(p)) for p in drawn]))
    return out


def pictures(runs: Sequence[RunRecord]) -> list[Picture]:
    """Every figure that the runs have data for."""
    found = []
    trained = {run.label: run.history for run in runs if run.history}
    if trained:
        found.append(Picture("curves", _curves_caption(runs), learning_curves(trained)))
    scored = {run: run.strongest.score for run in runs if run.strongest is not None}
    for k, classes in enumerate(dict.fromkeys(run.classes for run in scored)):
        same = {run.label: score for run, score in scored.items() if run.classes == classes}
        text = "Accuracy of each class, weakest first: hollow on clean images, filled under attack."
        found.append(Picture(f"classes-{k}", text, per_class(same, classes)))
    for k, (run, score) in enumerate(scored.items()):
        text = f"{run.label}: what each class is taken for under {score.attack}, in per cent of the class."
        found.append(Picture(f"confusion-{k}", text, confusion(score, run.classes), wide=False))
    return found


def _curves_caption(runs: Sequence[RunRecord]) -> str:
    text = (
        "Learning curves. Held-out robust accuracy is under the short attack that training measures itself "
        "with; effective weights: (sum w)^2 / (B sum w^2), 100 % when all examples count alike."
    )
    rolled = any(alarm.get("rolled_back") for run in runs for alarm in run.alarms)
    return text + (" Dotted verticals: the sentinel rolled the run back." if rolled else "")


def render(kind: str, runs: Sequence[RunRecord], figures: Sequence[tuple[Picture, str]]) -> str:
    """The text of a report; each figure comes with its inline SVG or its file's name."""
    from bivallate import __version__

    found = [tables.runs_table(runs), tables.evaluations_table(runs)]
    alarms, differences = tables.alarms_table(runs), tables.differences_table(runs)
    entry: dict[str, Any] = {
        "title": "bivallate: " + ", ".join(run.label for run in runs),
        "version": __version__,
        "runs": runs,
        "main": [t for t in found if t.rows],
        "alarms": alarms,
        "differences": differences,
        "classes": tables.classes_table(runs),
        "configs": {run.label: tables.flatten(tables.encode(run.config)) for run in runs},
        "warnings": _warnings(runs),
        "figures": figures,
    }
    return _environment(kind).get_template(f"report.{kind}.j2").render(**entry)


def _warnings(runs: Sequence[RunRecord]) -> list[str]:
    """What a reader should know before the numbers."""
    notes = []
    for run in runs:
        if len(run.history) < run.config.epochs:
            notes.append(f"{run.label} is not finished: {len(run.history)} of {run.config.epochs} epochs.")
        if run.strongest is None:
            notes.append(
                f"{run.label} has not been attacked at its training threat: bivallate evaluate {run.path}"
            )
        notes += [f"{run.label}, {e.score.attack}: {STALE}." for e in run.evaluations if e.stale]
        notes += [f"{run.label}, {e.score.attack}: {w}" for e in run.evaluations for w in e.score.warnings]
    attacks = {run.strongest.score.attack for run in runs if run.strongest is not None}
    if len(attacks) > 1:
        notes.append(
            "The runs were attacked with different strength "
            f"({', '.join(sorted(attacks))}): their robust accuracies cannot be compared."
        )
    return notes


class _Inline:
    """Figures as SVG inside a page, with identifiers that do not meet those of the other figures."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, picture: Picture) -> str:
        self.count += 1
        return inline_svg(picture.drawn, f"f{self.count}-", picture.caption)


@dataclass(frozen=True)
class _Beside:
    """Figures as files in a folder beside the page."""

    out: Path
    ending: str

    def __call__(self, picture: Picture) -> str:
        folder = self.out.with_name(f"{self.out.stem}-figures")
        picture.drawn.save(folder / picture.name, (self.ending, "png"))
        return f"{folder.name}/{picture.name}.{self.ending}"


def inline_svg(drawn: Drawn, prefix: str, caption: str) -> str:
    """The figure as an <svg> element without prolog, metadata or fixed size."""
    stream = io.StringIO()
    with styled():
        drawn.figure().savefig(stream, format="svg", metadata={"Date": None})
    svg = stream.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r"<[^>]+>", lambda tag: _own_ids(tag[0], prefix), svg)
    width = float(re.search(r'width="([\d.]+)pt"', svg)[1])  # pyright: ignore[reportOptionalSubscript]
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"|height="[\d.]+pt" ', "", svg, count=1)
    svg = re.sub(r' width="[\d.]+pt"', "", svg, count=1)
    size = f'style="width:{1.55 * width:.0f}px;max-width:100%;height:auto"'
    return svg.replace("<svg", f'<svg role="img" aria-label="{quoting.html(caption)}" {size}', 1)


def _own_ids(tag: str, prefix: str) -> str:
    """A tag of a figure whose identifiers, and references to them, begin with the prefix."""
    tag = re.sub(r'\bid="', f'id="{prefix}', tag)
    return re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}", tag)


def _spoken(value: Any) -> Any:
    """What a template puts in, with nothing that hides in a text; what is markup already stays."""
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
    if kind == "tex":  # braces are LaTeX's own
        environment.variable_start_string, environment.variable_end_string = "<<", ">>"
        environment.block_start_string, environment.block_end_string = "<%", "%>"
        environment.comment_start_string, environment.comment_end_string = "<#", "#>"
    environment.filters |= {"tex": quoting.tex, "md": quoting.markdown}
    return environment
