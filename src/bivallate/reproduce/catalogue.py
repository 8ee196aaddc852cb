"""All tables by name."""

from __future__ import annotations

from bivallate.errors import unknown
from bivallate.reproduce import bilaw_tables
from bivallate.reproduce.table import Table

__all__ = ["find", "tables"]


def tables() -> dict[str, Table]:
    """Every table, in the order of the papers."""
    return {table.name: table for table in (*bilaw_tables.TABLES,)}


def find(name: str) -> Table:
    """The table of that name. Raises UserError naming the nearest one."""
    known = tables()
    chosen = name.upper()
    if chosen not in known:
        raise unknown("table", name, known)
    return known[chosen]
