"""The papers' figures: train the runs that they need, and draw them by `bivallate diagnose`'s diagnostics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from bivallate.data import Dataset
from bivallate.errors import UserError, unknown
from bivallate.from_text import parse_number
from bivallate.reproduce.cell import Cell, configure, slug
from bivallate.reproduce.paper_table import Scale
from bivallate.reproduce.papers.catalogue import find
from bivallate.reproduce.papers.figure_list import FIGURES, PaperFigure
from bivallate.reproduce.planning import chosen
from bivallate.reproduce.running import cut, trained
from bivallate.reproduce.scaling import at_scale
from bivallate.run.arithmetic import limit_threads
from bivallate.run.from_config import load_data
from bivallate.run.progress import Progress
from bivallate.weighting.margin_net import weighs_by_margins

__all__ = ["cells_of", "draw", "find_figure"]

POINTS = {"smoke": 32, "cpu": 500, "full": 1000}


def find_figure(name: str, only: Sequence[str] = ()) -> PaperFigure:
    """The figure of this name, of the paper's rows or of the rows `only` of the same table.

    Raises UserError for an unknown figure or row, with the nearest one, and for other rows of a figure of
    variants.
    """
    if name.upper() not in FIGURES:
        raise unknown("figure", name, FIGURES)
    figure = FIGURES[name.upper()]
    if not only:
        return figure
    if figure.variants:
        raise UserError(f"{figure.name} is of variants of {', '.join(figure.rows)} alone: leave out --only")
    table = find(figure.table)
    return replace(figure, rows=tuple(dict.fromkeys(cell.row for cell in chosen(table, table.cells, only))))


def cells_of(figure: PaperFigure, scale: Scale) -> list[Cell]:
    """The cells whose runs the figure needs, in the order of its rows.

    Raises UserError if the table lacks one of them at this scale.
    """
    every = at_scale(find(figure.table), scale)
    cells = [cell for cell in every if cell.row in figure.rows]
    if not cells:
        raise UserError(f"{figure.name} needs cells of {figure.table} that scale {scale} does not have")
    group = figure.group if figure.group in {cell.group for cell in every} else _other_group(figure, cells)
    first = sorted((c for c in cells if c.group == group), key=lambda cell: figure.rows.index(cell.row))
    absent = [row for row in figure.rows if row not in {cell.row for cell in first}]
    if absent:
        raise UserError(
            f"{figure.name} is of {group}, for which {figure.table} has no {', '.join(absent)} "
            f"at scale {scale}"
        )
    _refuse_other_weightings(figure, first)
    first = [cell.but(keep=tuple(sorted({*cell.keep, *figure.keep}))) for cell in first]
    if figure.variants:
        return [
            cell.but(row=name, group=f"{cell.row} {group}", parameters={**cell.parameters, **parameters})
            for cell in first
            for name, parameters in figure.variants.items()
        ]
    if not figure.radii:
        return first
    radii = [_times(first[0].eps, factor) for factor in figure.radii]
    swept = [cell.but(eps=eps, group=f"eps {eps}") for cell in first for eps in radii]
    return [next((own for own in cells if own.but(group=new.group) == new), new) for new in swept]


def _refuse_other_weightings(figure: PaperFigure, cells: Sequence[Cell]) -> None:
    """Raise UserError before a training whose method has no weight network for a figure of that."""
    if "omega" not in figure.each:
        return
    others = [c.row for c in cells if not weighs_by_margins(configure(c, 0, "cpu", 1).method.weighting)]
    if others:
        raise UserError(
            f"{figure.name} is of networks that weight by margins, which {', '.join(others)} does not have: "
            f"leave out --only for that of {', '.join(FIGURES[figure.name].rows)}"
        )


def _other_group(figure: PaperFigure, cells: list[Cell]) -> str:
    """The group at a scale that lacks the figure's own: that of the largest eps for radii, or the first."""
    return max(cells, key=lambda cell: parse_number(cell.eps)).group if figure.radii else cells[0].group


def _times(eps: str, factor: float) -> str:
    """A multiple of a radius, in the same notation.

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
    shown: Callable[[str], Progress] | None = None,
) -> list[Path]:
    """Train the missing runs in the folders of the figure's table, draw, and return the pictures' paths.

    A picture for which the runs have no data (for example, too few passes for a check of the sentinel) is
    left out, and `say` is told why. `shown` makes the progress of a row's training.
    """
    limit_threads(threads)
    dataset: Dataset | None = None
    folders: dict[Path, str] = {}
    for cell in cells_of(figure, scale):
        config = configure(cell, 0, device, threads)
        dataset = cut(load_data(config.data, 0), cell.rows)
        place = runs / figure.table / scale / f"{cell.name}-seed0"
        progress = shown(cell.row) if shown is not None else None
        run = trained(config, dataset, place, cell.weights, progress)[0].path
        folders[run] = cell.row
        absent = [e for e in config.keep if not (run / f"epoch-{e}.safetensors").exists()]
        if absent:
            epochs = ", ".join(map(str, absent))
            say(f"{run} did not keep the weights of epoch {epochs}: remove it to have it trained anew")
    drawn: list[Path] = []
    place = out / figure.name / scale
    groups = [(figure.each, [folder], folder.name) for folder in folders]
    rows = dict.fromkeys(folders.values())
    groups += [(figure.by_row, [f for f in folders if folders[f] == r], slug(r)) for r in rows]
    all_of_them = "all" if figure == FIGURES[figure.name] else "-and-".join(map(slug, rows))
    groups += [(figure.together, list(folders), all_of_them)]
    groups += [(figure.pairs, [a, b], f"{a.name}-and-{b.name}") for a, b in pairwise(folders)]
    for kinds, these, name in groups:
        looked = {"n": POINTS[scale], "attack": figure.attack}
        drawn += _pictures(kinds, these, dataset, place, name, looked, say)
    return drawn


def _pictures(
    kinds: tuple[str, ...],
    chosen: list[Path],
    dataset: Any,
    place: Path,
    name: str,
    looked: dict[str, Any],
    say: Callable[[str], object],
) -> list[Path]:
    from bivallate.reports.diagnostics.by_name import DIAGNOSES, subject

    if not kinds:
        return []
    looked_at = subject(chosen, weights="last", given=dataset, **looked)
    drawn: list[Path] = []
    for kind in kinds:
        try:
            drawn.append(DIAGNOSES[kind](looked_at).save(place / f"{kind}-{name}"))
        except UserError as error:
            say(f"no {kind} of {name}: {error}")
    return drawn
