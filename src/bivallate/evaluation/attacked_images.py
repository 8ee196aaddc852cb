"""Adversarial images for some data, and the model's predictions for them, also after rounding to 8 bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bivallate.data.dataset import Split
from bivallate.evaluation.attack_model import crafted
from bivallate.evaluation.attacks import Attack, Stage, parse
from bivallate.evaluation.points import check_threat, points, select
from bivallate.evaluation.predictions import logits
from bivallate.lower.threat import ThreatModel

__all__ = ["Crafted", "craft"]


@dataclass(frozen=True, eq=False)
class Crafted:
    """Clean and attacked images.

    Attributes:
        attack: its name. x, x_adv: (n, C, H, W) in [0, 1], on the CPU. y, index: (n,) labels, and rows of the
            split.
        before, after, rounded: (n,) the model's predictions for the clean image, the attacked image, and the
            attacked image rounded to eight bits.
    """

    attack: str
    x: Tensor
    x_adv: Tensor
    y: Tensor
    index: Tensor
    before: Tensor
    after: Tensor
    rounded: Tensor

    @property
    def right(self) -> Tensor:
        """(n,) whether the clean image is classified correctly."""
        return self.before == self.y

    @property
    def fooled(self) -> Tensor:
        """(n,) whether the attacked image is classified wrongly."""
        return self.after != self.y

    @property
    def fooled_in_8_bits(self) -> Tensor:
        """(n,) whether the attacked image is classified wrongly, also after rounding to eight bits."""
        return self.fooled & (self.rounded != self.y)


def craft(
    model: nn.Module | Callable[[Tensor], Tensor],
    data: Split | tuple[Tensor, Tensor],
    threat: ThreatModel,
    attack: str | Attack | Stage = "pgd-20",
    *,
    n: int | None = None,
    first: int | None = None,
    seed: int = 0,
) -> Crafted:
    """Attack the images that an evaluation with this seed attacks, also those that are misclassified.

    Args:
        data: a split, or a pair (x, y) of tensors. n, first: the size of a seeded random subset, or the
            number of leading points.

    Raises UserError as `evaluate` does.

    Cost: the attack, and three forwards.
    """
    check_threat(threat)
    chosen, source = parse(attack, threat), points(data, model)
    index = select(len(source), n, first, seed)
    x, y = source.tensors(index)
    x_adv = crafted(model, source, index, threat, chosen, seed).cpu()
    x, y = x.cpu(), y.cpu()
    answers = [logits(model, images).argmax(1) for images in (x, x_adv, in_8_bits(x_adv).to(x.dtype) / 255)]
    return Crafted(chosen.name, x, x_adv, y, index, *answers)


def in_8_bits(x: Tensor) -> Tensor:
    """Round images (n, C, H, W) in [0, 1] to bytes."""
    return (x * 255).round().to(torch.uint8)
