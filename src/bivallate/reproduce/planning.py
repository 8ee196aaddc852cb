"""Make the jobs of a table from a scale and the user's choices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bivallate.errors import UserError, unknown
from bivallate.reproduce.cell import Cell
from bivallate.reproduce.paper_table import PaperTable, Scale
from bivallate.reproduce.running import Job
from bivallate.reproduce.scaling import at_scale, sources_at_scale

__all__ = ["RUNS", "jobs_of"]

RUNS = Path("runs") / "reproduce"


def jobs_of(
    table: PaperTable,
    scale: Scale,
    *,
    seeds: Sequence[int] = (0,),
    only: Sequence[str] = (),
    groups: Sequence[str] = (),
    out: Path = Path("results"),
    runs: Path = RUNS,
    device: str = "auto",
    threads: int = 1,
) -> list[Job]:
    """The jobs of a table: all cells with the first seed, then all with the next.

    Args:
        table, scale: the table and the scale.
        seeds: seeds of training.
        only: names of rows or methods; empty takes all.
        groups: parts of the names of groups; empty takes all.
        out: folder of the records.
        runs: folder of the trainings.
        device, threads: where to compute.

    Raises UserError for a row, method or group that the table does not have.
    """
    cells = [cell for cell in chosen(table, at_scale(table, scale), only) if _in(cell, groups)]
    if not cells:
        raise UserError(f"{table.name} has nothing at scale {scale} that --only or --group asks for")
    sources = sources_at_scale(table, scale)
    return [
        Job(table.name, scale, cell, seed, out, runs, sources, device, threads)
        for seed in seeds
        for cell in cells
    ]


def chosen(table: PaperTable, cells: Sequence[Cell], only: Sequence[str]) -> list[Cell]:
    """The cells of the rows `only`, in that order; a name that no row has is that of a method.

    Raises UserError for others.
    """
    if not only:
        return list(cells)
    rows, methods = {c.row.lower() for c in table.cells}, {c.method for c in table.cells}
    found: list[Cell] = []
    for name in only:
        key = name.lower()
        if key not in rows | methods:
            raise unknown(f"row of {table.name}", name, {c.row for c in table.cells})
        asked = [c for c in cells if key == (c.row.lower() if key in rows else c.method)]
        found += [c for c in asked if c not in found]
    return found


def _in(cell: Cell, groups: Sequence[str]) -> bool:
    return not groups or any(group.lower() in cell.group.lower() for group in groups)
