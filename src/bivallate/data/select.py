"""Choose rows by the seed: stratified hold-outs, class imbalance, mixing of extra data."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bivallate.data.dataset import Split, digest
from bivallate.errors import UserError
from bivallate.noise import permutation

__all__ = ["Joined", "holdout", "imbalance", "mix", "shared"]


def holdout(split: Split, n: int | float, seed: int, purpose: str = "validation") -> tuple[Split, Split]:
    """Split into (rest, held): `held` has n rows, or a fraction n of them, in the classes' proportions.

    Different purposes draw different rows. (BiLAW's two sets of 1,000 rows are held out one after the other.)

    Raises:
        UserError: nothing or everything would be held out.
    """
    total = len(split)
    fraction = isinstance(n, float)
    if (fraction and not 0 < n < 1) or not 0 < (wanted := round(n * total) if fraction else int(n)) < total:
        raise UserError(
            f"cannot hold out {n} of {total} rows for {purpose}: use a fraction below 1 "
            f"or an int from 1 to {total - 1}"
        )
    order = permutation(seed, purpose, 0, total)
    labels = split.labels[order]
    counts = torch.bincount(split.labels)
    quota = _apportion(counts, wanted)
    rank = torch.empty(total, dtype=torch.int64)  # position of each row within its class, in shuffled order
    for label in range(len(counts)):
        members = (labels == label).nonzero()[:, 0]
        rank[members] = torch.arange(len(members))
    held = torch.zeros(total, dtype=torch.bool)
    held[order] = rank < quota[labels]
    return split.subset(~held), split.subset(held)


def _apportion(counts: Tensor, wanted: int) -> Tensor:
    """Whole numbers, proportional to the counts, with the sum `wanted`; each class keeps a row if it can."""
    exact = counts.double() * wanted / counts.sum()
    most = (counts - 1).clamp(min=0)
    quota = torch.minimum(exact.floor().long(), most)
    for limit in (most, counts):
        while (short := wanted - int(quota.sum())) > 0 and bool((quota < limit).any()):
            room = (exact - quota).masked_fill(quota >= limit, -math.inf)
            chosen = room.argsort(descending=True, stable=True)[: min(short, int((quota < limit).sum()))]
            quota[chosen] += 1
    return quota


def imbalance(split: Split, spec: str, classes: int, seed: int) -> Split:
    """Remove rows so that classes are imbalanced, by 'step:RATIO' or 'longtail:RATIO'.

    'step:0.2' keeps a fifth of the rows of the first half of the classes. 'longtail:0.01' keeps a share that
    falls geometrically from 1 for the first class to a hundredth for the last.

    With an odd number of classes the middle one belongs to the second half. Each class keeps at least one
    row.

    Reference: step imbalance as in DONE, where the last five classes of CIFAR-10 are the large ones; long
    tail as in Cao et al. 2019, n_k ratio^(k / (K - 1)).
    """
    kind, _, value = spec.partition(":")
    try:
        ratio = float(value)
    except ValueError:
        ratio = -1.0
    if kind not in ("step", "longtail") or not 0 < ratio <= 1:
        raise UserError(
            f"imbalance {spec!r} is not known: use 'step:RATIO' or 'longtail:RATIO' with a ratio in (0, 1]"
        )
    label = torch.arange(classes)
    if kind == "step":
        share = torch.where(label < classes // 2, ratio, 1.0)
    else:
        share = ratio ** (label / max(1, classes - 1))
    keep = torch.zeros(len(split), dtype=torch.bool)
    order = permutation(seed, "imbalance", 0, len(split))
    for k in range(classes):
        members = order[split.labels[order] == k]
        keep[members[: max(1, round(float(share[k]) * len(members)))]] = True
    return split.subset(keep)


class Joined:
    """Two stores as one, the second after the first, without a copy."""

    def __init__(self, first: Any, second: Any) -> None:
        self.first, self.second = first, second
        self.shape = (first.shape[0] + second.shape[0], *first.shape[1:])
        self.dtype = first.dtype

    def __getitem__(self, rows: Any) -> np.ndarray:
        chosen = np.atleast_1d(np.arange(self.shape[0])[rows])
        later = chosen >= self.first.shape[0]
        images = np.empty((len(chosen), *self.shape[1:]), self.dtype)
        images[~later] = self.first[chosen[~later]]
        images[later] = self.second[chosen[later] - self.first.shape[0]]
        return images


def mix(split: Split, extra: Split, ratio: float, seed: int) -> Split:
    """Add rows of `extra`, drawn by the seed, so that they are the fraction `ratio` of the result.

    `index` of the added rows continues after the end of the split's store.

    Raises:
        UserError: a ratio outside (0, 1), images of another shape or type, or too few extra rows.
    """
    if not 0 < ratio < 1:
        raise UserError(f"extra_ratio is the share of extra data in the mixture, in (0, 1); got {ratio}")
    if split.store.dtype != extra.store.dtype or split.shape != extra.shape:
        raise UserError(
            f"extra data must look like the data set, {split.shape} {split.store.dtype}; "
            f"got {extra.shape} {extra.store.dtype}"
        )
    wanted = round(len(split) * ratio / (1 - ratio))
    if wanted > len(extra):
        most = len(extra) / (len(extra) + len(split))
        raise UserError(
            f"extra_ratio {ratio} needs {wanted} extra rows of {len(extra)}: use at most {most:.3f}"
        )
    chosen = extra.subset(permutation(seed, "extra", 0, len(extra))[:wanted])
    return replace(
        split,
        store=Joined(split.store, extra.store),
        labels=torch.cat([split.labels, chosen.labels]),
        index=torch.cat([split.index, chosen.index + split.store.shape[0]]),
        source=digest(split.source, extra.source),
        former=partial(_former_mix, split, extra) if split.former or extra.former else None,
    )


def _former_mix(split: Split, extra: Split) -> str:
    return digest(split.as_former().source, extra.as_former().source)


def shared(split: Split, other: Split) -> Tensor:
    """(k,) positions in `split` of images that are also in `other`, pixel for pixel.

    Empty for streams, and for splits with images of different shapes or types.
    """
    arrays = isinstance(split.store, np.ndarray) and isinstance(other.store, np.ndarray)
    if not arrays or split.shape != other.shape or split.store.dtype != other.store.dtype:
        return torch.empty(0, dtype=torch.int64)
    own, others = _prints(split), _prints(other)
    return torch.from_numpy(np.flatnonzero(np.isin(own, others)))


def _prints(split: Split) -> np.ndarray:
    """(N,) a 64-bit hash of each image's pixels: its words are mixed, weighted at random and summed."""
    words = -(-int(np.prod(split.shape)) * split.store.dtype.itemsize // 8)
    weights = np.random.default_rng(0).integers(1, 1 << 63, words, dtype=np.uint64)
    result = np.empty(len(split), np.uint64)
    for start in range(0, len(split), 1024):
        rows = split.index[start : start + 1024].numpy()
        pixels = np.ascontiguousarray(split.store[rows]).reshape(len(rows), -1).view(np.uint8)
        padded = np.zeros((len(rows), words * 8), np.uint8)
        padded[:, : pixels.shape[1]] = pixels
        mixed = padded.view(np.uint64)
        mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
        result[start : start + len(rows)] = ((mixed ^ (mixed >> np.uint64(32))) * weights).sum(1)
    return result
