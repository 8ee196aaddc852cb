"""`bivallate train`, `resume` and `demo`."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from bivallate import terminal
from bivallate.cli import APP
from bivallate.commands.options import Flag
from bivallate.commands.settings import own_parameters, pair
from bivallate.data import registry as data_sets
from bivallate.errors import UserError
from bivallate.method import create
from bivallate.quoting import file_name
from bivallate.run.config import METHOD_PARTS, Config


@APP.command
def train(
    method: str | None = None,
    *,
    data: str | None = None,
    model: str | None = None,
    eps: str | None = None,
    norm: str = "linf",
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    seed: int | None = None,
    average: float | None = None,
    recipe: str | None = None,
    config: Path | None = None,
    set_: Annotated[tuple[str, ...], Parameter(name="--set", negative=())] = (),
    data_dir: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    out: Path | None = None,
    overwrite: Flag = False,
    max_minutes: float | None = None,
    patience: int | None = None,
    log: str = "",
    dry_run: Flag = False,
    quiet: Flag = False,
) -> None:
    """Train a classifier with METHOD and keep the run in a folder.

    Parameters
    ----------
    method
        name of a method; `bivallate methods` lists them. Not needed with --config.
    data
        data set: a name, a folder, an .npz, .zip or .tar, or hub:owner/name. [default: digits]
    model
        architecture, or package.module:factory of your own. [default: tiny-cnn, or the recipe's]
    eps
        radius of the perturbations in pixel units of [0, 1], such as 8/255. [default: 0.3 for mnist, 0.1 for
        fashion-mnist, 0.15 for digits, else 8/255]
    norm
        linf or l2.
    epochs
        passes over the training data. [default: 20, or the recipe's]
    batch_size
        examples of a minibatch. [default: 128, or an eighth of fewer than 1,024 images; or the recipe's]
    lr
        peak learning rate. [default: 0.1 for digits, else 0.05; or the recipe's]
    seed
        of everything random. [default: 0]
    average
        decay per step of an exponential moving average of the weights, such as 0.999; 0 keeps none. [default:
        0]
    recipe
        a paper's training recipe, such as done; `bivallate recipes` lists them.
    config
        a config.toml to start from; other options change it. A network of your own in it needs --model.
    set_
        one value of the configuration, KEY=VALUE, repeatable: a parameter of the method (steps=7), a field of
        a part (solver.steps=7, weighting.rate=1, optimizer.weight_decay=2e-4) or a setting
        (validation.steps=20).
    data_dir
        where named sets are looked for. [default: BIVALLATE_DATA]
    device
        auto, cpu, cuda or mps. [default: auto]
    threads
        of the processor; resuming to the bit needs the same number. [default: torch's choice]
    out
        folder of the run. [default: runs/METHOD-DATA-SEED]
    overwrite
        replace a run that is there.
    max_minutes
        save and stop after so many minutes, as an interruption does; `bivallate resume` goes on.
    patience
        end when the held-out robust accuracy has not risen for so many epochs. [default: 0, never]
    log
        where the numbers go besides: csv, tensorboard, wandb, trackio; several with commas.
    dry_run
        print the resolved configuration and what it is going to take; train and write nothing.
    quiet
        say nothing but alarms.
    """
    from bivallate.run.defaults import fitted
    from bivallate.run.execution import execute
    from bivallate.run.progress import Spoken
    from bivallate.run.session import create_model, load_data, settled

    plan = _plan(method, config, data, eps, norm, recipe, set_)
    if config is not None and model is None:
        _refuse_code(plan.model.name, config, set_)
    changes = {"batch_size": batch_size, "seed": seed, "average": average}
    changes |= {"device": device, "threads": threads, "patience": patience}
    plan = dataclasses.replace(plan, **{k: v for k, v in changes.items() if v is not None})
    for path, value in (
        ("epochs", epochs),
        ("optimizer.lr", lr),
        ("data.data_dir", data_dir),
        ("model.name", model),
    ):
        plan = plan.set(path, value) if value is not None else plan
    plan = dataclasses.replace(plan, data=settled(plan.data))
    named = f"{file_name(plan.method.name)}-{file_name(Path(plan.data.name).stem)}-{plan.seed}"
    folder = out or Path("runs") / named
    dataset = load_data(plan.data, plan.seed)
    chosen = batch_size is not None or any(pair(item)[0] == "batch_size" for item in set_)
    if recipe is None and config is None and not chosen:
        plan = fitted(plan, len(dataset.train))
    network = create_model(plan.model, dataset, plan.seed)
    size = len(dataset.train)
    tell = (lambda text: None) if quiet else say
    for note in dataset.notes:
        tell(f"{dataset.name}: {note}")
    tell(f"{plan.method.name} on {dataset.name} ({size} images), {plan.model.name}, {plan.method.threat}")
    grows = f", eps grows over the first {plan.warm_up:.0%} of training" if plan.warm_up else ""
    tell(f"{plan.epochs} epochs, batches of {plan.batch_size}, rate up to {plan.optimizer.lr:g}{grows}")
    if dry_run:
        _foretell(plan, dataset, network, folder)
        return
    spoken = Spoken(plan.method.name, quiet=quiet)
    run = execute(
        plan, dataset, network, folder, progress=spoken, overwrite=overwrite, max_minutes=max_minutes, log=log
    )
    if not quiet:
        _finished(run, folder)


def _foretell(plan: Config, dataset: Any, network: Any, folder: Path) -> None:
    """The configuration on standard output, and beside it what it would take."""
    from bivallate.parts import encode
    from bivallate.run.forecast import forecast
    from bivallate.run.toml import to_toml
    from bivallate.run.trainer import limit_threads

    limit_threads(plan.threads)
    expected = forecast(plan, dataset, network)
    terminal.say(to_toml(encode(plan)))
    say(f"would take {expected}; would be kept in {folder}; nothing was written")


@APP.command
def resume(
    run: Path,
    *,
    epochs: int | None = None,
    model: str | None = None,
    fall_back: bool = True,
    data: str | None = None,
    data_dir: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    max_minutes: float | None = None,
    log: str = "",
    quiet: Flag = False,
) -> None:
    """Go on with an interrupted run, to exactly the weights that an uninterrupted one would have reached; or
    with a finished one to more epochs.

    On another device or with another number of threads they agree to rounding only.

    Parameters
    ----------
    run
        folder of the run.
    epochs
        go on to so many epochs in all, more than were planned, also with a run that is finished; written into
        its configuration. What that changes of its schedules is said.
    model
        package.module:factory, if the run trained a network of your own.
    fall_back
        take the older checkpoint if the newest is damaged, and say so.
    data
        where the data lie now, if they were moved. [default: as before]
    data_dir
        where named sets are looked for. [default: as before]
    device
        auto, cpu, cuda or mps. [default: as before]
    threads
        of the processor. [default: as before]
    max_minutes
        save and stop after so many minutes, as an interruption does.
    log
        where the numbers go besides, as for train; a run does not remember it.
    quiet
        say nothing but alarms.
    """
    from bivallate.run.progress import Spoken
    from bivallate.run.resuming import resume as go_on

    elsewhere = {"data": data, "data_dir": data_dir, "device": device, "threads": threads}
    spoken = Spoken(run.resolve().name, quiet=quiet)
    finished = go_on(
        run,
        epochs=epochs,
        model=model,
        fall_back=fall_back,
        progress=spoken,
        max_minutes=max_minutes,
        log=log,
        **elsewhere,
    )
    if not quiet:
        _finished(finished, run)


@APP.command
def demo(*, out: Path = Path("runs/demo"), epochs: int = 30, threads: int = 1) -> None:
    """Train four methods on scikit-learn's digits, attack each, and print what came out: about two minutes.

    Parameters
    ----------
    out
        folder of the runs; what an earlier demo left there is replaced.
    epochs
        of each method.
    threads
        of the processor.
    """
    from bivallate.demo import run_demo

    run_demo(out, epochs=epochs, threads=threads)


def _plan(
    method: str | None,
    config: Path | None,
    data: str | None,
    eps: str | None,
    norm: str,
    recipe: str | None,
    settings: tuple[str, ...],
) -> Config:
    """The configuration from a file or from names, with every --set applied."""
    from bivallate.data.registry import usual
    from bivallate.lower.threat import threat
    from bivallate.run.recipes import recipe_for

    pairs = [pair(item) for item in settings]
    if config is not None:
        if method is not None:
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
        plan = Config.read(config)
        plan = plan if data is None else plan.set("data.name", data)
        plan, pairs = _with_threat(plan, pairs)
    else:
        if method is None:
            raise UserError("name a method, such as `bivallate train at`, or a configuration with --config")
        for path, text in pairs:
            if path.removeprefix("method.") == "threat.eps":
                raise UserError(f"--set threat.eps would leave the step sizes as they are; use --eps {text}")
        name = data or "digits"
        name = known.name if (known := data_sets.get(name)) is not None else name
        if eps is None and threat(norm, 0.0) != threat("linf", 0.0):
            raise UserError(
                f"--norm {norm} needs a radius, --eps, such as 0.5 (128/255): the customary ones are of Linf"
            )
        radius = threat(norm, eps if eps is not None else usual(name).eps)
        parameters, pairs = own_parameters(method, pairs)
        plan = recipe_for(recipe, create(method, radius, **parameters), name, fixed=parameters)
    for path, text in pairs:
        plan = plan.set(path, text)
    return plan


def _refuse_code(name: str, file: Path, settings: tuple[str, ...]) -> None:
    """Raises UserError for a network that a file, not the user, names by its module."""
    typed = any(pair(item)[0] == "model.name" for item in settings)
    if ":" in name and not name.startswith("timm:") and not typed:
        raise UserError(
            f"{file} asks for a network of your own, {name}, and code is never imported because a file names "
            f"it: say --model {name} if you trust it"
        )


def _with_threat(plan: Config, pairs: list[tuple[str, str]]) -> tuple[Config, list[tuple[str, str]]]:
    """The plan with another threat, if the pairs have one, and the other pairs. Parts of the method that are
    given beside it need not follow it."""
    own = {path.removeprefix("method."): text for path, text in pairs}
    own = {path: text for path, text in own.items() if path.partition(".")[0] in METHOD_PARTS}
    if not any(path.startswith("threat.") for path in own):
        return plan, pairs
    within = {path.replace(".", "__"): text for path, text in own.items() if "." in path}
    method = plan.method.but(**within)
    taken = {path for path, _ in pairs if path.removeprefix("method.").replace(".", "__") in within}
    return dataclasses.replace(plan, method=method), [item for item in pairs if item[0] not in taken]


def say(text: str) -> None:
    """One line to the person, beside the results on standard output."""
    from bivallate import collective

    if collective.rank() == 0:
        terminal.say(text, beside=True)


def _finished(run: Any, folder: Path) -> None:
    from bivallate.run.chance import ending

    last = run.history[-1] if run.history else {}
    held = [line["robust"] for line in run.history if "robust" in line]
    if held:
        best = max(range(len(held)), key=held.__getitem__)
        forward, backward = last["total_forward"], last["total_backward"]
        say(
            f"held-out robust accuracy: last {last['robust']:.1%}, best {held[best]:.1%} (epoch {best + 1}); "
            f"{forward:.4g} forward and {backward:.4g} backward passes per example"
        )
    told = ending(run.history)
    if told:
        say(told)
    own = run.model.architecture
    network = f" --model {own}" if ":" in own and not own.startswith("timm:") else ""
    say(f"run: {folder}\nnext: bivallate evaluate {shlex.quote(str(folder))}{network} --attack pgd-20")
