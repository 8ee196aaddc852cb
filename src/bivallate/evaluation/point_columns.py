"""The values that an evaluation keeps for each point, in one table.

A further one is an entry of `MORE_COLUMNS`: it is computed at every verdict, shared between processes,
resumed, and stored in `Score.more` and in the file of the result.

Example:
    The cross-entropy at the worst point found, that of the lowest margin, and its mean as a column of a
    comparison; in the package, or in a program that calls `bv.evaluate` and `bv.compare`, but not in a file
    that the command line reads. `F` is torch.nn.functional::

        point_columns.MORE_COLUMNS["loss"] = lambda logits, y: F.cross_entropy(logits, y, reduction="none")
        mean = lambda score, _: score.mean_of("loss")
        metrics.add(metrics.Metric("loss", "loss", mean, less_is_better=True, format=metrics.number))
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from bivallate.errors import UserError

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

The value kept for a point is that of the clean image until an attack finds a lower margin. It stays that of
the clean image where this is misclassified, and nobody attacks a point further that is broken.

An unfinished evaluation knows its columns by their names: give another function another name, or delete the
file in which the evaluation keeps its verdicts.
"""

RESERVED = {*FILE_KEYS, *FILE_KEYS.values(), "index", "sample"}  # other entries of the files


def more_columns(logits: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The values (B,) of `MORE_COLUMNS`, as float32 on the CPU.

    Raises:
        UserError: a column has the name of another entry of the files, or does not give a number a point.
    """
    return {name: _column(name, of(logits, y), y) for name, of in MORE_COLUMNS.items()}


def _column(name: str, values: Tensor, y: Tensor) -> Tensor:
    if name in RESERVED:
        raise UserError(f"MORE_COLUMNS: {name!r} is the name of another entry; give the column another one")
    if values.shape != y.shape or bool(values.isnan().any()):
        got = "NaN" if values.shape == y.shape else f"the shape {tuple(values.shape)}"
        raise UserError(f"MORE_COLUMNS: {name!r} must give one number for each of {len(y)} points, got {got}")
    return values.float().cpu()
