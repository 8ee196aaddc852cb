"""The configuration of a run from the arguments of a command."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from bivallate.commands.settings import named, own_parameters
from bivallate.data import Dataset
from bivallate.data import registry as data_sets
from bivallate.errors import UserError
from bivallate.from_text import pair
from bivallate.methods.entries import create
from bivallate.models import Classifier
from bivallate.quoting import line
from bivallate.run.budget import affordable
from bivallate.run.config import METHOD_PARTS, Config
from bivallate.run.defaults import fitted, threat_on
from bivallate.run.first_network import begin_network
from bivallate.run.from_config import load_data, resolved_data
from bivallate.run.recipes.published import recipe_for

__all__ = ["init_pairs", "introduce", "one_length", "plan_of", "resolved"]

Pairs = list[tuple[str, str]]


def plan_of(
    method: str | None,
    config: Path | None,
    data: str | None,
    eps: str | None,
    norm: str,
    recipe: str | None,
    settings: tuple[str, ...],
    model: str | None = None,
    average: str | None = None,
) -> Config:
    """Build a configuration from a file or from a method's name, and apply every --set to it.

    Args:
        method, data, eps, norm, recipe: as in `bivallate train`; not all go together with `config`.
        config: a config.toml.
        settings: KEY=VALUE of --set.
        model: in place of the configuration's network.
        average: of the weights; set before `settings`, which may give its fields.

    Raises:
        UserError: neither method nor file, arguments that exclude each other, a value that does not fit,
            or a network of the user's own that only the file names.
    """
    pairs = [pair(item) for item in settings]
    pairs = pairs if average is None else [("config.average", average), *pairs]
    if config is not None:
        plan, pairs = _from_file(config, method, data, eps, norm, recipe, pairs)
    elif method is not None:
        plan, pairs = _from_names(named(method), data or "digits", eps, norm, recipe, pairs)
    else:
        raise UserError("name a method, such as `bivallate train at`, or a configuration with --config")
    for path, text in pairs:
        plan = plan.set(path, text)
    if config is not None and model is None:
        _refuse_code(plan.model.name, config, settings)
    return plan if model is None else plan.set("model.name", model)


def _from_file(
    file: Path,
    method: str | None,
    data: str | None,
    eps: str | None,
    norm: str,
    recipe: str | None,
    pairs: Pairs,
) -> tuple[Config, Pairs]:
    """Read a configuration file; returns it with the pairs that are still to be set."""
    if method is not None and ":" not in method:
        raise UserError(f"--config names the method already; leave out {method!r}")
    if recipe is not None or norm != "linf":
        raise UserError(
            "--config holds a recipe's and a norm's values already; leave out --recipe and --norm"
        )
    if eps is not None:
        raise UserError(
            "--config holds step sizes that belong to its eps; start from a method's name instead, or "
            f"use --set threat.eps={eps}, which says where a step size must be given too"
        )
    own = method and named(method)  # which makes its parts known
    plan = Config.read(file)
    if own not in (None, plan.method.name):
        raise UserError(f"{file} is of the method {line(plan.method.name)}, not of {own}; leave out one")
    return _with_threat(plan if data is None else plan.set("data.name", data), pairs)


def _from_names(
    method: str, data: str, eps: str | None, norm: str, recipe: str | None, pairs: Pairs
) -> tuple[Config, Pairs]:
    """Build a method's configuration; returns it with the pairs that are not parameters of the method."""
    for path, text in pairs:
        if path.removeprefix("config.").removeprefix("method.") == "threat.eps":
            raise UserError(f"--set threat.eps would leave the step sizes as they are; use --eps {text}")
    known = data_sets.by_name(data)
    name = known.name if known is not None else data
    radius = threat_on(name, norm, eps, f"--norm {norm} needs a radius, --eps")
    parameters, pairs = own_parameters(method, pairs)
    return recipe_for(recipe, create(method, radius, **parameters), name, fixed=parameters), pairs


