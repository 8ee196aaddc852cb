"""The values that an evaluation keeps for each point, in one table.

A further one is an entry of `MORE_COLUMNS`: it is computed at every verdict, shared between processes,
resumed, and stored in `Score.more` and in the file of the result.

Example:
    The cross-entropy at the worst point found, and its mean as a column of `bivallate compare`::

        point_columns.MORE_COLUMNS["loss"] = lambda logits, y: cross_entropy(logits, y, reduction="none")
        metrics.METRICS += (Metric("loss", "loss", lambda score, _: score.mean_of("loss"), format=number),)
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

__all__ = ["CLEAN", "FILE_KEYS", "MORE_COLUMNS", "ROBUST", "more_columns"]

ROBUST, CLEAN = -1, 0  # values of broken_at: never broken; wrong before any attack; k >= 1: broken by stage k

FILE_KEYS = {
    "y": "y",
    "broken_at": "stage",
    "broken_in_turn": "turn",
    "predicted": "predicted",
    "margin": "margin",
}  # field of `State` with one value for each point -> its key in files

MORE_COLUMNS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {}
"""Name in `more` and in files -> function of logits (B, K) and labels (B,) to values (B,).

The value kept for a point is that of the clean image until an attack finds a lower margin.
"""


def more_columns(logits: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The values (B,) of `MORE_COLUMNS`, as float32 on the CPU."""
    return {name: of(logits, y).float().cpu() for name, of in MORE_COLUMNS.items()}
