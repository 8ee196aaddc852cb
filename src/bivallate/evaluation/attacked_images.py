"""Adversarial images for some data, and the model's predictions for them, also after rounding to 8 bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bivallate.data.dataset import Split
from bivallate.errors import check_seed, python_arguments
from bivallate.evaluation.attack_functions import attack_rows
from bivallate.evaluation.inference import dtype_of
from bivallate.evaluation.named_attacks import Attack, Stage, attack_named
from bivallate.evaluation.points import as_points, check_threat, select
from bivallate.evaluation.predictions import logits_on
from bivallate.lower.threat import ThreatModel

__all__ = ["AttackedImages", "craft"]


@dataclass(frozen=True, eq=False)
class AttackedImages:
    """Clean and attacked images.

    Attributes:
        attack: name of the attack.
        x: (n, C, H, W) clean images in [0, 1], on the CPU.
        x_adv: (n, C, H, W) attacked images in [0, 1], on the CPU.
        y: (n,) labels.
        index: (n,) rows of the split.
        clean_prediction: (n,) the model's prediction for the clean image.
        attacked_prediction: (n,) its prediction for the attacked image.
        prediction_8bit: (n,) its prediction for the attacked image rounded to eight bits.
    """

    attack: str
    x: Tensor
    x_adv: Tensor
    y: Tensor
    index: Tensor
    clean_prediction: Tensor
    attacked_prediction: Tensor
    prediction_8bit: Tensor

    @property
    def correct(self) -> Tensor:
        """(n,) whether the clean image is classified correctly."""
        return self.clean_prediction == self.y

    @property
    def fooled(self) -> Tensor:
        """(n,) whether the attacked image is classified wrongly."""
        return self.attacked_prediction != self.y

    @property
    def fooled_in_8_bits(self) -> Tensor:
        """(n,) whether the attacked image is classified wrongly, also after rounding to eight bits."""
        return self.fooled & (self.prediction_8bit != self.y)


@python_arguments
def craft(
    model: nn.Module | Callable[[Tensor], Tensor],
    data: Split | tuple[Tensor, Tensor],
    threat: ThreatModel,
    attack: str | Attack | Stage = "pgd-20",
    *,
    n: int | None = None,
    first: int | None = None,
    seed: int = 0,
) -> AttackedImages:
    """Attack the images that an evaluation with this seed attacks, also those that are misclassified.

    Args:
        model: images (B, C, H, W) in [0, 1] -> logits (B, K).
        data: a split, or a pair (x, y) of tensors.
        threat: the set of perturbations.
        attack: a name, an `Attack` or a single stage.
        n: size of a seeded random subset of the images.
        first: number of leading images.
        seed: of the subset and of the attack's noise.

    Raises:
        UserError: as in `attack_and_score`.

    Cost: the attack, and three forwards.
    """
    check_seed(seed)
    check_threat(threat)
    parsed, source = attack_named(attack, threat), as_points(data, model)
    index = select(len(source), n, first, seed)
    x, y = source.tensors(index)
    precise = torch.promote_types(x.dtype, dtype_of(model))  # in which the attack is confirmed
    x_adv = attack_rows(model, source, index, threat, parsed, seed, dtype=precise).cpu()
    x, y = x.cpu().to(precise), y.cpu()
    clean, attacked, rounded = (
        logits_on(model, images).argmax(1) for images in (x, x_adv, in_8_bits(x_adv).to(x.dtype) / 255)
    )
    return AttackedImages(
        attack=parsed.name,
        x=x,
        x_adv=x_adv,
        y=y,
        index=index,
        clean_prediction=clean,
        attacked_prediction=attacked,
        prediction_8bit=rounded,
    )


def in_8_bits(x: Tensor) -> Tensor:
    """Round images (n, C, H, W) in [0, 1] to bytes."""
    return (x * 255).round().to(torch.uint8)
