"""All tables by name."""

from __future__ import annotations

from functools import cache

from bivallate.errors import unknown
from bivallate.reproduce import bilaw_tables, done_tables, dynamic_tables, fast_tables
from bivallate.reproduce.table import Table

__all__ = ["find", "tables"]


@cache
def tables() -> dict[str, Table]:
    """Every table, paper by paper."""
    modules = (done_tables, fast_tables, bilaw_tables, dynamic_tables)
    return {table.name: table for module in modules for table in module.TABLES}


def find(name: str) -> Table:
    """The table of that name. Raises UserError naming the nearest one."""
    known = tables()
    if name.upper() not in known:
        raise unknown("table", name, known)
    return known[name.upper()]
