"""Build what a configuration names: the device, the data set and the network."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import torch

from bivallate import collective, data, models
from bivallate.data import Dataset
from bivallate.errors import UserError, check_device
from bivallate.models import Classifier
from bivallate.run.config_parts import STREAMING

__all__ = ["check_several", "create_model", "load_data", "own_data", "pick_device", "resolved_data"]


def pick_device(name: str) -> torch.device:
    """The device by name; "auto" is CUDA, else MPS, else the CPU. Raises UserError if it does not exist."""
    if name == "auto" and not torch.cuda.is_available():
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    own = torch.device("cuda", collective.local_rank() % max(1, torch.cuda.device_count()))
    if name == "auto" or (name == "cuda" and collective.is_distributed()):
        device = check_device(own, "use --device auto or cpu")
        if collective.is_distributed():
            torch.cuda.set_device(device)  # NCCL uses the current device
        return device
    return check_device(name, "use --device auto or cpu")


def load_data(spec: Any, seed: int, *, whole: bool = False) -> Dataset:
    """Load the data set of a configuration; with `whole`, a set without a test split is all test data."""
    if not spec.name:
        raise UserError("this run was trained on tensors: pass the same data again (data=...)")
    return data.load(
        spec.name,
        data_dir=spec.data_dir,
        seed=seed,
        validation=spec.validation if spec.validation < 1 else int(spec.validation),
        imbalance=spec.imbalance,
        extra=spec.extra,
        extra_ratio=spec.extra_ratio,
        size=spec.size,
        channels=spec.channels,
        on_bad=spec.on_bad,
        image_column=spec.image_column,
        label_column=spec.label_column,
        test_fraction=spec.test_fraction,
        whole=whole,
        allow_missing_classes=spec.allow_missing_classes,
        stream=STREAMING[spec.stream],
        workers=spec.workers,
    )


def own_data(spec: Any, seed: int) -> Dataset:
    """Load the data that a run was trained on. Raises UserError if they are not there any more."""
    try:
        return load_data(spec, seed)
    except UserError as error:
        named = bool(spec.name) and data.registry.by_name(spec.name) is not None
        option = "--data-dir FOLDER" if named else "--data PLACE"
        if not spec.name:
            raise
        raise UserError(f"{error}. If the data have moved, say where they are now: {option}") from error


def resolved_data(spec: Any) -> Any:
    """A data configuration that is valid in any working folder: paths are absolute, sets keep their names."""
    place = spec.data_dir and os.path.abspath(os.path.expanduser(spec.data_dir))
    extra = spec.extra and os.path.abspath(os.path.expanduser(spec.extra))
    name = spec.name and data.lasting_name(spec.name, place)
    return dataclasses.replace(spec, name=name, data_dir=place, extra=extra)


def check_several(dataset: Dataset) -> None:
    """Raise UserError if the data have one class only, so that every answer would be right."""
    if len(dataset.classes) < 2:
        raise UserError(
            f"the data have one class, {dataset.classes[0]!r}: there is nothing to tell apart; name data of "
            "two classes or more"
        )


def create_model(spec: Any, dataset: Dataset, seed: int) -> Classifier:
    """Create the network of a configuration for the classes, shape and statistics of the data."""
    check_several(dataset)
    own = (spec.mean or dataset.mean, spec.std or dataset.std)
    mean, std = own if spec.normalise else (None, None)
    options: dict[str, Any] = {"width": spec.width} if spec.width != 1 else {}
    options |= {"stem": spec.stem} if spec.stem else {}
    options |= spec.chosen()
    if spec.options and ":" in spec.name and not spec.name.startswith("timm:"):
        raise UserError(
            f"model.options are for built-in networks and timm's: {spec.name} is your own, give its factory "
            "defaults, or pass the module in Python"
        )
    return models.create(
        spec.name,
        num_classes=len(dataset.classes),
        shape=dataset.shape,
        mean=mean,
        std=std,
        activation=spec.activation,
        seed=seed,
        **options,
    )
