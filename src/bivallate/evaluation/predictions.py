"""What a classifier says of single images, and whether an attack changes its mind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bivallate.evaluation.attacks import Attack, Stage, parse
from bivallate.evaluation.evaluating import attack as adversarial
from bivallate.evaluation.inference import for_inference
from bivallate.evaluation.verify import logits_of
from bivallate.lower.threat import ThreatModel
from bivallate.types import Passes

__all__ = ["Prediction", "logits", "predict"]

BATCH = 500


@dataclass(frozen=True)
class Prediction:
    """What is said of one image.

    Attributes:
        label: index of the class with the highest logit. confidence: its softmax probability.
        survives: whether the attack left the label as it is; None where nothing was attacked.
        becomes: the label of the attacked image, where it is another.
        top: (label, probability) of the likeliest classes, the likeliest first.
    """

    label: int
    confidence: float
    survives: bool | None
    becomes: int | None
    top: tuple[tuple[int, float], ...]


def predict(
    model: nn.Module | Callable[[Tensor], Tensor],
    x: Tensor,
    threat: ThreatModel | None = None,
    attack: str | Attack | Stage = "pgd-20",
    *,
    top: int = 3,
    seed: int = 0,
) -> list[Prediction]:
    """Class, confidence and, with a threat, whether the prediction survives an untargeted attack.

    The attack knows no true label: it leads away from what the model says. A prediction that survives may be
    wrong; one that does not is no better than a guess against an adversary.

    Args:
        model: a classifier of images in [0, 1], logits (B, K). x: (B, C, H, W). threat: None attacks nothing.
        attack: by name, or an attack. top: likeliest classes that are kept. seed: of random starts.

    Raises UserError for an unknown attack or images outside [0, 1].

    Cost: one forward, with a threat the attack and one forward more.
    """
    chosen = parse(attack, threat)
    clean = logits(model, x)
    labels = clean.argmax(1)
    attacked: Tensor | None = None
    if threat is not None:
        attacked = logits(model, adversarial(model, x, labels, threat, chosen, seed=seed)).argmax(1)
    shares = clean.double().softmax(1)
    found = []
    for row, label in enumerate(labels.tolist()):
        other = label if attacked is None else int(attacked[row])
        likeliest = shares[row].topk(min(top, shares.shape[1]))
        found.append(
            Prediction(
                label,
                float(shares[row, label]),
                None if attacked is None else other == label,
                None if other == label else other,
                tuple(zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)),
            )
        )
    return found


def logits(model: nn.Module | Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """(B, K) of images on any device, in eval mode and full precision, on the processor."""
    with for_inference(model, None) as (module, where, dtype):
        found = [logits_of(module, some.to(where, dtype), Passes()).cpu() for some in x.split(BATCH)]
    return torch.cat(found)
