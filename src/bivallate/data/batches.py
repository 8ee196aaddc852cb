"""Minibatches of a split, whose order and augmentation can be resumed at any position."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import count, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from bivallate.data.augment import Augment, View
from bivallate.data.dataset import Split, as_float
from bivallate.data.mixing import mixed
from bivallate.data.resident import Resident, uploaded
from bivallate.data.stream import Stream
from bivallate.errors import UserError
from bivallate.noise import Noise, permutation
from bivallate.types import Batch

__all__ = ["Batches"]

Part = tuple[Tensor, Tensor, Tensor, View | None]  # raw images, rows, labels and views, on the device

META = 1  # `turn` of the second stream's noise, because its rows may have the same numbers as the first's


class Batches:
    """Shuffled, augmented minibatches; what (epoch, step) yields depends on the seed and the rows alone.

    `Batch.index` is the row of the split, 0, ..., n - 1. Several ranks have the minibatches of one process:
    the row at position k of each belongs to rank k % world.

    Args:
        split: the images and labels.
        batch_size: rows of one minibatch, summed over the ranks.
        seed: of the order and of the augmentation.
        augmentation: drawn anew for each row and epoch; None for none.
        drop_last: leave out a shorter last minibatch. Otherwise it is joined to the one before if it is too
            short for BatchNorm (one row) or for the ranks (below `fewest` rows a rank).
        meta: a second stream (BiLAW): each minibatch carries one of its minibatches, in cycles, with
            `meta_batch_size` rows.
        device: the minibatches are put there; crops and flips are made there.
        rank, world: number of this process, and of all processes.
        sides: (H, W) to which every image is scaled after crop and flip; None does not scale. Scaled images
            have no view, because views describe the images as they are stored.
        resident: the split on the device; its rows are then taken from there.
        fewest: rows of a minibatch that every rank needs: 2 where each rank has its own BatchNorm.

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
        fewest: int = 2,
        resident: Resident | None = None,
    ) -> None:
        self.sides = None if sides == split.shape[1:] else sides
        _check_size("training data", split, batch_size)
        if meta is not None:
            _check_size("second stream", meta, meta_batch_size or batch_size)
        smallest = min(batch_size, meta_batch_size or batch_size)
        if not 0 <= rank < world or (world > 1 and smallest < fewest * world):
            raise UserError(
                f"rank {rank} of {world} cannot share {smallest} rows a minibatch: use at least "
                f"{fewest * world}"
            )
        self.split, self.batch_size, self.seed = split, batch_size, seed
        self.augmentation = augmentation or Augment()
        if self.augmentation.cutmix and isinstance(split.store, Stream):
            raise UserError(
                "cutmix reads images in any order, which a stream cannot: use --set data.stream=never, or an "
                "augmentation without cutmix"
            )
        self.drop_last, self.device, self.rank, self.world = drop_last, torch.device(device), rank, world
        self.resident = resident
        self.meta, self.meta_batch_size = meta, meta_batch_size or batch_size
        self.joined = not drop_last and 0 < len(split) % batch_size < max(2, fewest * world)

    def __len__(self) -> int:
        """Minibatches per epoch, the same on every rank."""
        whole, rest = divmod(len(self.split), self.batch_size)
        return whole if self.drop_last or self.joined else whole + (rest > 0)

    def shapes(self) -> set[tuple[int, int, int, int]]:
        """Shapes (B, C, H, W) of this rank's shares of full minibatches, of both streams."""
        c, h, w = self.split.shape
        h, w = self.sides or (h, w)
        sizes = {self.batch_size} if self.meta is None else {self.batch_size, self.meta_batch_size}
        return {(len(range(self.rank, size, self.world)), c, h, w) for size in sizes}

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yield the minibatches of one pass over the data, from `start_step` on."""
        order = self._order(epoch)
        cuts = list(pairwise(self._cut(step) for step in range(start_step, len(self) + 1)))
        shares = [order[begin:end][self.rank :: self.world] for begin, end in cuts]
        views = self._views(torch.cat([order[:0], *shares]), epoch, 0)
        cutmix = self.augmentation.cutmix
        parts = self._resident_parts(shares, views) if self.resident else self._parts(shares, views)
        for step, (begin, end), rows, part in zip(count(start_step), cuts, shares, parts, strict=False):
            batch = self._shown(part, end - begin, len(self.split))
            if cutmix:
                other, noise = partial(self._others, epoch), Noise(self.seed, rows, epoch)
                batch = mixed(batch, noise, cutmix, other, len(self.split))
            if self.meta is None:
                yield batch
            else:
                yield replace(batch, meta=self._meta(epoch * len(self) + step))

    def _order(self, epoch: int) -> Tensor:
        store = self.split.store
        if isinstance(store, Stream):
            return store.order(self.split.index, self.seed, epoch)
        return permutation(self.seed, "shuffle", epoch, len(self.split))

    def _parts(self, shares: list[Tensor], views: View | None) -> Iterator[Part]:
        """Yield each minibatch on the device; on CUDA the next one is copied while one is used."""
        done, before = 0, list[Part]()
        for rows, raw in zip(shares, self._raw(shares), strict=False):
            view = None if views is None else views[done : done + len(rows)]
            done += len(rows)
            before.append(self._sent(self.split, raw, rows, view))
            if self.device.type != "cuda" or len(before) > 1:
                yield before.pop(0)
        yield from before

    def _resident_parts(self, shares: list[Tensor], views: View | None) -> Iterator[Part]:
        """Yield minibatches of resident images. Rows and views of the whole epoch are copied at once."""
        assert self.resident is not None
        drawn = [] if views is None else views.tensors()
        index, *drawn = uploaded([torch.cat([torch.arange(0), *shares]), *drawn], self.device)
        views, done = None if views is None else views.of(drawn, self.device), 0
        for size in map(len, shares):
            rows, view = index[done : done + size], None if views is None else views[done : done + size]
            done += size
            yield self.resident.images[rows], rows, self.resident.labels[rows], view

    def _raw(self, parts: list[Tensor]) -> Iterator[Tensor]:
        """Yield the images of each minibatch as they are stored."""
        store = self.split.store
        if isinstance(store, Stream):
            yield from map(torch.from_numpy, store.ahead([self.split.index[rows].numpy() for rows in parts]))
        else:
            yield from map(self.split.raw, parts)

    def _cut(self, step: int) -> int:
        """Where `step` begins in the order of the epoch."""
        whole = self.joined and step == len(self)
        return len(self.split) if whole else min(step * self.batch_size, len(self.split))

    def _views(self, rows: Tensor, epoch: int, turn: int) -> View | None:
        """The views of many rows, drawn at once, because the cost of a draw is in its calls."""
        if self.augmentation.identity:
            return None
        return self.augmentation.view(Noise(self.seed, rows, epoch, turn), self.split.shape)

    def _sent(self, split: Split, raw: Tensor, rows: Tensor, view: View | None) -> Part:
        """Copy rows, as they are stored, to the device in one transfer."""
        drawn = [] if view is None else view.tensors()
        raw, index, y, *drawn = uploaded([raw, rows, split.labels[rows], *drawn], self.device)
        return raw, index, y, None if view is None else view.of(drawn, self.device)

    def _shown(self, part: Part, whole: int, population: int) -> Batch:
        """Make the minibatch: augment the images by their views and scale them."""
        raw, index, y, view = part
        raw = raw if view is None else self.augmentation.cut(raw, view)
        if self.sides is None:
            return Batch(as_float(raw), y, index, view, whole=whole, population=population)
        scaled = _scaled(as_float(raw), self.sides)
        return Batch(scaled, y, index, whole=whole, population=population)

    def _others(self, epoch: int, rows: Tensor) -> Batch:
        """Rows of the split with this epoch's augmentation, to be pasted into others."""
        views = self._views(rows, epoch, 0)
        if self.resident is not None:
            return self._shown(next(self._resident_parts([rows], views)), len(rows), len(self.split))
        sent = self._sent(self.split, self.split.raw(rows), rows, views)
        return self._shown(sent, len(rows), len(self.split))

    def _meta(self, position: int) -> Batch:
        """The second stream's minibatch for the run's minibatch `position`; cycles hold whole ones only."""
        assert self.meta is not None
        per_cycle = max(1, len(self.meta) // self.meta_batch_size)
        cycle, step = divmod(position, per_cycle)
        order = permutation(self.seed, "shuffle meta", cycle, len(self.meta))
        rows = order[step * self.meta_batch_size : (step + 1) * self.meta_batch_size]
        mine = rows[self.rank :: self.world]
        views = self._views(mine, cycle, META)
        sent = self._sent(self.meta, self.meta.raw(mine), mine, views)
        return self._shown(sent, len(rows), len(self.meta))


def _scaled(x: Tensor, sides: tuple[int, int]) -> Tensor:
    """Scale images in [0, 1] to (H, W), with antialiasing."""
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
