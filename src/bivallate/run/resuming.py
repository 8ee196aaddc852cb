"""`resume`, the function that continues an interrupted run, or a finished one for more epochs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

from torch import nn

from bivallate import collective
from bivallate.data import Dataset
from bivallate.errors import UserError, check_path
from bivallate.method import Method, check_method
from bivallate.quoting import command
from bivallate.run.arithmetic import limit_threads, within
from bivallate.run.checkpoint import Checkpoint, list_all
from bivallate.run.config import Config
from bivallate.run.execution import (
    Run,
    check_minutes,
    check_possible,
    execute,
    finish,
    first_rank_progress,
    locked_folder,
)
from bivallate.run.first_network import first_network
from bivallate.run.folder import RunFolder
from bivallate.run.from_config import create_model, own_data, pick_device
from bivallate.run.load_model import built_in
from bivallate.run.logger import Logger
from bivallate.run.loggers import loggers
from bivallate.run.memory_layout import resolved_layout
from bivallate.run.more_epochs import effects_of_more_epochs
from bivallate.run.packing import unpack
from bivallate.run.progress import Progress, TerminalProgress
from bivallate.run.reopen import FREE, Tell, differing, reopen, reopened, repair
from bivallate.run.session import Session

KEPT = ("graphs", "keep", "data.resident", "checkpoint_minutes")
# Of the settings that may differ (`FREE`), those that a run which is gone on with takes from its own file.


def resume(
    path: str | Path,
    *,
    model: nn.Module | str | None = None,
    method: Method | None = None,
    epochs: int | None = None,
    dataset: Dataset | None = None,
    progress: bool | Progress = False,
    fall_back: bool = True,
    data: str | None = None,
    data_dir: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    max_minutes: float | None = None,
    log: str | Sequence[str | Logger] = (),
) -> Run:
    """Continue an interrupted run; it ends with the same weights, bit for bit, as without the interruption.

    Args:
        path: the run's folder.
        model, method, dataset: the parts of the run that only the user's code can build.
        epochs: new number of epochs, to train beyond the planned end; written into the run's configuration.
            Up to the planned end the run stays as it was planned. From there on every schedule is that of a
            run of the new length; a note says which values this changes.
        progress: True to show a progress bar, or your own `Progress`. Without one, notes about what was found
            and repaired become warnings.
        fall_back: if the newest checkpoint is damaged, use the older one and say so; otherwise raise.
        data, data_dir: where the data, or the folder of named data sets, are now, if they have moved.
        device, threads: where to compute, if not as before. On another device, or with another number of
            threads, the weights agree with those of an uninterrupted run to rounding only. On a device
            without the run's precision it continues in float32, and on one that is not CUDA without graphs,
            and a note says so. The configuration file keeps its own values of these four arguments.
        max_minutes: as in `train`.
        log: as in `train`; a run does not remember its loggers.

    Returns:
        The finished run.

    Raises:
        UserError: there is no run or no readable checkpoint in the folder. Data, model, method or
            configuration are not those of the checkpoint. `epochs` is lower than before. Another process is
            training in the folder.
        Interrupted, NonFinite: as in `train`.
    """
    path = check_path("the run's folder", path)
    check_minutes(max_minutes)
    told = loggers(log)
    collective.join()
    shown = first_rank_progress(TerminalProgress(path.name) if progress is True else progress or None)
    folder, begun = RunFolder.open(path), list[tuple[Config, Checkpoint | None]]()

    def prepare() -> None:
        folder.tidy()
        begun.append(reopen(folder, shown.note, fall_back=fall_back))

    with locked_folder(lambda: folder, shown, prepare) as lock:
        config, found = reopened(folder, begun[0] if begun else None)
        planned, config = config, config if epochs is None else config.longer(epochs)
        if method is not None:
            _check_method(config, method)
        moved = {"device": device, "threads": threads, "data.data_dir": data_dir, "data.name": data}
        for key, value in moved.items():
            config = config.set(key, value) if value is not None else config
        config = computable(config, shown.note)
        limit_threads(config.threads)
        loaded = dataset if dataset is not None else own_data(config.data, config.seed)
        network = _network(config, loaded, model, anew=found is None)
        if config.channels_last == "auto":  # edited by hand before the first checkpoint was written
            config = resolved_layout(config, loaded, network, shown.note)
            planned = dataclasses.replace(planned, channels_last=config.channels_last)
            if collective.rank() == 0:
                planned.write(folder.config)
        check_possible(config, loaded)
        session = Session(config, loaded, network)
        if found is not None:
            unpack(session, found)
        if config.epochs > planned.epochs:
            _go_beyond(folder, session, planned, shown.note)
        if lock is not None:
            repair(folder, session, shown.note)
        return finish(session, folder, shown, lock, max_minutes, told)


def _check_method(config: Config, method: Method) -> None:
    """Raise UserError if a method that is given again is not the run's own."""
    other = differing(dataclasses.replace(config, method=check_method(method)), config)
    if other:
        raise UserError(
            f"the run was trained with {config.method.name}, and the method that is given differs in "
            f"{', '.join(other[:5])}: leave it out, or train with it in another folder"
        )


