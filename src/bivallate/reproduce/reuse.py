"""Use another cell's record again if training and measurements are the same."""

from __future__ import annotations

from pathlib import Path

from bivallate.errors import UserError
from bivallate.files import write_json
from bivallate.reproduce.definition import is_of_cell, source_names
from bivallate.reproduce.measuring import columns_of
from bivallate.reproduce.records import Record, read_record
from bivallate.reproduce.running import Job, record_path

__all__ = ["record_from_another"]


def record_from_another(job: Job) -> Path | None:
    """Write the job's record from a suitable one of another cell, and name that; None if there is none."""
    own = record_path(job.out, job.table, job.scale, job.cell, job.seed)
    for place in sorted(job.out.glob(f"*/{job.scale}/*-seed{job.seed}.json")):
        found = _read(place) if place != own else None
        if found is None or not _serves(found, job):
            continue
        asked = {m.key for m in job.cell.measures if m.what != "seconds"}
        scores = {key: score for key, score in found.entry["scores"].items() if key in asked}
        columns = columns_of(job.cell, scores, found.entry["training"]["history"])
        named = {"table": job.table, "row": job.cell.row, "group": job.cell.group}
        sources = {name: found.entry["sources"][name] for name in sorted(source_names(job.cell))}
        origin = {"made_for": place.relative_to(job.out).as_posix(), "sources": sources}
        write_json(own, {**found.entry, **named, **origin, "columns": columns, "scores": scores})
        return own
    return None


def _read(place: Path) -> Record | None:
    try:
        return read_record(place)
    except UserError:  # not a record, or damaged
        return None


def _serves(record: Record, job: Job) -> bool:
    asked = {m.key for m in job.cell.measures if m.what != "seconds"}
    return asked <= record.entry["scores"].keys() and is_of_cell(
        record.entry, job.cell, job.seed, job.sources
    )