def init_pairs(weights: str | None, freeze: tuple[str, ...]) -> tuple[str, ...]:
    """Turn --init and --freeze into settings KEY=VALUE.

    Other weights also reset the fingerprint and the choice of weights that a configuration file may hold.
    """
    other = () if weights is None else (f"init.weights={weights}", "init.fingerprint=", "init.which=auto")
    return (*other, *((f"init.freeze={','.join(freeze)}",) if freeze else ()))


def one_length(passes: float | None, epochs: int | None, settings: tuple[str, ...]) -> None:
    """Raise UserError if both --passes and a number of epochs are given."""
    typed = "--epochs" if epochs is not None else ""
    found = typed or next(
        (item for item in settings if pair(item)[0].removeprefix("config.") == "epochs"), ""
    )
    if passes is not None and found:
        raise UserError(f"--passes chooses the number of epochs: leave out {found}, or --passes")


def resolved(
    plan: Config,
    *,
    fit: bool,
    architecture: str | None = None,
    tell: Callable[[str], object],
    passes: float | None = None,
) -> tuple[Config, Dataset, Classifier]:
    """Load the data and build the network of a configuration.

    Args:
        fit: choose the batch size by the number of training images.
        architecture: of --model, for weights that do not record theirs.
        tell: called with a sentence on the weights that training begins with, and on the epochs.
        passes: choose the epochs by these passes an example.

    Returns:
        The configuration with absolute paths of the data, the data set, and the network.
    """
    plan = dataclasses.replace(plan, data=resolved_data(plan.data))
    dataset = load_data(plan.data, plan.seed)
    plan = fitted(plan, len(dataset.train)) if fit else plan
    if passes is not None:
        plan, cost = affordable(plan, passes, len(dataset.train), len(dataset.classes))
        tell(f"--passes {passes:.12g} pays for {cost}")
    plan, network = begin_network(plan, dataset, architecture, tell)
    return plan, dataset, network


def introduce(plan: Config, dataset: Dataset, tell: Callable[[str], object]) -> None:
    """Hand `tell` the notes on the data and a summary of the training, a line at a time."""
    size = len(dataset.train)
    for note in dataset.notes:
        tell(f"{dataset.name}: {note}")
    threats = ", ".join(map(repr, plan.method.threats))
    tell(f"{plan.method.name} on {dataset.name} ({size} images), {plan.model.name}, {threats}")
    grows = f", eps grows over the first {plan.warm_up:.0%} of training" if plan.warm_up else ""
    length = f"{plan.epochs} epoch{'s' * (plan.epochs > 1)}"
    tell(f"{length}, batches of {plan.batch_size}, rate up to {plan.optimizer.lr:g}{grows}")


def _refuse_code(name: str, file: Path, settings: tuple[str, ...]) -> None:
    """Raise UserError if a file, and not the command line, names a module to import the network from."""
    typed = any(pair(item)[0] == "model.name" for item in settings)
    if ":" in name and not name.startswith("timm:") and not typed:
        raise UserError(
            f"{file} asks for a network of your own, {name}, and code is never imported because a file names "
            f"it: say --model {name} if you trust it"
        )


def _with_threat(plan: Config, pairs: Pairs) -> tuple[Config, Pairs]:
    """Apply the threat among the pairs, if there is one; returns the plan and the pairs that remain.

    Settings of the method's parts are applied at the same time, because a new radius is refused if step
    sizes that belong to the old one stay.
    """
    own = {path.removeprefix("method."): text for path, text in pairs}
    own = {path: text for path, text in own.items() if path.partition(".")[0] in METHOD_PARTS}
    if not any(path.startswith("threat.") for path in own):
        return plan, pairs
    within = {path.replace(".", "__"): text for path, text in own.items() if "." in path}
    method = plan.method.but(**within)
    taken = {path for path, _ in pairs if path.removeprefix("method.").replace(".", "__") in within}
    return dataclasses.replace(plan, method=method), [item for item in pairs if item[0] not in taken]
