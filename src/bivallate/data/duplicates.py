"""Find test images that are also in the training data: unchanged, mirrored, or slightly changed.

Every test image and its mirror image are compared with every training image at 8 x 8 pixels, independently of
brightness and contrast. Pairs that are similar there are compared at full size, over shifts of some pixels,
after the mean of each pixel's surroundings is subtracted. Two prints of one photograph
share much of this fine structure, and two images of clouds little. But images of handwriting or clothes all
share much. A near-duplicate must therefore also stand out. The training images are compared in blocks, each a
sixteenth of them or less. Of the most similar images of all blocks, it is far more similar than the third.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from bivallate.data.dataset import Split, as_float

__all__ = ["ALIKE", "Duplicate", "fine_likeness", "near_duplicates", "pair_of"]

SIDE = 8  # pixels of a side of the small images
CLOSE = 0.9  # correlation of the small images from which pairs are compared at full size
ALIKE = 0.65  # correlation of fine structure from which two images are near-duplicates
COPY = 0.999  # the same for images with few pixels, where only copies can be recognised
SHIFT = 3  # largest displacement in pixels
APART, NEXT = 0.5, 2  # largest 1 - correlation, as a share of that of the third most similar image
BLOCK, PARTS, ROWS = 4096, 16, 2000  # images of a training block, number of these, images of a test block
TINY = 1e-6


@dataclass(frozen=True)
class Duplicate:
    """A test image and the training image that is most similar to it.

    Attributes:
        test, train: rows of the splits.
        alike: correlation of fine structure, 1 for identical images.
        kind: "identical", "mirrored" (identical to the mirror image) or "near".
        labels: of test and train.
        extra: whether the training image belongs to the extra data that were mixed in.
        by_features: whether only a network's features found it, and not the pixels.
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
    """The test images that have a near-duplicate in the training data, the most similar first.

    Args:
        least: correlation of fine structure from which two images count; of images with sides below 16 pixels
            only copies count.
        progress: is called with the share of the training images that have been compared.

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
    """Whether the first is far more similar than the third, which counts as 0 if it was not compared."""
    after = alike[NEXT] if len(alike) > NEXT else 0.0
    return 1 - alike[0] <= APART * (1 - after)


def pair_of(train: Split, test: Split, row: int, alike: float, at: int, mirror: bool) -> Duplicate:
    """The pair of a test row and the training row that is similar to it or to its mirror image."""
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
    """(B, d) the images at 8 x 8 pixels less their mean, as unit vectors; 0 for an image of one colour."""
    return _standardised(functional.adaptive_avg_pool2d(images, SIDE).flatten(1))


def _standardised(vectors: Tensor) -> Tensor:
    """(B, d) less their mean, as unit vectors; 0 for a constant one."""
    centred = vectors - vectors.mean(1, keepdim=True)
    norm = centred.norm(dim=1, keepdim=True)
    return torch.where(norm > TINY, centred / norm.clamp_min(TINY), torch.zeros_like(centred))


def _fine(images: Tensor) -> Tensor:
    """The images less the mean of the 5 x 5 pixels around each pixel, or of those within the image."""
    return images - functional.avg_pool2d(images, 5, 1, 2, count_include_pad=False)


def fine_likeness(one: Tensor, other: Tensor) -> Tensor:
    """(B,) the largest correlation of the centre of one image with the other, over shifts of some pixels."""
    one, other = _fine(one), _fine(other)
    height, width = one.shape[-2:]
    s = min(SHIFT, (min(height, width) - 1) // 4)
    middle = _standardised(one[..., s : height - s, s : width - s].flatten(1))
    best = torch.full((len(one),), -1.0)
    for top in range(2 * s + 1):
        for left in range(2 * s + 1):
            part = other[..., top : top + height - 2 * s, left : left + width - 2 * s]
            best = torch.maximum(best, (middle * _standardised(part.flatten(1))).sum(1))
    return best
