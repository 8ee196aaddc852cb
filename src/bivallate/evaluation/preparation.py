"""Find out why a model is no better than guessing: other preparation of images, or nothing learned."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bivallate.evaluation.symptoms import Finding
from bivallate.lower.input_guard import call_unharmed
from bivallate.models.classifier import Normalise

__all__ = ["RETRAIN", "check_preparation"]

RETRAIN = (
    "Train it again for more epochs, with a lower rate (--lr), a radius that grows (--set warm_up=0.5), or "
    "another method"
)


def check_preparation(
    model: nn.Module, x: Tensor, y: Tensor, logits: Tensor, own: bool = False
) -> Iterator[Finding]:
    """Report a model that does better on images prepared in another way, or that only guesses.

    Args:
        own: whether the images belong to the set that the model was trained on, with the same preparation and
            labels.
    """
    right = float((logits.argmax(1) == y).float().mean())
    axes = [0, *range(2, x.ndim)]
    centred = (x - x.mean(axes, keepdim=True)) / x.std(axes, keepdim=True).clamp(min=1e-6)
    prepared = {"bytes (255 x)": 255 * x, "[-1, 1] (2 x - 1)": 2 * x - 1, "standardised channels": centred}
    with torch.no_grad():
        answers = {k: call_unharmed(model, v).argmax(1) for k, v in prepared.items()}
    better = {k: float((given == y).float().mean()) for k, given in answers.items()}
    constant = len(torch.cat([logits.argmax(1), *answers.values()]).unique()) == 1 < len(y.unique())
    name, best = max(better.items(), key=lambda item: item[1])
    ready = isinstance(getattr(model, "normalise", None), Normalise)  # its first layer prepares images
    if best >= max(right + 0.25, 0.7) and not ready:
        yield Finding(
            "warning",
            "normalisation",
            "the model expects images prepared outside of it",
            f"clean accuracy is {right:.0%} on pixels and {best:.0%} on {name}",
            "Put the preparation into the model's first layer (mean= and std= of models.create, or wrap it)",
        )
    elif (right <= 1.5 / logits.shape[1] or constant) and len(x) >= 16:
        learned_nothing = f"It has learned nothing. {RETRAIN}"
        unsure = "Check the labels' order, the images' preparation and the weights"
        fix = learned_nothing if own or constant else unsure
        got = f"clean accuracy is {right:.0%} on {len(x)} points"
        got += ", and it gives one class to all of them" if constant else ""
        yield Finding("warning", "chance", "the model guesses", got, fix)
