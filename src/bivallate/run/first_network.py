"""The network at the beginning of a run: with random weights, or with weights from an earlier training."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bivallate import models
from bivallate.data import Dataset
from bivallate.errors import UserError, listed
from bivallate.evaluation.points import model_fingerprint
from bivallate.models import Classifier
from bivallate.models.classifier import Normalise
from bivallate.models.description import read_manifest
from bivallate.models.from_timm import timm_pretrained
from bivallate.models.io import fill
from bivallate.models.layers import head_path
from bivallate.run.config import Config, Model
from bivallate.run.folder import check_weights
from bivallate.run.from_config import create_model
from bivallate.run.load_model import from_zoo

__all__ = ["begin_network", "described_model", "first_network"]

Tell = Callable[[str], object]
BARE = (".pt", ".pth", ".tar", ".bin", ".ckpt", ".safetensors")  # files that may hold weights alone


def described_model(part: Model, model: nn.Module | str) -> Model:
    """The configuration's entry for a given network; it can be built again from that if it is built-in."""
    if isinstance(model, str):
        return dataclasses.replace(part, name=model)
    inner = getattr(model, "_orig_mod", model)
    named = dataclasses.replace(part, name=getattr(inner, "architecture", type(inner).__name__))
    if not isinstance(inner, Classifier) or inner.spec is None:
        return named
    named = dataclasses.replace(
        named,
        normalise=isinstance(inner.normalise, Normalise),
        activation=inner.spec.get("activation", part.activation),
        width=1.0,
        stem=None,
        options=(),
    )
    for key, value in inner.spec.items():
        if key not in ("name", "num_classes", "shape", "mean", "std", "activation"):
            text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            named = named.with_option(key, text)
    return named


def begin_network(
    config: Config, dataset: Dataset, architecture: str | None, tell: Tell | None
) -> tuple[Config, Classifier]:
    """Make the network of a new run, and complete the configuration by what its initial weights determine.

    They determine the architecture and its normalisation. The configuration also gets the weights' absolute
    path and their fingerprint.

    Args:
        config, dataset: the run.
        architecture: the name that the user gave, or None; needed for weights without a manifest.
        tell: is told where the weights come from and whether the head is new; None makes a warning of a new
            head.

    Raises:
        UserError: there are no such weights, they have another architecture than was named, they have
            changed since the configuration was written, or they do not fit the data.
    """
    named = config.init.weights
    if named is None:
        return config, create_model(config.model, dataset, config.seed)
    repeated = config.init.fingerprint  # set in a configuration that was completed by its first training
    given = _read(named, config, dataset, architecture or (config.model.name if repeated else None))
    own = given.architecture
    if architecture is not None and architecture != own:
        raise UserError(f"{named} holds {own}, not {architecture}: leave out --model, the weights decide")
    first = given.normalise
    statistics: dict[str, Any] = {"mean": (), "std": (), "normalise": isinstance(first, Normalise)}
    if isinstance(first, Normalise):
        statistics |= {"mean": _statistic(given, "mean"), "std": _statistic(given, "std")}
    part = (
        config.model if repeated else dataclasses.replace(described_model(config.model, given), **statistics)
    )
    place, mark = _lasting(named), model_fingerprint(given)
    which = _which(config.init.which, Path(place)) if (Path(place) / "config.toml").exists() else "auto"
    init = dataclasses.replace(config.init, weights=place, which=which, fingerprint=mark)
    config = dataclasses.replace(config, model=part, init=init)
    if repeated and repeated != mark:
        raise _changed(place, repeated, mark)
    return config, _inherited(config, dataset, given, tell)


def ignore_note(text: str) -> None:
    """Ignore a note, and make no warning of it."""


def first_network(config: Config, dataset: Dataset, model: str | None = None) -> Classifier:
    """Make the network of a run that begins again from its complete configuration.

    Raises UserError if its initial weights are missing or have changed.
    """
    named = (
        config if model is None else dataclasses.replace(config, model=described_model(config.model, model))
    )
    return begin_network(named, dataset, model, ignore_note)[1]


def _inherited(config: Config, dataset: Dataset, given: Classifier, tell: Tell | None) -> Classifier:
    """A network for the data with the given weights; its head is new if it has to be."""
    init = config.init
    if given.shape[0] != dataset.shape[0]:
        raise UserError(f"the weights of {init.weights} do not fit. {_shapes(given, dataset)}")
    network = create_model(config.model, dataset, config.seed)
    before, now = given.num_classes, len(dataset.classes)
    renamed = given.classes is not None and dataset.named and {*given.classes} != {*dataset.classes}
    if init.head == "keep" and before != now:
        raise UserError(
            f"the head of {init.weights} has {before} classes and the data have {now}: it cannot be kept"
        )
    fresh = init.head == "new" or (init.head == "auto" and (before != now or renamed))
    tensors, own = dict(given.state_dict()), network.state_dict()
    head = head_path(network)
    if fresh and not head:
        raise UserError(
            f"{given.architecture} has no last layer with one row for each class: its head cannot be new"
        )
    if fresh:
        tensors |= {name: own[name] for name in own if name.startswith(f"{head}.") or name == head}
    try:
        fill(network, tensors, str(init.weights))
    except UserError as error:
        raise UserError(f"{error}. {_shapes(given, dataset)}") from error
    if given.classes is not None and not fresh:
        _follow(network, head, given.classes, list(dataset.classes))
    if tell is not None:
        which = "" if init.which == "auto" else f"the {init.which} "
        made = f"{given.architecture}, fingerprint {str(init.fingerprint)[:12]}"
        tell(f"begins with {which}weights of {init.weights} ({made})")
    if fresh and init.head == "auto":
        why = f"{before} classes before, {now} now" if before != now else "the classes have other names"
        (tell or warnings.warn)(f"the head {head.removeprefix('network.')} is new: {why}")
    return network


