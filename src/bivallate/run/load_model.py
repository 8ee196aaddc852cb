"""The model of a run folder."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from bivallate import models
from bivallate.errors import UserError
from bivallate.models import Classifier
from bivallate.models.description import read_manifest
from bivallate.run.folder import RunFolder


def load(path: str | Path, weights: str = "best", *, model: nn.Module | str | None = None) -> Classifier:
    """The trained model of a run folder, in eval mode.

    Args:
        path: the run's folder. weights: "best" (on held-out data), "last", "ema", or "epoch-3" of a
            run that keeps it (`keep=(3,)`).
        model: for a network that only the user's code can build.
    """
    return models.load(path, weights, model=model).eval()


def built_in(name: str) -> bool:
    """Whether the package can build an architecture of that name, timm's included, from the name alone."""
    return name in models.names() or name.startswith("timm:")


def load_run(path: str | Path, weights: str, model: str | None) -> Classifier:
    """The model of a run; `model` builds the network where it is the user's own, and is imported because the
    user named it. Raises UserError without it."""
    described = read_manifest(RunFolder.open(Path(path)).path / "model.json")
    name = (described["spec"] or {}).get("name", described["architecture"])
    if built_in(name):
        return load(path, weights)
    if model is None:
        raise UserError(
            f"{path} trained a network of your own, {name}, and code is never imported because a file names "
            "it: say --model package.module:factory"
        )
    return load(path, weights, model=model)