def computable(config: Config, tell: Tell = lambda words: None) -> Config:
    """The configuration, in float32 if the device lacks its precision, and without CUDA graphs elsewhere.

    Then `tell` receives a note.
    """
    device = pick_device(config.device)
    if config.graphs and device.type != "cuda":
        tell(f"graphs need CUDA: on this {device.type} the run continues step by step")
        config = config.set("graphs", False)
    here = within(config.precision, device)
    if here != config.precision:
        tell(f"{config.precision} is not available on this {device.type}: the run continues in {here}")
    return config.set("precision", here)


def begin_or_resume(
    config: Config,
    dataset: Dataset,
    model: nn.Module,
    out: Path | None,
    *,
    resume_if_there: bool = False,
    overwrite: bool = False,
    **options: Any,
) -> Run:
    """Run a complete configuration, or continue the run in its folder.

    Args:
        config, dataset, model: the run.
        out: folder of the run, or None.
        resume_if_there: continue the run in the folder if it has a checkpoint; otherwise begin.
        overwrite: replace the run in the folder.
        options: as of `execute`.

    Raises:
        UserError: the run in the folder has another configuration; or `resume_if_there` is set without a
            folder or together with `overwrite`.
    """
    if not resume_if_there:
        return execute(config, dataset, model, out, overwrite=overwrite, **options)
    if out is None or overwrite:
        raise UserError(
            "resume_if_there needs the run's folder, out=..., and cannot go with overwrite, which begins anew"
        )
    collective.join()
    folder = RunFolder(out)
    if not collective.broadcast_object(not folder.free and bool(list_all(folder.checkpoints))):
        return execute(config, dataset, model, out, **options)
    _check_same(config, folder, first_rank_progress(options.get("progress")).note)
    where = {"device": config.device, "threads": config.threads}
    return resume(out, model=model, method=config.method, dataset=dataset, **where, **options)


def _check_same(config: Config, folder: RunFolder, tell: Tell) -> None:
    """Raise UserError unless the folder's run has this configuration; settings in `FREE` may differ.

    `tell` is told of those that the run does not take from here but keeps as they were.
    """
    free = (*FREE, "channels_last") if config.channels_last == "auto" else FREE
    try:
        there = Config.read(folder.config)
        if not {*free}.issuperset(differing(config, there)):
            there, _ = reopen(folder, tell)  # half a file can be readable too: written again, if so
    except UserError:  # `resume` says what is wrong, or writes it again
        return
    differ = differing(config, there)
    other = [key for key in differ if key not in free]
    if other:
        raise UserError(
            f"the run in {folder.path} is another one: {', '.join(other[:5])} "
            f"differ{'s' if len(other) == 1 else ''}; name another folder with out=..., or go on with it by "
            f"`{command('resume', folder.path)}`"
        )
    kept = [f"{key}={attrgetter(key)(there)}" for key in differ if key in KEPT]
    if kept and len(folder.read_metrics()) < there.epochs:
        tell(
            f"the run in {folder.path} goes on with its own {', '.join(kept)}: to change that for the epochs "
            f"that are left, edit {folder.config}"
        )


def _go_beyond(folder: RunFolder, session: Session, planned: Config, tell: Tell) -> None:
    """Write the run's new length into its configuration, and say which values it changes."""
    config = session.config
    if session.out_of_patience:
        raise UserError(
            f"this run ended after epoch {session.epoch}: its held-out robust accuracy had not risen for "
            f"{config.patience} epochs, and more of them would change nothing. Train again with another "
            "--patience"
        )
    if collective.rank() == 0:
        own = dataclasses.replace(planned, epochs=config.epochs, extended=config.extended)
        own.write(folder.config)
    told = effects_of_more_epochs(planned, config, len(session.batches))
    if told:
        tell(told)


def _network(config: Config, dataset: Dataset, model: nn.Module | str | None, *, anew: bool) -> nn.Module:
    """The network of a run: with its initial weights if `anew`, otherwise to be filled from a checkpoint."""
    name = config.model.name
    if isinstance(model, nn.Module):
        return model
    if model is None and not built_in(name):
        raise UserError(
            f"this run trained {name}, which only your code can build: hand it over again "
            "(model=... in Python, --model package.module:factory on the command line)"
        )
    if anew:
        return first_network(config, dataset, model)
    chosen = dataclasses.replace(config.model, name=model) if isinstance(model, str) else config.model
    return create_model(chosen, dataset, config.seed)
