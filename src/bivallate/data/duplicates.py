"""Images of a test set that a training set holds too: as they are, mirrored, or a little changed.

Every test image and its mirror image are compared with every training image at 8 x 8 pixels, whatever their
brightness and contrast; what looks alike there is compared in full, over shifts of some pixels, by what
remains when each pixel's surroundings are subtracted: clouds and sky then have little in common, two prints
of one photograph much. Of handwriting and clothes all have much in common: there a near-duplicate must be far
more alike than the next images are, the nearest of every sixteenth of the training data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from bivallate.data.dataset import Split, as_float

__all__ = ["ALIKE", "Duplicate", "fine_likeness", "near_duplicates", "pair_of"]

SIDE = 8  # of the small images
CLOSE = 0.9  # correlation of small images from which they are looked at in full
ALIKE = 0.65  # correlation of fine structure from which two images are near-duplicates
COPY = 0.999  # the same of small images, of which only copies are told from others
SHIFT = 3  # pixels by which they may be displaced
APART, NEXT = 0.5, 2  # how far it may be (1 - correlation), as a share of how far the next but one is
BLOCK, PARTS, ROWS = 4096, 16, 2000  # images and number of training blocks; images of a test block
TINY = 1e-6


@dataclass(frozen=True)
class Duplicate:
    """A test image and the training image that it is most like.

    Attributes:
        test, train: rows of the splits. alike: correlation of fine structure, 1 for identical images.
        kind: "identical", "mirrored" (but for that identical) or "near". labels: of test and train.
        extra: whether the training image is of the extra data that were mixed in.
        by_features: a network's features have found it, where pixels alone had not.
    """

    test: int
    train: int
    alike: float
    kind: str
    labels: tuple[int, int]
    extra: bool
    by_features: bool = False


def near_duplicates(
    train: Split,
    test: Split,
    *,
    least: float = ALIKE,
    progress: Callable[[float], object] = lambda share: None,
) -> list[Duplicate]:
    """The test images that have a near-duplicate in the training data, the most alike first.

    Args:
        least: correlation of fine structure from which two images count; of images below 16 pixels only
            copies do. progress: hears what share of the
            training images was compared.

    Cost: for 10,000 test and 50,000 training images of 32 x 32 pixels about 0.4 Tflop.
    """
    found: dict[int, list[tuple[float, int, bool]]] = {}
    coarse = min(test.shape[1:]) < 2 * SIDE  # too few pixels to tell a copy from another image like it
    least = max(least, COPY) if coarse else least
    size = max(1, min(BLOCK, -(-len(train) // PARTS)))
    small = [(rows, *_small_pair(test, rows)) for rows in _blocks(len(test), ROWS)]
    for done, block in enumerate(_blocks(len(train), size)):
        images = as_float(train.raw(block))
        against = _small(images)
        for rows, plain, mirrored in small:
            for mirror, own in ((False, plain), (True, mirrored)):
                best, where = (own @ against.T).max(1)
                near = (best >= CLOSE).nonzero()[:, 0]
                if not len(near):
                    continue
                chosen = as_float(test.raw(rows[near]))
                chosen = chosen.flip(-1) if mirror else chosen
                alike = fine_likeness(chosen, images[where[near]])
                for row, at, value in zip(rows[near], block[where[near]], alike, strict=True):
                    found.setdefault(int(row), []).append((float(value), int(at), mirror))
        progress(min(1.0, (done + 1) * size / len(train)))
    nearest = {row: sorted(others, reverse=True) for row, others in found.items()}
    pairs = [
        pair_of(train, test, row, *others[0])
        for row, others in nearest.items()
        if others[0][0] >= least and (coarse or _stands_out([alike for alike, *_ in others]))
    ]
    return sorted(pairs, key=lambda pair: (-pair.alike, pair.test))


def _stands_out(alike: list[float]) -> bool:
    """Whether the first is far nearer than the next but one.

    Where none is near enough to be looked at, it is.
    """
    after = alike[NEXT] if len(alike) > NEXT else 0.0
    return 1 - alike[0] <= APART * (1 - after)


def pair_of(train: Split, test: Split, row: int, alike: float, at: int, mirror: bool) -> Duplicate:
    """A test row and the training row that it, or its mirror image, was found alike to."""
    one, other = test.raw(torch.tensor([row])), train.raw(torch.tensor([at]))
    same = torch.equal(one.flip(-1) if mirror else one, other)
    kind = ("mirrored" if mirror else "identical") if same else "near"
    labels = int(test.labels[row]), int(train.labels[at])
    first = getattr(train.store, "first", None)
    extra = first is not None and int(train.index[at]) >= first.shape[0]
    return Duplicate(row, at, 1.0 if same else min(alike, 0.9999), kind, labels, extra)


def _blocks(count: int, size: int) -> Iterator[Tensor]:
    yield from torch.arange(count).split(size)


def _small_pair(test: Split, rows: Tensor) -> tuple[Tensor, Tensor]:
    images = as_float(test.raw(rows))
    return _small(images), _small(images.flip(-1))


def _small(images: Tensor) -> Tensor:
    """(B, d) unit vectors of the images at 8 x 8 pixels without their mean; 0 for an image of one colour."""
    return _unit(functional.adaptive_avg_pool2d(images, SIDE).flatten(1))


def _unit(vectors: Tensor) -> Tensor:
    centred = vectors - vectors.mean(1, keepdim=True)
    norm = centred.norm(dim=1, keepdim=True)
    return torch.where(norm > TINY, centred / norm.clamp_min(TINY), torch.zeros_like(centred))


def _fine(images: Tensor) -> Tensor:
    """The images less their surroundings, 5 x 5 pixels; borders by what is there."""
    return images - functional.avg_pool2d(images, 5, 1, 2, count_include_pad=False)


def fine_likeness(one: Tensor, other: Tensor) -> Tensor:
    """(B,) the largest correlation of the middle of one image with the other, over shifts of some pixels."""
    one, other = _fine(one), _fine(other)
    height, width = one.shape[-2:]
    s = min(SHIFT, (min(height, width) - 1) // 4)
    middle = _unit(one[..., s : height - s, s : width - s].flatten(1))
    best = torch.full((len(one),), -1.0)
    for top in range(2 * s + 1):
        for left in range(2 * s + 1):
            part = other[..., top : top + height - 2 * s, left : left + width - 2 * s]
            best = torch.maximum(best, (middle * _unit(part.flatten(1))).sum(1))
    return best
