"""All tables of the papers, by name."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from bivallate.errors import unknown
from bivallate.reproduce import papers
from bivallate.reproduce.cell import Cell, Measure
from bivallate.reproduce.paper_table import PaperTable, reported

__all__ = ["find", "tables"]


@cache
def tables() -> dict[str, PaperTable]:
    """The tables of all modules in this folder, by name, in the order of `reported.json`."""
    found = {}
    for place in iter_modules(papers.__path__):
        module = import_module(f"{papers.__name__}.{place.name}")
        for table in getattr(module, "TABLES", ()):
            found[table.name] = replace(_with_autoattack(table), hardware=module.HARDWARE)
    order = [*reported(), *found]
    return dict(sorted(found.items(), key=lambda item: order.index(item[0])))


ADDED = "AA is ours: AutoAttack on 1,000 random test points, which the paper's table does not have."


def _with_autoattack(table: PaperTable) -> PaperTable:
    """The table, with an AutoAttack column added to cells that have none."""

    def judged(cell: Cell) -> bool:
        return any(m.attack.startswith("autoattack") for m in cell.measures)

    if all(map(judged, table.cells)):
        return table
    added = Measure("AA", "robust", "autoattack", n=1000)
    cells = (cell if judged(cell) else cell.but(measures=(*cell.measures, added)) for cell in table.cells)
    return replace(table, cells=tuple(cells), notes=(*table.notes, ADDED))


def find(name: str) -> PaperTable:
    """The table of this name. Raises UserError for an unknown name, with the nearest one."""
    known = tables()
    if name.upper() not in known:
        raise unknown("table", name, known)
    return known[name.upper()]
