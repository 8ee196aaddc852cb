"""Architectures by name: how they are registered, listed, described and created."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bivallate.errors import UserError, check_seed, python_arguments, unknown
from bivallate.models.classifier import Classifier, normalisation
from bivallate.models.foreign import load_factory
from bivallate.models.from_timm import timm_model
from bivallate.models.stem import quick_stems

__all__ = ["ACTIVATIONS", "Activation", "blank", "create", "describe", "names", "register", "scaled"]

Activation = Callable[[], nn.Module]
Shape = tuple[int, int, int]


def _softplus() -> nn.Module:
    return nn.Softplus(beta=10)


# None works in place: the second backward of a double backward reads the activations of the first. Softplus
# with beta 10 and SiLU ("Swish") are the smooth activations of Table 11 of the Fast-BAT paper.
ACTIVATIONS: dict[str, Activation] = {"relu": nn.ReLU, "softplus": _softplus, "silu": nn.SiLU}


@dataclass(frozen=True)
class _Entry:
    build: Callable[..., nn.Module]
    options: dict[str, Any]
    summary: str


_registry: dict[str, _Entry] = {}


def register(name: str) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Register the decorated function as an architecture; its docstring's first line becomes the summary.

    The function is called as build(num_classes, shape, activation, **options), where shape is (C, H, W) and
    activation makes an activation module. It returns the network without the normalisation: a module from
    (B, C, H, W) to logits (B, num_classes). Its keyword-only parameters with defaults are the options that
    users may set. A name that is registered already is replaced.

    Example:
        >>> @register("one-pixel")
        ... def one_pixel(num_classes, shape, activation):
        ...     "Looks at the corner."
        ...     return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], num_classes))
        >>> create("one-pixel", num_classes=3, shape=(1, 2, 2)).num_classes
        3
    """

    def add(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        parameters = inspect.signature(build).parameters.values()
        options = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        summary = (inspect.getdoc(build) or name).splitlines()[0]
        _registry[name] = _Entry(build, options, summary)
        return build

    return add


def scaled(channels: int, width: float) -> int:
    """Number of channels times a network's `width`, rounded, at least 1.

    Raises UserError for a width that is not a positive, finite number.
    """
    if isinstance(width, bool) or not isinstance(width, int | float) or not 0 < width < float("inf"):
        raise UserError(f"width is a positive multiple of the network's channels, got {width!r}")
    return max(1, round(channels * width))


def names() -> list[str]:
    """Names of the registered architectures, in the order of their registration."""
    return list(_registry)


def describe(name: str) -> dict[str, Any]:
    """Describe one architecture, as `bivallate models` shows it.

    Returns:
        name, summary, options (name -> default) and parameters: the number of parameters for 10 classes and
        images of 3 x 32 x 32.

    Raises:
        UserError: no architecture of this name is registered.
    """
    entry = _entry(name)
    with torch.device("meta"):
        model = create(name, num_classes=10, shape=(3, 32, 32))
    count = sum(p.numel() for p in model.parameters())
    return {"name": name, "summary": entry.summary, "options": dict(entry.options), "parameters": count}


def _entry(name: str) -> _Entry:
    if name not in _registry:
        raise unknown("model", name, _registry)
    return _registry[name]


@python_arguments
def create(
    name: str,
    *,
    num_classes: int,
    shape: Sequence[int],
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    activation: str = "relu",
    seed: int | None = None,
    **options: Any,
) -> Classifier:
    """Create a classifier with freshly drawn weights.

    Without `seed` the weights are drawn from torch's global generator. With `seed` they depend on the seed
    alone, and the global generator is left as it was.

    Args:
        name: one of `names()`; `timm:name` for an architecture of timm; `package.module:factory` for your own
            code, which is imported and run.
        num_classes: number of classes K, at least 2.
        shape: (C, H, W) of the images.
        mean, std: channel statistics in [0, 1] pixel units, one number for each channel or one for all. They
            become the first layer; None for both means no normalisation.
        activation: relu, softplus (beta 10) or silu.
        seed: seed of the initial weights.
        options: options of the architecture, see `describe(name)`.

    Returns:
        A classifier from images (B, C, H, W) in [0, 1] to logits (B, K), in train mode.

    Raises:
        UserError: the name, the activation or an option is unknown, the seed, the shape or the statistics are
            not valid, or the architecture cannot take the shape.
    """
    if seed is not None:
        check_seed(seed)
    if not isinstance(name, str):
        raise UserError(f"an architecture is a name, such as 'tiny-cnn', got {name!r}")
    if ":" in name:
        return _foreign(name, num_classes, shape, mean, std, activation, seed, options)
    entry = _entry(name)
    if activation not in ACTIVATIONS:
        raise unknown("activation", activation, ACTIVATIONS)
    for key in options:
        if key not in entry.options:
            raise unknown(f"option of {name}", key, entry.options)
    size = _checked(name, shape, num_classes)
    chosen = {**entry.options, **options}
    with _seeded(seed):
        network = quick_stems(entry.build(num_classes, size, ACTIVATIONS[activation], **chosen))
    normalise = normalisation(mean, std, size[0])
    spec = {
        "name": name,
        "num_classes": num_classes,
        "shape": list(size),
        "mean": _plain(mean),
        "std": _plain(std),
        "activation": activation,
        **chosen,
    }
    return Classifier(
        network, architecture=name, num_classes=num_classes, shape=size, normalise=normalise, spec=spec
    )


def blank(spec: dict[str, Any]) -> Classifier:
    """The architecture of a spec, ready for weights to be loaded into it.

    The weights of the package's own architectures are not drawn, which takes time: they are uninitialised.
    """
    name = spec["name"]
    if name not in _registry or not _registry[name].build.__module__.startswith("bivallate."):
        return create(**spec, seed=0)  # may hold tensors that are not in its state dict: they need values
    with torch.device("meta"):
        model = create(**spec)
    model.to_empty(device="cpu")
    model.normalise = normalisation(spec["mean"], spec["std"], model.shape[0])
    return model


def _foreign(
    name: str,
    num_classes: int,
    shape: Sequence[int],
    mean: Sequence[float] | float | None,
    std: Sequence[float] | float | None,
    activation: str,
    seed: int | None,
    options: dict[str, Any],
) -> Classifier:
    if activation != "relu":
        raise UserError(f"{name} brings its own activation: activation={activation!r} cannot be set for it")
    size = _checked(name, shape, num_classes)
    with _seeded(seed):
        if name.startswith("timm:"):
            inner = name.removeprefix("timm:")
            return timm_model(inner, num_classes=num_classes, shape=size, mean=mean, std=std, **options)
        return load_factory(name, num_classes=num_classes, shape=size, mean=mean, std=std, **options)


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """Make draws inside depend on the seed alone and restore the generator; without a seed do nothing."""
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.default_generator.manual_seed(seed)  # the processor's: weights are drawn there
        yield


def _plain(value: Sequence[float] | float | None) -> list[float] | float | None:
    return value if value is None or isinstance(value, int | float) else [float(v) for v in value]


def _checked(name: str, shape: Sequence[int], num_classes: int) -> Shape:
    try:
        size = tuple(int(side) for side in shape)
    except (TypeError, ValueError):
        size = ()
    if len(size) != 3 or min(size) < 1:
        raise UserError(f"{name} needs shape=(channels, height, width), got {shape!r}")
    if not isinstance(num_classes, int) or num_classes < 2:
        raise UserError(f"{name} needs at least 2 classes, got num_classes={num_classes!r}")
    return size[0], size[1], size[2]
