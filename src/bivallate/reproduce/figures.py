"""The papers' figures: the cells whose runs they are drawn from, and what is drawn of them.

The drawing is that of `bivallate diagnose`; here are only the runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from bivallate.data import Dataset
from bivallate.errors import UserError, unknown
from bivallate.parts import parse_number
from bivallate.reproduce.catalogue import find
from bivallate.reproduce.cell import Cell, configure, slug
from bivallate.reproduce.running import cut, trained
from bivallate.reproduce.scaling import at_scale
from bivallate.reproduce.table import Scale
from bivallate.run.session import load_data
from bivallate.run.trainer import limit_threads

__all__ = ["FIGURES", "PaperFigure", "cells_of", "draw", "find_figure"]

POINTS = {"smoke": 32, "cpu": 500, "full": 1000}


@dataclass(frozen=True)
class PaperFigure:
    """Figures of the papers that one evaluation describes.

    Attributes:
        name: of the evaluation, E10 to E16-EPS. source: which figures of which paper it is drawn after; data
            and network are those of `table`.
        table, rows: whose cells are trained for it, in the first of the table's groups that has them.
        each: diagnoses drawn of every run by itself. by_row: of the runs of a row. together: of all runs at
            once. pairs: of two at a time.
        radii: every row is trained at these multiples of its radius; pictures that attack several runs alike
            attack at the first.
        differs: from the papers' figures, beside data and network; "" if in nothing.
    """

    name: str
    title: str
    source: str
    table: str
    rows: tuple[str, ...]
    each: tuple[str, ...] = ()
    by_row: tuple[str, ...] = ()
    together: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()
    radii: tuple[float, ...] = ()
    differs: str = ""


SINGLE_STEP = ("FAST-AT", "FAST-AT-GA", "FAST-BAT")
FIGURES = {
    figure.name: figure
    for figure in (
        PaperFigure(
            "E10",
            "gradient alignment",
            "Fast-BAT",
            "T-F1",
            SINGLE_STEP,
            together=("alignment", "alignment-over-epochs"),
            differs="over the epochs it is what the sentinel saw on held-out images, not on the test set",
        ),
        PaperFigure(
            "E11",
            "FOSC",
            "Dynamic AT, Fig. 1, 2, 5",
            "T-Y1",
            ("Standard", "Curriculum", "Dynamic"),
            ("fosc", "fosc-traces"),
            together=("fosc-over-epochs",),
            differs="over the epochs it is of 10/120, 60/120, 100/120 and all of the training, as density "
            "of the logarithm; accuracy by FOSC is of test images after 1, 5 and 20 steps, in equal groups",
        ),
        PaperFigure(
            "E12",
            "loss landscape",
            "Fast-BAT",
            "T-F1",
            ("FAST-AT", "FAST-BAT"),
            ("landscape",),
            differs="at a random test image, not at number 1456; in units of eps",
        ),
        PaperFigure(
            "E13",
            "weights by class, and of one method against another",
            "BiLAW, Fig. 3, 6; DONE, Fig. 5",
            "T-B1",
            ("MAIL", "BiLAW", "GAIRAT", "DONE-ADAM"),
            ("weights",),
            pairs=("weight-scatter",),
            differs="weights are those of the method's own attack, as dots with quartiles",
        ),
        PaperFigure("E14", "easy and hard examples", "BiLAW", "T-B1", ("MAIL", "BiLAW"), ("examples",)),
        PaperFigure("E15", "likelihoods projected", "BiLAW, Fig. 4", "T-B1", ("BiLAW",), ("likelihoods",)),
        PaperFigure(
            "E16",
            "weights over epochs, ranks, learning curves, accuracy against eps of the attack",
            "BiLAW, Fig. 5; DONE, Fig. 2; Dynamic AT, Fig. 4a",
            "T-B1",
            ("AT", "BiLAW", "DONE-ADAM"),
            each=("weights-by-margin",),
            together=("weights-over-epochs", "ranks", "curves", "eps"),
            differs="accuracies are of the last weights; clean margins are of the end of each epoch",
        ),
        PaperFigure(
            "E16-EPS",
            "accuracy against eps of training, with the best and the last weights; ranks",
            "Fast-BAT, Fig. 1; Dynamic AT, Fig. 4b; BiLAW, Fig. 1b",
            "T-F1",
            (*SINGLE_STEP, "PGD-2-AT"),
            by_row=("ranks",),
            together=("training-eps",),
            radii=(8 / 16, 4 / 16, 12 / 16, 16 / 16),
            differs="under PGD-20; BiLAW's ranks are of AT with ten steps",
        ),
    )
}


def find_figure(name: str) -> PaperFigure:
    """The figure of that name. Raises UserError naming the nearest one."""
    if name.upper() not in FIGURES:
        raise unknown("figure", name, FIGURES)
    return FIGURES[name.upper()]


def cells_of(figure: PaperFigure, scale: Scale) -> list[Cell]:
    """The cells that the figure is drawn from, in the order of its rows.

    Raises UserError where the table has none of them at this scale.
    """
    cells = [cell for cell in at_scale(find(figure.table), scale) if cell.row in figure.rows]
    if not cells:
        raise UserError(f"{figure.name} needs cells of {figure.table} that scale {scale} does not have")
    group = max(cells, key=lambda cell: parse_number(cell.eps)).group if figure.radii else cells[0].group
    first = sorted((c for c in cells if c.group == group), key=lambda cell: figure.rows.index(cell.row))
    if not figure.radii:
        return first
    radii = [_times(first[0].eps, factor) for factor in figure.radii]
    swept = [cell.but(eps=eps, group=f"eps {eps}") for cell in first for eps in radii]
    return [next((own for own in cells if own.but(group=new.group) == new), new) for new in swept]


def _times(eps: str, factor: float) -> str:
    """A multiple of a radius, written as it is.

    Example:
        >>> _times("16/255", 0.5), _times("0.15", 0.5)
        ('8/255', '0.075')
    """
    value, slash, whole = eps.partition("/")
    return f"{float(value) * factor:g}{slash}{whole}"


def draw(
    figure: PaperFigure,
    scale: Scale,
    out: Path,
    runs: Path,
    *,
    device: str = "auto",
    threads: int = 1,
    say: Callable[[str], object] = lambda text: None,
) -> list[Path]:
    """Trains what is missing, in the folders that the table uses, and draws; the paths of the pictures.

    What these runs do not have (too few passes for the sentinel to have looked) is told to `say`, and left.
    """
    limit_threads(threads)
    dataset: Dataset | None = None
    folders: dict[Path, str] = {}
    for cell in cells_of(figure, scale):
        config = configure(cell, 0, device, threads)
        dataset = cut(load_data(config.data, 0), cell.rows)
        place = runs / figure.table / scale / f"{cell.name}-seed0"
        folders[trained(config, dataset, place, cell.weights)[0].path] = cell.row
        absent = [e for e in config.keep if not (place / f"epoch-{e}.safetensors").exists()]
        if absent:
            epochs = ", ".join(map(str, absent))
            say(f"{place} did not keep the weights of epoch {epochs}: remove it to have it trained anew")
    drawn: list[Path] = []
    place = out / figure.name / scale
    groups = [(figure.each, [folder], folder.name) for folder in folders]
    groups += [(figure.by_row, [f for f in folders if folders[f] == r], slug(r)) for r in figure.rows]
    groups += [(figure.together, list(folders), "all")]
    groups += [(figure.pairs, [a, b], f"{a.name}-and-{b.name}") for a, b in pairwise(folders)]
    for kinds, chosen, name in groups:
        drawn += _pictures(kinds, chosen, dataset, place, name, POINTS[scale], say)
    return drawn


def _pictures(
    kinds: tuple[str, ...],
    chosen: list[Path],
    dataset: Any,
    place: Path,
    name: str,
    n: int,
    say: Callable[[str], object],
) -> list[Path]:
    from bivallate.reports.diagnostics.of_run import DIAGNOSES, subject

    if not kinds:
        return []
    looked_at = subject(chosen, n=n, weights="last", given=dataset)
    drawn: list[Path] = []
    for kind in kinds:
        try:
            drawn.append(DIAGNOSES[kind](looked_at).save(place / f"{kind}-{name}"))
        except UserError as error:
            say(f"no {kind} of {name}: {error}")
    return drawn
