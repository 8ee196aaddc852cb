"""The figures of a report, and their embedding in a page."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bivallate import quoting
from bivallate.errors import UserError
from bivallate.evaluation import Score
from bivallate.evaluation.threat_union import radius
from bivallate.reports.collect import RunRecord
from bivallate.reports.diagnostics.curves import STRONGEST, learning_curves
from bivallate.reports.diagnostics.diagnostic import Diagnostic
from bivallate.reports.diagnostics.easy_and_hard import EasyAndHard, easy_and_hard
from bivallate.reports.diagnostics.per_class import MANY, Confusion, confusion, per_class
from bivallate.reports.diagnostics.plane import plane
from bivallate.reports.matrix import matrix_svg
from bivallate.reports.stored_evaluations import Evaluation
from bivallate.run.evaluation_data import moved_data
from bivallate.run.load_model import load_run
from bivallate.style import styled

PLANE = (
    "Robust accuracy of the weakest class against that of all points, with 95 % intervals; dashed: all "
    "classes alike; stepped: what no other run beats on both axes."
)
PLAIN = "pgd-20"  # attacks the images that are shown


@dataclass(frozen=True)
class Picture:
    """A figure of the report.

    Attributes:
        name: name of its file.
        caption: what it shows.
        drawn: the diagnostic that draws it.
        wide: whether it fills the width of a page.
    """

    name: str
    caption: str
    drawn: Diagnostic
    wide: bool = True

    @property
    def kind(self) -> str:
        """How a page places the figure: "wide", "narrow", or "matrix", which scrolls."""
        if isinstance(self.drawn, Confusion) and self.drawn.wide:
            return "matrix"
        return "wide" if self.wide else "narrow"


@dataclass(frozen=True)
class Images:
    """What is needed to attack some images of a run for a report.

    Attributes:
        data_dir: folder of named data sets, if it has moved.
        model: `package.module:factory` for runs with the user's own network.
        data: where the runs' data are now, if they have moved.
    """

    data_dir: str | None = None
    model: str | None = None
    data: str | None = None


def pictures(runs: Sequence[RunRecord]) -> list[Picture]:
    """All figures for which the runs have data."""
    found = []
    trained = {run.label: run.history for run in runs if run.history}
    if trained:
        found.append(Picture("curves", _curves_caption(runs), learning_curves(trained)))
    scored = {run: run.strongest.score for run in runs if run.strongest is not None}
    for k, classes in enumerate(dict.fromkeys(run.classes for run in scored)):
        same = {run.label: score for run, score in scored.items() if run.classes == classes}
        which = (
            "Accuracy of the weakest and strongest classes" if len(classes) > MANY else "Accuracy by class"
        )
        text = f"{which}, weakest first: hollow on clean images, filled under attack."
        found.append(Picture(f"classes-{k}", text, per_class(same, classes)))
        if len({score.threat for score in same.values()}) == 1 < len(same):
            found.append(Picture(f"plane-{k}", PLANE, plane(same, classes), wide=False))
    for k, (run, score) in enumerate(scored.items()):
        text = f"{run.label}: what each class is taken for under {score.attack}, in per cent of the class."
        found.append(Picture(f"confusion-{k}", text, confusion(score, run.names(score.classes)), wide=False))
    return found


def attacked_pictures(runs: Sequence[RunRecord], images: Images) -> tuple[list[Picture], list[str]]:
    """Figures of hard and easy images of each attacked run, and notes on runs that have none."""
    found, notes = [], []
    for k, run in enumerate(runs):
        if run.strongest is None:
            continue
        try:
            drawn = _attacked(run, images)
        except (UserError, OSError, RuntimeError, ValueError) as error:  # the report can do without images
            notes.append(f"{run.label}: no images are shown: {str(error).splitlines()[0]}")
            continue
        within = f" within {radius(_drawable(run.strongest).threat)}" if run.strongest.parts else ""
        text = (
            f"{run.label}: points that {run.strongest.score.attack} breaks by the widest margin (hard) and "
            f"those that stay right by the widest (easy){within}, drawn under {drawn.attack}; above each "
            "image its class or what it is taken for; change: grey is none, scaled to the largest."
        )
        found.append(Picture(f"attacked-{k}", text, drawn))
    return found, notes


def _attacked(run: RunRecord, images: Images) -> EasyAndHard:
    strong, config = run.strongest, run.config
    if strong is None or strong.stale:
        raise UserError("the evaluation is of weights that have changed since")
    config = config.set("data.data_dir", images.data_dir) if images.data_dir is not None else config
    model = load_run(run.path, strong.weights, images.model)
    test, score = moved_data(run.path, config, images.data).test, _drawable(strong)
    return easy_and_hard(model, test, score.threat, score, run.names(score.classes), attack=PLAIN)


def _drawable(strong: Evaluation) -> Score:
    """A score within one threat: of several the one that leaves least."""
    return min((e.score for e in strong.parts or (strong,)), key=lambda score: score.robust_accuracy)


def _curves_caption(runs: Sequence[RunRecord]) -> str:
    text = (
        "Learning curves. Held-out robust accuracy is under the short attack that training measures itself "
        "with; effective weights: (sum w)^2 / (B sum w^2), 100 % when all examples count alike."
    )
    if any(STRONGEST.keys() & line.keys() for run in runs for line in run.history):
        text += " Strongest threat: share of the examples on which the loss within it is the highest."
    rolled = any(alarm.get("rolled_back") for run in runs for alarm in run.alarms)
    return text + (" Dotted verticals: the sentinel rolled the run back." if rolled else "")


class InlineFigures:
    """Figures as SVG inside a page, with identifiers that are unique among all figures."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, picture: Picture) -> str:
        self.count += 1
        if picture.kind == "matrix" and isinstance(picture.drawn, Confusion):
            return matrix_svg(picture.drawn, picture.caption)
        return inline_svg(picture.drawn, f"f{self.count}-", picture.caption)


@dataclass(frozen=True)
class FigureFiles:
    """Figures as files in a folder beside the page."""

    out: Path
    ending: str

    def __call__(self, picture: Picture) -> str:
        folder = self.out.with_name(f"{self.out.stem}-figures")
        picture.drawn.save(folder / picture.name, (self.ending, "png"))
        return f"{folder.name}/{picture.name}.{self.ending}"


def inline_svg(drawn: Diagnostic, prefix: str, caption: str) -> str:
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
    """The tag with `prefix` before its identifiers and its references to identifiers."""
    tag = re.sub(r'\bid="', f'id="{prefix}', tag)
    return re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}", tag)
