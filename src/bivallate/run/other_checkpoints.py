"""Load a checkpoint of another project for an evaluation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from bivallate import models, zoo
from bivallate.data import Dataset
from bivallate.errors import UserError, listed
from bivallate.lower.threat import ThreatModel
from bivallate.models import Classifier
from bivallate.models.robustbench import load_robustbench
from bivallate.run.config import Data
from bivallate.run.evaluation_target import EvaluationTarget, split_of
from bivallate.run.from_config import load_data, pick_device, resolved_data
from bivallate.run.load_model import from_zoo

__all__ = ["checkpoint_target"]

WEIGHTS = (".safetensors", ".pt", ".pth", ".bin")


def checkpoint_target(
    path: str | Path,
    architecture: str | None,
    data: str,
    threat: ThreatModel,
    *,
    weights: str = "best",
    split: str = "test",
    data_dir: str | None = None,
    device: torch.device | str = "auto",
    normalise: bool = False,
) -> EvaluationTarget:
    """Load the model from a file of weights (or a folder with one such file), and a data set by name.

    Args:
        path: the file or folder, or "zoo:NAME".
        architecture: name of the architecture; not needed for a folder with a model.json and for the zoo.
        data: name of the data set.
        threat: the set of perturbations of the evaluation.
        weights: name of the weights in a folder with a model.json.
        split: the split to attack.
        data_dir: folder of named data sets.
        device: where to compute.
        normalise: whether the network expects images standardised by the data's mean and standard deviation,
            if its file holds no normalisation of its own; if it does, a warning says that its own is taken.

    Raises:
        UserError: the weights do not exist or are of another architecture, or the data have more classes
            than the model.
    """
    place = Path(path)
    spec = resolved_data(Data(data, data_dir=data_dir, validation=0, allow_missing_classes=True))
    dataset = load_data(spec, 0, whole=True)
    warnings: list[str] = []
    model = _model(place, architecture, weights, dataset, normalise, warnings.append)
    if len(dataset.classes) > model.num_classes:
        raise UserError(
            f"{place} has {model.num_classes} classes, {data} has {len(dataset.classes)}: "
            "it was trained on other data"
        )
    network, chosen = model.to(pick_device(str(device))), split_of(dataset, split)
    if isinstance(model.normalise, nn.Identity):
        warnings.append(
            f"{place} holds no normalisation, so its network is given images in [0, 1] as they are: if it "
            f"was trained on standardised ones, say --normalise (mean and std of {data})"
        )
    return EvaluationTarget(
        path=place,
        model=network,
        data=dataset,
        chosen_split=chosen,
        threat=threat,
        weights=place.stem,
        split=split,
        elsewhere=data,
        warnings=tuple(warnings),
    )


def _model(
    place: Path,
    architecture: str | None,
    weights: str,
    dataset: Dataset,
    normalise: bool,
    tell: Callable[[str], None],
) -> Classifier:
    zoos = str(place).startswith(zoo.PREFIX)
    if zoos or (place.is_dir() and (place / "model.json").exists()):
        if normalise:
            tell(f"{place} says itself how its images are normalised: that is taken, and not --normalise")
        return from_zoo(str(place)) if zoos else models.load(place, weights)
    if architecture is None:
        raise UserError(
            f"{place} is no run: say --arch NAME, --data and --eps for a checkpoint of another project "
            "(`bivallate models` lists the architectures)"
        )
    if place.is_dir():
        held = sorted(p for p in place.iterdir() if p.suffix in WEIGHTS)
        if len(held) != 1:
            raise UserError(
                f"{place} should hold one file of weights, it has {listed(p.name for p in held)}: name "
                "the file"
            )
        place = held[0]
    own = (dataset.mean, dataset.std) if normalise else None
    return load_robustbench(place, architecture, shape=dataset.shape, fallback=own, tell=tell)
