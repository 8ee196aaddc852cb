"""Minibatches that do not fit into memory: smaller ones, or the error that says which would fit.

What is measured goes on in smaller ones, what is trained on says which would fit.
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


def in_pieces(n: int, size: int, work: Callable[[int, int], object]) -> int:
    """Does work(start, stop) on all of 0, ..., n - 1, in pieces that are halved where memory runs out.

    Returns:
        The size of pieces that fits, at most `size`.

    Raises:
        UserError: not even one row does.
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
    """How many images like x (1, C, H, W) can be attacked at once, at most `most`.

    By half and half again; an estimate, so that memory need not run out first.

    Cost: four forwards of x.
    """
    try:
        room = free_bytes(x.device) // max(1, example_bytes(model, x))
    except (RuntimeError, MemoryError):  # what is wrong is the measurement's to say
        return most
    while most > max(1, room):
        most //= 2
    return most


def first(batch: Batch, n: int) -> Batch:
    """The first n examples."""
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
