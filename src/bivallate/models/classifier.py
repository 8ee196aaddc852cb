"""The model that all other code works with: normalisation, a named first layer, and the rest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bivallate.errors import UserError
from bivallate.lower.folded_norm import listened
from bivallate.models.norm_pairs import pairs_of

__all__ = ["Classifier", "Normalise", "normalisation"]


HALVES = (torch.float16, torch.bfloat16)


class Normalise(nn.Module):
    """Compute (x - mean) / std for each channel; images in half precision stay in it.

    It is the model's first layer, so that images, eps and step sizes are in [0, 1] pixel units everywhere.

    Attributes:
        mean, std: buffers (1, C, 1, 1), saved with the weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([float(m) for m in mean]).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor([float(s) for s in std]).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        out = (x - self.mean) / self.std
        return out.to(x.dtype) if x.dtype in HALVES else out


def normalisation(
    mean: Sequence[float] | float | None, std: Sequence[float] | float | None, channels: int
) -> nn.Module:
    """The first layer for channel statistics in [0, 1] pixel units; the identity if both are None.

    Raises:
        UserError: the number of values is not that of the channels, a mean is not finite, or a std is not
            positive.
    """
    if mean is None and std is None:
        return nn.Identity()
    means, stds = _per_channel("mean", mean, 0.0, channels), _per_channel("std", std, 1.0, channels)
    if not all(math.isfinite(v) for v in means + stds) or min(stds) <= 0:
        raise UserError(f"std must be positive and mean finite, got mean={means}, std={stds}")
    return Normalise(means, stds)


def _per_channel(
    which: str, value: Sequence[float] | float | None, absent: float, channels: int
) -> list[float]:
    if value is None:
        return [absent] * channels
    values = [float(value)] * channels if isinstance(value, int | float) else [float(v) for v in value]
    if len(values) != channels:
        raise UserError(f"{which} has {len(values)} values but the images have {channels} channel(s)")
    return values


class Classifier(nn.Module):
    """Map images (B, C, H, W) in [0, 1] to logits (B, K): x -> normalise -> stem -> rest.

    Attributes:
        normalise: the normalisation; `nn.Identity` if there are no statistics.
        network: all layers after the normalisation.
        architecture: the registered name, or `package.module:factory` of the user's own network.
        num_classes, shape: K and (C, H, W).
        other_sizes: further image sizes (H, W) that the model takes, for training in phases of different
            resolution.
        stem_name: path of the first layer with parameters, which YOPO uses in its inner loop.
        spec: arguments with which `create(**spec)` rebuilds the architecture, JSON-able; None for the user's
            own module.
        classes: names of the classes in the order of the logits, if the training data has names; else None.

    Raises:
        UserError: called on images of another shape.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        architecture: str,
        num_classes: int,
        shape: tuple[int, int, int],
        normalise: nn.Module | None = None,
        spec: dict[str, Any] | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.normalise = normalise if normalise is not None else nn.Identity()
        self.network = network
        self.architecture = architecture
        self.num_classes = num_classes
        self.shape = shape
        self.other_sizes: tuple[tuple[int, int], ...] = ()
        self.spec = spec
        self.classes = list(classes) if classes is not None else None
        self.stem_name = f"network.{getattr(network, 'stem_name', None) or _first_parametric(network)}"

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or (tuple(x.shape[1:]) != self.shape and not self._takes(x)):
            raise UserError(
                f"{self.architecture} takes images of shape (batch, {', '.join(map(str, self.shape))}), "
                f"got {tuple(x.shape)}: create the model with the shape of the data"
            )
        return self.network(self.normalise(x))

    def norm_pairs(self) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
        """Convolutions, each with the BatchNorm that directly follows it: attacks fold them (`Forward`).

        None in a class of the user's own, and while hooks listen to the model: attacks fold in a copy of it.
        """
        return pairs_of(self.network) if type(self) is Classifier and not listened(self) else []

    def _takes(self, x: Tensor) -> bool:
        return x.shape[1] == self.shape[0] and tuple(x.shape[2:]) in self.other_sizes

    @property
    def stem(self) -> nn.Module:
        """The first layer with parameters."""
        return self.get_submodule(self.stem_name)

    def first_layer(self) -> nn.Module:
        """x -> normalise -> stem as a module that shares its parameters with this one.

        Raises:
            UserError: the network is the user's own and has no `stem_name` or no method `rest`.
        """
        self._splittable()
        return nn.Sequential(self.normalise, self.stem)

    def rest(self, hidden: Tensor) -> Tensor:
        """Compute the logits (B, K) from the first layer's output: forward(x) == rest(first_layer()(x)).

        Raises:
            UserError: the network is the user's own and has no `stem_name` or no method `rest`.
        """
        self._splittable()
        return self.network.rest(hidden)  # pyright: ignore[reportCallIssue]

    def _splittable(self) -> None:
        if not (hasattr(self.network, "stem_name") and hasattr(self.network, "rest")):
            raise UserError(
                f"{self.architecture} does not say where its first layer ends: give the module an attribute "
                "`stem_name` and a method `rest(hidden)`, or choose a built-in architecture"
            )


def _first_parametric(network: nn.Module) -> str:
    """Path of the first module without children that has parameters; "" if it is the network itself."""
    for path, module in network.named_modules():
        if next(module.children(), None) is None and next(module.parameters(), None) is not None:
            return path
    return ""
