"""What to say when a minibatch does not fit into memory: what was needed, and which one would."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch

from bivallate.errors import UserError, out_of_memory
from bivallate.types import Batch


def no_room(error: BaseException, batch: Batch, attempt: Callable[[Batch], object]) -> UserError:
    """The error to raise instead.

    Args:
        error: of the allocator. batch: that did not fit.
        attempt: does with a smaller batch what was done with that one; what it changes is not used again.
    """
    size, fits = len(batch.y), len(batch.y) // 2
    while fits and not _fits(attempt, first(batch, fits)):
        fits //= 2
    found = re.search(r"tried to allocate ([\d.]+) ?(bytes|[KMGT]iB)", str(error), re.IGNORECASE)
    more = f": {_amount(found[1], found[2])} more were asked for" if found else ""
    text = f"a minibatch of {size} images does not fit into memory{more}. Nothing of it is kept. "
    if fits:
        return UserError(
            f"{text}A minibatch of {fits} fits, as was tried just now: train with --batch-size {fits}"
        )
    return UserError(f"{text}Not even one image fits: take smaller images (--set data.size=...) or a model")


def first(batch: Batch, n: int) -> Batch:
    """The first n examples."""
    view = None if batch.view is None else batch.view[:n]
    meta = None if batch.meta is None else first(batch.meta, min(n, len(batch.meta.y)))
    return Batch(batch.x[:n], batch.y[:n], batch.index[:n], view, meta, batch.whole and n)


def _fits(attempt: Callable[[Batch], object], batch: Batch) -> bool:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        attempt(batch)
        return True
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return False


def _amount(number: str, unit: str) -> str:
    return f"{float(number) / 2**20:,.0f} MiB" if unit.lower() == "bytes" else f"{number} {unit}"
