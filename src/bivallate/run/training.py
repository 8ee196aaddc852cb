"""Training from Python: `train`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from bivallate import data
from bivallate.data import Dataset
from bivallate.data.registry import usual
from bivallate.errors import UserError, check_path, plainly, unknown
from bivallate.lower.threat import threat
from bivallate.method import Method, checked
from bivallate.methods.entries import create
from bivallate.models import Classifier
from bivallate.models.classifier import Normalise
from bivallate.run.config import Config, Model
from bivallate.run.defaults import fitted
from bivallate.run.execution import Run, execute
from bivallate.run.logger import Logger
from bivallate.run.progress import Progress, Spoken
from bivallate.run.recipes.published import recipe_for
from bivallate.run.session import create_model, load_data, settled


@plainly
def train(
    model: nn.Module | str,
    dataset: Dataset | str | tuple[Any, Any],
    method: Method | str,
    *,
    eps: float | str | None = None,
    norm: str = "linf",
    epochs: int | None = None,
    lr: float | None = None,
    recipe: str | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool | Progress = False,
    max_minutes: float | None = None,
    log: str | Sequence[str | Logger] = (),
    **settings: Any,
) -> Run:
    """Trains a model and returns the finished run.

    Args:
        model: a network, or the name of an architecture.
        dataset: from `bivallate.data.load`, or anything that it takes.
        method: what to train with, which knows its threat; or its name, with eps and norm. Without eps the
            customary Linf radius of the data set.
        epochs: of training; None is 20, or the recipe's. lr: peak learning rate, else the recipe's or the
            usual one of the data set (0.1 for digits, else 0.05).
        recipe: a paper's training recipe by name, such as "done", which all other arguments change. Its data
            settings (rows held out, imbalance) are used where the data is given by name.
        seed: of everything random. out: a folder to keep everything in; None keeps nothing on disk.
        overwrite: replace a run that is there. progress: show a bar, or a `Progress` of one's own.
        log: where the numbers go besides: "csv", "tensorboard", "wandb", "trackio", several with commas, or a
            `Logger` of one's own.
        max_minutes: save and stop after so long, by an `Interrupted`; `resume` goes on.
        settings: further fields of `Config`: batch_size, optimizer, rate, average, warm_up, validation, ...
            What is said nowhere is as `bivallate.data.registry.usual` has it for the data set.

    Raises:
        UserError: for anything the user can mend. NonFinite: training diverged.

    Example:
        >>> import bivallate as bv
        >>> data = bv.data.load("digits")
        >>> run = bv.train("linear", data, bv.methods.plain(bv.Linf(0.1)), epochs=1)
        >>> run.history[0]["epoch"]
        1
    """
    folder = check_path("out", out) if out else None
    given = dataset if isinstance(dataset, str | Dataset) else data.load(dataset, seed=seed)
    place = given if isinstance(given, str) else _named(given)
    method = _method(method, eps, norm, place)
    config = recipe_for(recipe, method, place)
    config = dataclasses.replace(config, model=_described(config.model, model), seed=seed, **_known(settings))
    for path, value in (("epochs", epochs), ("optimizer.lr", lr)):
        config = config.set(path, value) if value is not None else config
    if isinstance(given, str):
        config = dataclasses.replace(config, data=settled(config.data))
    loaded = load_data(config.data, seed) if isinstance(given, str) else given
    if recipe is None and "batch_size" not in settings:
        config = fitted(config, len(loaded.train))
    network = create_model(config.model, loaded, seed) if isinstance(model, str) else model
    shown = Spoken(method.name) if progress is True else (progress or Progress())
    return execute(
        config,
        loaded,
        network,
        folder,
        progress=shown,
        overwrite=overwrite,
        max_minutes=max_minutes,
        log=log,
    )


def _method(method: Method | str, eps: float | str | None, norm: str, data_name: str) -> Method:
    """The method itself, or that of a name with its threat. Raises UserError for what says neither."""
    if not isinstance(method, str):
        if eps is not None or norm != "linf":
            raise UserError(
                "a method knows its threat: give eps and norm with its name, "
                'bv.train(model, data, "at", eps=8/255)'
            )
        return checked(method)
    if eps is None and type(threat(norm, 0.0)) is not type(threat("linf", 0.0)):
        raise UserError(f"norm={norm!r} needs a radius, eps=..., such as 0.5: the customary ones are of Linf")
    return create(method, threat(norm, usual(data_name).eps if eps is None else eps))


def _described(part: Model, model: nn.Module | str) -> Model:
    """What a configuration says of a network that was handed over: enough to build it again, if it can be."""
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
        stem="",
        options=(),
    )
    for key, value in inner.spec.items():
        if key not in ("name", "num_classes", "shape", "mean", "std", "activation"):
            text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            named = named.with_option(key, text)
    return named


def _named(dataset: Dataset) -> str:
    """The name to load it by again; the fingerprint that checkpoints keep tells whether that gives the same
    data."""
    return dataset.name if dataset.name in data.registry.names() else ""


def _known(settings: dict[str, Any]) -> dict[str, Any]:
    names = {f.name for f in dataclasses.fields(Config)} - {"data", "model", "recipe"}
    for name in settings:
        if name not in names:
            raise unknown("setting", name, names)
    return settings
