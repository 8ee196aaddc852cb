"""Distances found by a search: saved so that it can be resumed, shared among processes, summarised."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor

from bivallate import collective
from bivallate.evaluation import shared_points
from bivallate.evaluation.logit_difference import another_model, of_one_model
from bivallate.files import write_json
from bivallate.schema import MEGABYTE, read_json

__all__ = ["SHARES", "DistanceFile", "radii_to_last", "summary"]

SHARES = (5, 25, 50, 75, 95)  # quantiles of a summary, in per cent
GRID = 30  # steps of a figure's axis


class WrittenDistances(TypedDict):
    """A file of distances by row; None where nothing was found; and a few logits of the model."""

    key: list[Any]
    found: dict[str, float | None]
    sample: NotRequired[list[list[float]]]


class DistanceFile:
    """The distances of all rows searched so far.

    They are saved in files from which any number of processes can continue.

    Args:
        file: beginning of the files' names; None saves nothing.
        key: identifies the search.
        sample: (k, K) logits of a few points, by which the model is recognised.
        shared: whether processes share the rows.

    Raises:
        UserError: a file is damaged, or was begun with another model.
    """

    def __init__(
        self, file: str | os.PathLike[str] | None, key: list[Any], sample: Tensor, *, shared: bool
    ) -> None:
        self.rank, self.world = (collective.rank(), collective.world_size()) if shared else (0, 1)
        self._key, self._found, self._sample = key, dict[int, float](), sample.double().cpu()
        for progress in shared_points.progress_files(file).values() if file is not None else ():
            kept = read_json(progress, "file of distances", WrittenDistances, 1024 * MEGABYTE)
            if kept["key"] != key or "sample" not in kept:
                continue  # it belongs to another search and is overwritten
            if not of_one_model(torch.tensor(kept["sample"], dtype=torch.float64), self._sample):
                raise another_model(progress)
            self._found |= {int(row): math.inf if d is None else d for row, d in kept["found"].items()}
        if shared:
            collective.barrier()  # no process writes before all have read
        self._file = None if file is None else shared_points.own_file(file, self.rank, self.world)

    def left(self, index: Tensor) -> Tensor:
        """This process's rows that are not searched yet; shares are cut at the first call."""
        if not hasattr(self, "_mine"):
            rest = [row for row in index.tolist() if row not in self._found]
            self._mine = rest[self.rank :: self.world]
        return torch.tensor([row for row in self._mine if row not in self._found], dtype=torch.int64)

    def add(self, rows: Tensor, found: Tensor) -> None:
        """Add distances, and save all so far."""
        self._found |= dict(zip(rows.tolist(), found.tolist(), strict=True))
        if self._file is not None:
            told = {str(row): d if math.isfinite(d) else None for row, d in self._found.items()}
            kept = {"key": self._key, "found": told, "sample": self._sample.tolist()}
            write_json(self._file, kept, indent=None, durable=False)

    def all_of(self, index: Tensor, dtype: torch.dtype) -> Tensor:
        """(n,) distances of all processes, for the given rows."""
        every = [self._found] if self.world == 1 else collective.gather_objects(self._found)
        found = {row: d for share in every for row, d in share.items()}
        return torch.tensor([found[row] for row in index.tolist()], dtype=dtype)


def radii_to_last(found: Sequence[Tensor]) -> tuple[float, ...]:
    """Radii from zero to the largest finite distance."""
    finite = torch.cat([values[values.isfinite()] for values in found])
    last = float(finite.max()) if len(finite) else 0.0
    return tuple(last * k / GRID for k in range(GRID + 1)) if last else (0.0,)


def summary(values: Tensor) -> dict[str, Any]:
    """Counts, quantiles over all points, and the distances; null where nothing was found."""
    ordered = values.sort().values
    at = {share: ordered[max(0, math.ceil(share / 100 * len(values)) - 1)] for share in SHARES}
    return {
        "wrong": int((values == 0).sum()),
        "none_found": int(values.isinf().sum()),
        "quantiles": {str(share): _finite(float(value)) for share, value in at.items()},
        "distances": [_finite(value) for value in values.tolist()],
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
