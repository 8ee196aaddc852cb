"""All tables by name."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from bivallate.errors import unknown
from bivallate.reproduce.cell import Cell, Measure
from bivallate.reproduce.paper_table import PaperTable
from bivallate.reproduce.papers import bilaw_tables, done_tables, dynamic_tables, fast_ablations, fast_tables

__all__ = ["find", "tables"]


@cache
def tables() -> dict[str, PaperTable]:
    """Every table, paper by paper."""
    modules = {
        done_tables: "one Tesla V100",
        fast_tables: "one RTX 3090",
        fast_ablations: "one RTX 3090",
        bilaw_tables: "one RTX 2080 Ti",
        dynamic_tables: "",
    }
    return {
        table.name: replace(_with_autoattack(table), hardware=hardware)
        for module, hardware in modules.items()
        for table in module.TABLES
    }


ADDED = "AA is ours: AutoAttack on 1,000 random test points, which the paper's table does not have."


def _with_autoattack(table: PaperTable) -> PaperTable:
    """The table with an AutoAttack column where the paper has none."""

    def judged(cell: Cell) -> bool:
        return any(m.attack.startswith("autoattack") for m in cell.measures)

    if all(map(judged, table.cells)):
        return table
    added = Measure("AA", "robust", "autoattack", n=1000)
    cells = (cell if judged(cell) else cell.but(measures=(*cell.measures, added)) for cell in table.cells)
    return replace(table, cells=tuple(cells), notes=(*table.notes, ADDED))


def find(name: str) -> PaperTable:
    """The table of that name. Raises UserError naming the nearest one."""
    known = tables()
    if name.upper() not in known:
        raise unknown("table", name, known)
    return known[name.upper()]