def _follow(network: Classifier, head: str, before: list[str], now: list[str]) -> None:
    """Put the rows of a kept head, whose classes have the data's names, into the order of the data."""
    if before == now or not head or sorted(before) != sorted(now):
        return
    order = [before.index(name) for name in now]
    state: dict[str, Tensor] = network.state_dict()
    network.load_state_dict(
        state | {k: v[order] for k, v in state.items() if k.rpartition(".")[0] == head and len(v) == len(now)}
    )


def _shapes(given: Classifier, dataset: Dataset) -> str:
    """The part of an error that explains why weights do not fit: the image shapes, or the network."""
    if given.shape == dataset.shape:
        return "The weights are of another network"
    channels, height, width = given.shape
    return (
        f"They were trained on images of {given.shape} and the data's are {dataset.shape}: fit the data to "
        f"them, --set data.size={max(height, width)} --set data.channels={channels}"
    )


def _changed(place: str, before: str, now: str) -> UserError:
    return UserError(
        f"{place} no longer holds the weights that this run began with (fingerprint {before[:12]}, now "
        f"{now[:12]}): restore them, or begin another run with --init"
    )


def _statistic(given: Classifier, name: str) -> tuple[float, ...]:
    """The mean or std of the given network: from its spec if there is one, because buffers are rounded."""
    kept = (given.spec or {}).get(name)
    values = getattr(given.normalise, name).flatten().tolist() if kept is None else kept
    return (float(values),) * given.shape[0] if isinstance(values, int | float) else tuple(map(float, values))


def _lasting(place: str) -> str:
    """The absolute path of an existing place; other texts unchanged."""
    found = Path(place).expanduser()
    return os.path.abspath(found) if found.exists() else place


def _read(place: str, config: Config, dataset: Dataset, architecture: str | None) -> Classifier:
    """Load the classifier with the initial weights."""
    factory = architecture if architecture and ":" in architecture and ":" not in place[:5] else None
    kind, colon, name = place.partition(":")
    if colon and kind in READERS and not Path(place).exists():
        return READERS[kind](name, config, dataset)
    path = Path(place).expanduser()
    if not path.exists():
        raise UserError(
            f"no weights at {place}: name a run, a folder with model.safetensors, a .safetensors or .pt "
            "file, hub:owner/name, timm:NAME or zoo:NAME"
        )
    if path.is_file() and not _has_manifest(path):
        return _bare(path, config.model, dataset, architecture)
    own = factory if factory and not factory.startswith("timm:") else None
    return models.load(path, _which(config.init.which, path), model=own)


def _which(wanted: str, path: Path | None) -> str:
    """The name of the weights to load; "auto" is resolved.

    It means the best weights of a run, or the last ones after plain training, where the best epoch has no
    meaning. Outside of runs it means `model`.
    """
    if wanted != "auto":
        return check_weights(wanted)
    if path is None or not (path / "best.safetensors").exists():
        return "model"
    return "last" if read_manifest(path / "model.json").get("method") == "plain" else "best"


def _has_manifest(path: Path) -> bool:
    beside = path.with_suffix(".json"), path.with_name("model.json")
    return path.suffix == ".safetensors" and any(file.exists() for file in beside)


def _bare(path: Path, part: Model, dataset: Dataset, architecture: str | None) -> Classifier:
    """Load a state dict without manifest. Raises UserError if the user has not named its architecture."""
    if path.suffix not in BARE:
        raise UserError(f"{path} does not hold weights: name a file that ends in {listed(BARE)}")
    if architecture is None:
        raise UserError(
            f"{path} has no manifest beside it that says its network: say --model, such as resnet18, "
            "preact-resnet18 or wrn-28-10"
        )
    statistics: Mapping[str, Any] = {"mean": part.mean or None, "std": part.std or None}
    return models.load_robustbench(path, architecture, shape=dataset.shape, **statistics, **part.chosen())


def _from_hub(name: str, config: Config, dataset: Dataset) -> Classifier:
    return models.from_pretrained(name, weights=_which(config.init.which, None))


def _from_timm(name: str, config: Config, dataset: Dataset) -> Classifier:
    return timm_pretrained(name, shape=dataset.shape, **config.model.chosen())


def _from_zoo(name: str, config: Config, dataset: Dataset) -> Classifier:
    return from_zoo(name)


READERS: dict[str, Callable[[str, Config, Dataset], Classifier]] = {
    "hub": _from_hub,
    "timm": _from_timm,
    "zoo": _from_zoo,
}
