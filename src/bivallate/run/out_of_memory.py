"""What to do if a minibatch does not fit into memory.

A measurement continues in smaller batches. Training stops with an error that names the size that fits.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from bivallate.errors import UserError, out_of_memory
from bivallate.evaluation.batch_size import example_bytes, free_bytes
from bivallate.types import Batch

__all__ = ["first", "in_pieces", "memory_error", "room_for"]

Piece = TypeVar("Piece")


def memory_error(error: BaseException, batch: Batch, attempt: Callable[[Batch], object]) -> UserError:
    """The error to raise in place of the allocator's: it names the largest batch size that fits.

    Args:
        error: the allocator's error.
        batch: the minibatch that did not fit.
        attempt: repeats the failed work on a smaller batch. It may change the model, which is not used again.
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


def in_pieces(n: int, size: int, work: Callable[[int, int], object]) -> int:
    """Call work(start, stop) on consecutive pieces of 0, ..., n - 1; halve the pieces if memory runs out.

    Returns:
        The size of pieces that fits, at most `size`.

    Raises:
        UserError: a piece of one row does not fit.
    """
    start = 0
    while start < n:
        stop = min(start + size, n)
        if _fits(lambda piece: work(*piece), (start, stop)):
            start = stop
        elif stop - start == 1:
            raise UserError(
                "not even one held-out image fits into memory: take smaller images (--set data.size=...), or "
                "another --device"
            )
        else:
            size = (stop - start) // 2
    return size


def room_for(model: nn.Module, x: Tensor, most: int) -> int:
    """Estimate how many images like x (1, C, H, W) can be attacked at once: `most`, halved until they fit.

    The estimate avoids running out of memory first, which is slow. Cost: four forward passes of x.
    """
    try:
        room = free_bytes(x.device) // max(1, example_bytes(model, x))
    except (RuntimeError, MemoryError):  # the measurement itself meets the same error and reports it
        return most
    while most > max(1, room):
        most //= 2
    return most


def first(batch: Batch, n: int) -> Batch:
    """The first n examples of a batch."""
    view = None if batch.view is None else batch.view[:n]
    meta = None if batch.meta is None else first(batch.meta, min(n, len(batch.meta.y)))
    mixed = None if batch.mixed is None else batch.mixed[:n]
    return Batch(batch.x[:n], batch.y[:n], batch.index[:n], view, meta, batch.whole and n, mixed)


def _fits(attempt: Callable[[Piece], object], batch: Piece) -> bool:
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
