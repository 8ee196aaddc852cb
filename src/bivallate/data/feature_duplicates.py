"""Near-duplicates that a network's features propose and the pixels confirm.

`near_duplicates` compares images at 8 x 8 pixels first. There another cut of the same photograph, or the next
one of a series, looks different, while a network's features are similar. But images of similar features are
often of the same kind alone. A pair therefore counts only if its fine structure agrees too, with a
lower threshold than without a network.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from bivallate.data.dataset import Split, as_float
from bivallate.data.duplicates import NEXT, Duplicate, fine_likeness, pair_of

__all__ = ["feature_duplicates"]

CLOSE = 0.85  # cosine of features from which two images are compared
APART = 0.75  # largest 1 - cosine, as a share of that of the third most similar image
CONFIRMED = 0.4  # correlation of fine structure, over shifts, that confirms a pair
ROWS = 500

Embed = Callable[[Tensor], Tensor]


def feature_duplicates(
    embed: Embed,
    train: Split,
    test: Split,
    *,
    progress: Callable[[float], object] = lambda share: None,
) -> list[Duplicate]:
    """The test images that have a near-duplicate in the training data by features, most similar first.

    Features are compared after their mean over the training images is subtracted, for each test image and its
    mirror image. `alike` of the result is the correlation of the pixels' fine structure.

    Args:
        embed: features (B, d) of images (B, C, H, W).
        progress: is called with the share of images done.
    """
    known = _embedded(embed, train, progress)
    mean = known.mean(0)
    known = normalize(known - mean)
    found = []
    for rows in torch.arange(len(test)).split(ROWS):
        images = as_float(test.raw(rows))
        seen = [normalize(embed(x) - mean) @ known.T for x in (images, images.flip(-1))]
        near, where = torch.maximum(*seen).topk(min(NEXT + 1, len(train)), dim=1)
        near, at = near.clamp(max=1), where[:, 0]
        wanted = (near[:, 0] >= CLOSE) & (1 - near[:, 0] <= APART * (1 - near[:, -1]))
        chosen = wanted.nonzero()[:, 0]
        if len(chosen):
            others = as_float(train.raw(at[chosen]))
            both = [fine_likeness(x, others) for x in (images[chosen], images[chosen].flip(-1))]
            rest = zip(chosen.tolist(), at[chosen].tolist(), *(b.tolist() for b in both), strict=True)
            found += [
                pair_of(train, test, int(rows[k]), max(plain, mirrored), j, mirrored > plain)
                for k, j, plain, mirrored in rest
                if max(plain, mirrored) >= CONFIRMED
            ]
    return sorted(found, key=lambda pair: (-pair.alike, pair.test))


def _embedded(embed: Embed, split: Split, progress: Callable[[float], object]) -> Tensor:
    parts = []
    for rows in torch.arange(len(split)).split(ROWS):
        parts.append(embed(as_float(split.raw(rows))))
        progress((int(rows[-1]) + 1) / len(split))
    return torch.cat(parts)
