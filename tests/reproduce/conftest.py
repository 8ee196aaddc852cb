"""Cells that train in a second, and records made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bivallate.evaluation.evaluation_file import pack
from bivallate.evaluation.statistics import tail, wilson
from bivallate.parts import encode
from bivallate.reproduce.cell import Cell, Measure, configure
from bivallate.reproduce.records import Record
from bivallate.reproduce.running import SCHEMA, Job


@pytest.fixture(autouse=True)
def one_thread():
    """Runs of a cell set the number of threads; the others' tests get theirs back."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny() -> Cell:
    """AT on digits with a linear model: half a second."""
    measures = (
        Measure("SA", "clean", "pgd-3"),
        Measure("PGD", "robust", "pgd-3"),
        Measure("Tail-30", "tail", "pgd-3"),
        Measure("worst class", "worst", "pgd-3"),
        Measure("AA", "robust", "autoattack-short", n=40),
        Measure("gap", "gap", "pgd-3"),
        Measure("FOSC", "fosc", "pgd-10", n=40),
        Measure("FOSC, ball", "fosc-ball", "pgd-10", n=40),
        Measure("s/epoch", "seconds"),
    )
    settings = {"validation.rows": 50, "validation.steps": 2, "batch_size": 32}
    return Cell(
        "AT", "digits", "at", "digits", "linear", "0.05", "bilaw", measures, epochs=2, settings=settings,
        parameters={"steps": 3},
    )  # fmt: skip


@pytest.fixture
def job(tiny: Cell, tmp_path: Path) -> Job:
    """The tiny cell as a job of a table that does not exist."""
    return Job("T-X", "cpu", tiny, 0, tmp_path / "results", tmp_path / "runs", device="cpu", threads=1)


def by_hand(
    row: str,
    robust: list[bool],
    *,
    seed: int = 0,
    group: str = "g",
    data: str = "same",
    table: str = "T-X",
    cell: Cell | None = None,
) -> Record:
    """A record whose PGD column has these verdicts; every point is clean-correct, in ten classes. With a
    cell it is one of its training."""
    verdicts = torch.tensor(robust)
    n, hits = len(robust), int(verdicts.sum())
    points = {
        "stage": pack(torch.where(verdicts, -1, 1).to(torch.int8)),
        "y": pack((torch.arange(n) % 10).to(torch.int16)),
        "index": pack(torch.arange(n).int()),
    }
    column: dict[str, Any] = {"score": "pgd-20", "unit": "fraction"}
    value = {"value": hits / n, "interval_95": list(wilson(hits, n))}
    label = np.arange(n) % 10
    lowest, worst = (tail(np.bincount(label, robust), np.bincount(label), share)[0] for share in (30, 10))
    entry = {
        "schema": SCHEMA,
        "table": table,
        "row": row,
        "group": group,
        "seed": seed,
        "columns": {
            "PGD": {**column, **value, "what": "robust"},
            "Tail-30": {**column, **value, "value": lowest, "what": "tail"},
            "worst": {**column, **value, "value": worst, "what": "worst"},
            "s/epoch": {"value": 1.0 + n, "interval_95": None, "unit": "s", "what": "seconds"},
        },
        "scores": {"pgd-20": {"points": points, "data_fingerprint": data}},
        "commit": {"id": "0" * 40, "modified": False},
        "machine": {"gpu": None, "processor": "a processor", "threads": 1, "torch": "2.0"},
    }
    if cell is not None:
        config = json.loads(json.dumps(encode(configure(cell, seed))).replace("Infinity", '"inf"'))
        entry |= {"config": config, "data": {"rows": cell.rows, "train": 100}, "weights": cell.weights}
        entry["scores"]["pgd-20"] |= {"n": n, "classes": 10}
    return Record(entry, Path(f"{row}-seed{seed}.json"))


def keep(record: Record, out: Path, scale: str, name: str) -> Path:
    """Writes a record where a campaign would."""
    place = out / record.entry["table"] / scale / f"{name}-seed{record.seed}.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(record.entry))
    return place
