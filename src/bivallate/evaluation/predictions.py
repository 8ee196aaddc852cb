"""Predictions for single images, and whether they survive an attack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bivallate.errors import check_seed, check_whole, python_arguments
from bivallate.evaluation.attack_functions import attack as adversarial
from bivallate.evaluation.inference import dtype_of, for_inference
from bivallate.evaluation.named_attacks import Attack, Stage, attack_named
from bivallate.evaluation.points import check_images
from bivallate.evaluation.sequences import as_tensor
from bivallate.evaluation.threat_union import threats_in
from bivallate.evaluation.verify import logits_of
from bivallate.lower.threat import ThreatModel
from bivallate.types import Passes

__all__ = ["Prediction", "logits_on", "predict"]

BATCH = 500


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image.

    Attributes:
        label: index of the class with the highest logit.
        confidence: its softmax probability.
        survives: whether the label stays the same under the attack, within every threat; None without an
            attack.
        becomes: the label of the attacked image if it differs, else None; of several threats, within the
            first in which it differs.
        top: (label, probability) of the most likely classes, the most likely first.
        within: the threat within which the label becomes another one, else None.
    """

    label: int
    confidence: float
    survives: bool | None
    becomes: int | None
    top: tuple[tuple[int, float], ...]
    within: ThreatModel | None = None


@python_arguments
def predict(
    model: nn.Module | Callable[[Tensor], Tensor],
    x: Tensor,
    threat: ThreatModel | Sequence[ThreatModel] | None = None,
    attack: str | Attack | Stage = "pgd-20",
    *,
    top: int = 3,
    seed: int = 0,
) -> list[Prediction]:
    """Predict class and confidence and, with a threat, whether an untargeted attack changes the prediction.

    The attack does not know the true label: it moves away from the predicted class. A prediction that
    survives may still be wrong.

    Args:
        model: returns logits (B, K) for images in [0, 1].
        x: (B, C, H, W).
        threat: the set of perturbations, or several, of which each is attacked; None makes no attack.
        attack: by name, or an attack.
        top: number of most likely classes to return.
        seed: of the noise.

    Returns:
        One prediction for each image.

    Raises:
        UserError: an unknown attack, one that a threat does not have, a threat that is there twice, or images
            outside [0, 1].

    Cost: one forward; for each threat also the attack and another forward.
    """
    attack_named(attack)  # a misspelt one is said without a threat too
    check_seed(seed)
    check_whole("top", top)
    x = as_tensor(x, "x")
    check_images(x)
    chosen = [(each, attack_named(attack, each)) for each in threats_in(threat)]
    x = x.to(torch.promote_types(x.dtype, dtype_of(model)))  # in which the attack is confirmed
    clean = logits_on(model, x)
    labels = clean.argmax(1)
    attacked = [
        (each, logits_on(model, adversarial(model, x, labels, each, parsed, seed=seed)).argmax(1).tolist())
        for each, parsed in chosen
    ]
    shares = clean.double().softmax(1)
    found = []
    for row, label in enumerate(labels.tolist()):
        likeliest = shares[row].topk(min(top, shares.shape[1]))
        within, other = next(((each, to[row]) for each, to in attacked if to[row] != label), (None, None))
        found.append(
            Prediction(
                label,
                float(shares[row, label]),
                within is None if attacked else None,
                other,
                tuple(zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)),
                within,
            )
        )
    return found


def logits_on(model: nn.Module | Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """(B, K) logits of images on any device, in eval mode and full precision; returned on the CPU."""
    with for_inference(model, None) as (module, where, dtype):
        found = [logits_of(module, some.to(where, dtype), Passes()).cpu() for some in x.split(BATCH)]
    return torch.cat(found)
