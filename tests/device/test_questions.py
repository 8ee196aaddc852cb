"""A question of the suite for a GPU is answered on the stand-in."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any


def first_answer(name: str, folder: str) -> tuple[str, Any]:
    """The first row of the answer, of a toy."""
    from benchmarks.device_suite import Place, questions

    row = next(questions()[name].answer(Place("cuda", "toy", time.time() + 60, Path(folder))))
    return row.what, row.number


def test_an_epoch_is_timed(card, tmp_path) -> None:
    what, seconds = card(first_answer, "epochs", str(tmp_path))
    assert what.endswith("float32")
    assert seconds > 0
