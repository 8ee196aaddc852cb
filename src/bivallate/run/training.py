"""`train`, the function that trains a model from Python."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from bivallate import collective, data
from bivallate.data import Dataset
from bivallate.errors import UserError, check_number, check_path, check_whole, python_arguments, unknown
from bivallate.method import Method, check_method
from bivallate.methods.entries import create
from bivallate.run.budget import affordable
from bivallate.run.config import Config, Data
from bivallate.run.config_parts import STREAMING
from bivallate.run.defaults import fitted, threat_on
from bivallate.run.execution import Run
from bivallate.run.first_network import begin_network, described_model
from bivallate.run.from_config import load_data, resolved_data
from bivallate.run.initial import Init
from bivallate.run.logger import Logger
from bivallate.run.progress import Progress, TerminalProgress
from bivallate.run.recipes.published import recipe_for
from bivallate.run.resuming import begin_or_resume
from bivallate.schema import check_fits


@python_arguments
def train(
    model: nn.Module | str | None,
    dataset: Dataset | str | tuple[Any, Any],
    method: Method | str,
    *,
    eps: float | str | None = None,
    norm: str = "linf",
    epochs: int | None = None,
    passes: float | None = None,
    lr: float | None = None,
    recipe: str | None = None,
    init: str | Path | Run | Init | None = None,
    freeze: str | Sequence[str] = (),
    out: str | Path | None = None,
    seed: int = 0,
    overwrite: bool = False,
    resume_if_there: bool = False,
    progress: bool | Progress = False,
    max_minutes: float | None = None,
    log: str | Sequence[str | Logger] = (),
    **settings: Any,
) -> Run:
    """Train a model and return the finished run.

    Args:
        model: a network, or the name of an architecture. None takes the architecture from the weights that
            `init` names.
        dataset: from `bivallate.data.load`, or anything that this function accepts.
        method: the method, which includes its threat; or the name of a method, with `eps` and `norm`.
        eps, norm: threat of a method given by name, in [0, 1] pixel units. Without eps: the customary radius
            of the data set, which is known in Linf, and for CIFAR-10 also in L1.
        epochs: number of epochs; default that of the recipe, or 20.
        passes: forward and backward passes an example over the whole training: as many epochs as the method
            affords within them, in place of `epochs`. They are counted before training begins.
        lr: peak learning rate; default that of the recipe, or of the data set (0.1 for digits, else 0.05).
        recipe: name of a paper's training recipe, such as "done". The other arguments override its values.
            Its settings of the data (rows held out, imbalance) apply only if the data is given by name.
        init: weights to begin with: a run (its folder, or what `train` returned), a folder, a file,
            "hub:owner/name", "timm:NAME" or "zoo:NAME". If the classes differ, the last layer is new.
        freeze: patterns of layers to keep as they are, such as "stem", "body.0.*" or "!head".
        seed: seed of everything random.
        out: folder for the run's files; None writes nothing to disk.
        overwrite: replace the run in the folder.
        resume_if_there: continue the run in the folder, if there is one and it has the same configuration. So
            one script serves for the first start and for every later one.
        progress: True to show a progress bar, or your own `Progress`.
        log: further places for the numbers: "csv", "tensorboard", "wandb", "trackio", several separated by
            commas, or your own `Logger`.
        max_minutes: save the state and stop after this time by raising `Interrupted`; `resume` continues.
        settings: further fields of `Config`: batch_size, optimizer, rate, average, warm_up, validation, ...
            Defaults that depend on the data set are in `bivallate.data.registry.training_defaults`.

    Raises:
        UserError: an argument is wrong, or the run cannot be trained as it is asked for.
        Interrupted: stopped by a signal or by `max_minutes`; the state is saved if there is a folder.
        NonFinite: training diverged.

    Example:
        >>> import bivallate as bv
        >>> data = bv.data.load("digits")
        >>> run = bv.train("linear", data, bv.methods.plain(bv.Linf(0.1)), epochs=1)
        >>> run.history[0]["epoch"]
        1
    """
    folder = check_path("out", out) if out else None
    for name, flag in (("overwrite", overwrite), ("resume_if_there", resume_if_there)):
        check_fits(bool, flag, name)
    given = dataset if isinstance(dataset, str | Dataset) else data.load(dataset, seed=seed)
    place = given if isinstance(given, str) else _named(given)
    if passes is not None and epochs is not None:
        raise UserError("passes chooses the number of epochs: leave out epochs, or passes")
    method = _method(method, eps, norm, place)
    config = recipe_for(recipe, method, place)
    begun = _init(init, freeze, model)
    config = dataclasses.replace(config, seed=seed, init=begun, **_known(settings))
    if model is not None:
        config = dataclasses.replace(config, model=described_model(config.model, model))
    for path, value, right in (("epochs", epochs, check_whole), ("optimizer.lr", lr, check_number)):
        if value is not None:
            right(path.rpartition(".")[2], value)  # strings are accepted only from the command line
            config = config.set(path, value)
    own = resolved_data(config.data) if isinstance(given, str) else _as_loaded(config.data, given)
    config = dataclasses.replace(config, data=own)
    loaded = load_data(config.data, seed) if isinstance(given, str) else given
    if recipe is None and "batch_size" not in settings:
        config = fitted(config, len(loaded.train))
    shown = TerminalProgress(method.name) if progress is True else (progress or Progress())
    tell = shown.note if progress and collective.rank() == 0 else None
    if passes is not None:
        config, cost = affordable(config, passes, len(loaded.train), len(loaded.classes))
        if tell is not None:
            tell(f"passes={passes:.12g} pays for {cost}")
    network: nn.Module
    if isinstance(model, str) or model is None:
        config, network = begin_network(config, loaded, model, tell)
    else:
        network = model
    return begin_or_resume(
        config,
        loaded,
        network,
        folder,
        resume_if_there=resume_if_there,
        progress=shown,
        overwrite=overwrite,
        max_minutes=max_minutes,
        log=log,
    )


def _init(init: str | Path | Run | Init | None, freeze: str | Sequence[str], model: Any) -> Init:
    """The run's initial weights and frozen layers.

    Raises UserError if neither `model` nor `init` gives a network, or if both give weights.
    """
    if isinstance(init, Run) and init.path is None:
        raise UserError(
            "init names a run that kept nothing on disk: pass its model, bv.train(run.model, ...)"
        )
    place = init.path if isinstance(init, Run) else init
    begun = place if isinstance(place, Init) else Init(weights=str(place or ""))
    begun = dataclasses.replace(begun, freeze=(freeze,) if isinstance(freeze, str) else tuple(freeze))
    if begun.weights and isinstance(model, nn.Module):
        raise UserError("a given network has its weights: leave out init, or pass model=None")
    if model is None and not begun.weights:
        raise UserError('name a network, such as "tiny-cnn", or weights to begin with, init="runs/plain"')
    return begun


def _method(method: Method | str, eps: float | str | None, norm: str, data_name: str) -> Method:
    """The method itself, or the method of this name with the threat of eps and norm.

    Raises UserError for an unknown name, a missing radius, or a method together with eps or norm.
    """
    if not isinstance(method, str):
        if eps is not None or norm != "linf":
            raise UserError(
                "a method knows its threat: give eps and norm with its name, "
                'bv.train(model, data, "at", eps=8/255)'
            )
        return check_method(method)
    return create(method, threat_on(data_name, norm, eps, f"norm={norm!r} needs a radius, eps=..."))


def _named(dataset: Dataset) -> str:
    """The known set that a data set was loaded as, for its defaults; empty for any other."""
    known = data.registry.by_name(dataset.loaded["name"]) if dataset.loaded is not None else None
    return known.name if known is not None else ""


def _as_loaded(spec: Data, dataset: Dataset) -> Data:
    """The settings by which a data set that was given can be loaded again; no name if they are unknown.

    Checkpoints and manifests keep fingerprints, which show whether they still give the same data.
    """
    if dataset.loaded is None:
        return dataclasses.replace(spec, name="")
    ways = {way: text for text, way in STREAMING.items()}
    entry = {**dataset.loaded, "stream": ways[dataset.loaded["stream"]]}
    try:
        return resolved_data(dataclasses.replace(spec, **entry))
    except UserError:  # a path that no file can name
        return dataclasses.replace(spec, name="")


def _known(settings: dict[str, Any]) -> dict[str, Any]:
    names = {f.name for f in dataclasses.fields(Config)} - {"data", "model", "init", "recipe"}
    settings = Config.read_older(settings)
    for name in settings:
        if name not in names:
            raise unknown("setting", name, names)
    return settings
