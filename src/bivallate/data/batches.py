"""Minibatches of a split, in an order and with an augmentation that any position can be re-entered at."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from bivallate.data.augment import Augment, View
from bivallate.data.dataset import Split, as_float
from bivallate.data.stream import Stream
from bivallate.errors import UserError
from bivallate.noise import Noise, permutation
from bivallate.types import Batch

__all__ = ["Batches"]

META = 1  # the second stream's turn of the noise: its rows may carry the same numbers as the first's


class Batches:
    """Shuffled, augmented minibatches; what (epoch, step) yields depends on the seed and the rows alone.

    `Batch.index` is the row of the split, 0, ..., n - 1. Over several ranks each rank owns the rows with
    index % world == rank and takes its share of each minibatch: all ranks make the same number of steps, and
    per-example state stays where its row is.

    Args:
        split: what to draw from.
        batch_size: rows of one minibatch, summed over the ranks.
        augmentation: drawn afresh for each row and epoch; None for none.
        drop_last: leave out a shorter last minibatch. Otherwise one that is too short for BatchNorm, or for
            every rank to get a row of it (below two rows a rank), is joined to the one before.
        meta: a second stream (BiLAW): each minibatch carries one of these, cycled, of `meta_batch_size` rows.
        device: where the minibatches are put; crops and flips are made there.
        sides: (H, W) that every image is scaled to after its crop and flip; None leaves it. Scaled images
            have no view, which is of the images as they are stored.

    Raises:
        UserError: for an empty split or a minibatch larger than the split.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        seed: int,
        augmentation: Augment | None = None,
        drop_last: bool = False,
        meta: Split | None = None,
        meta_batch_size: int | None = None,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world: int = 1,
        sides: tuple[int, int] | None = None,
    ) -> None:
        self.sides = None if sides == split.shape[1:] else sides
        _check_size("training data", split, batch_size)
        if meta is not None:
            _check_size("second stream", meta, meta_batch_size or batch_size)
        smallest = min(batch_size, meta_batch_size or batch_size)
        if not 0 <= rank < world or (world > 1 and smallest < 2 * world):
            raise UserError(
                f"rank {rank} of {world} cannot share {smallest} rows a minibatch: use at least {2 * world}"
            )
        self.split, self.batch_size, self.seed = split, batch_size, seed
        self.augmentation = augmentation or Augment()
        self.drop_last, self.device, self.rank, self.world = drop_last, torch.device(device), rank, world
        self.meta, self.meta_batch_size = meta, meta_batch_size or batch_size
        self.joined = not drop_last and 0 < len(split) % batch_size < 2 * world

    def __len__(self) -> int:
        """Minibatches per epoch, the same on every rank."""
        whole, rest = divmod(len(self.split), self.batch_size)
        return whole if self.drop_last or self.joined else whole + (rest > 0)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The minibatches of one pass over the data, from `start_step` on."""
        order = self._mine(self._order(epoch))
        views = self._views(order, epoch, 0)
        cuts = [self._cut(step, len(order)) for step in range(start_step, len(self) + 1)]
        parts = [slice(*cut) for cut in pairwise(cuts)]
        for step, part, raw in zip(
            count(start_step), parts, self._raw([order[p] for p in parts]), strict=False
        ):
            batch = self._build(self.split, raw, order[part], views[part] if views else None)
            if self.meta is None:
                yield batch
            else:
                meta = self._meta(epoch * len(self) + step)
                yield Batch(batch.x, batch.y, batch.index, batch.view, meta)

    def _order(self, epoch: int) -> Tensor:
        store = self.split.store
        if isinstance(store, Stream):
            return store.order(self.split.index, self.seed, epoch)
        return permutation(self.seed, "shuffle", epoch, len(self.split))

    def _raw(self, parts: list[Tensor]) -> Iterator[Tensor]:
        """The images of each minibatch as they are stored."""
        store = self.split.store
        if isinstance(store, Stream):
            yield from map(torch.from_numpy, store.ahead([self.split.index[rows].numpy() for rows in parts]))
        else:
            yield from map(self.split.raw, parts)

    def _mine(self, order: Tensor) -> Tensor:
        return order if self.world == 1 else order[order % self.world == self.rank]

    def _cut(self, step: int, mine: int) -> int:
        """Where `step` begins among this rank's rows: its share of the rows that come before."""
        whole = self.joined and step == len(self)
        before = len(self.split) if whole else min(step * self.batch_size, len(self.split))
        return before * mine // len(self.split)

    def _views(self, rows: Tensor, epoch: int, turn: int) -> View | None:
        """How each row is shown, drawn for many rows at once: a draw costs little but its calls do."""
        if self.augmentation.identity:
            return None
        return self.augmentation.view(Noise(self.seed, rows, epoch, turn), self.split.shape)

    def _build(self, split: Split, raw: Tensor, rows: Tensor, view: View | None) -> Batch:
        raw = raw.to(self.device, non_blocking=True)
        index, y = rows.to(self.device), split.labels[rows].to(self.device)
        if view is not None:
            view = view.to(self.device)
            raw = self.augmentation.cut(raw, view)
        if self.sides is None:
            return Batch(as_float(raw), y, index, view)
        return Batch(_scaled(as_float(raw), self.sides), y, index, None)

    def _meta(self, position: int) -> Batch:
        """The second stream's part of the run's minibatch `position`; a cycle is cut to whole minibatches."""
        assert self.meta is not None
        per_cycle = max(1, len(self.meta) // self.meta_batch_size)
        cycle, step = divmod(position, per_cycle)
        order = permutation(self.seed, "shuffle meta", cycle, len(self.meta))
        rows = order[step * self.meta_batch_size : (step + 1) * self.meta_batch_size]
        mine = rows[self.rank :: self.world]
        return self._build(self.meta, self.meta.raw(mine), mine, self._views(mine, cycle, META))


def _scaled(x: Tensor, sides: tuple[int, int]) -> Tensor:
    """Images in [0, 1] fitted to (H, W); where that is smaller, every pixel counts."""
    small = F.interpolate(x, sides, mode="bilinear", align_corners=False, antialias=True)
    return small.clamp(0, 1)


def _check_size(kind: str, split: Split, batch_size: int) -> None:
    if len(split) == 0:
        raise UserError(f"the {kind} has no rows: nothing to draw minibatches from")
    if not 1 <= batch_size <= len(split):
        raise UserError(
            f"batch size {batch_size} does not fit the {kind} of {len(split)} rows: "
            f"use a batch size between 1 and {len(split)}"
        )
