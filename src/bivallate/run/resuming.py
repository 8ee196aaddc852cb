"""`resume`: an interrupted run to its end, or a finished one beyond it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from bivallate import collective
from bivallate.data import Dataset
from bivallate.errors import UserError, check_path
from bivallate.method import Method, checked
from bivallate.quoting import command
from bivallate.run.arithmetic import within
from bivallate.run.checkpoint import Checkpoint, list_all
from bivallate.run.config import Config
from bivallate.run.execution import Run, check_minutes, execute, finish, first_rank_progress, locked_folder
from bivallate.run.first_network import first_network
from bivallate.run.folder import RunFolder
from bivallate.run.load_model import built_in
from bivallate.run.logger import Logger
from bivallate.run.loggers import loggers
from bivallate.run.memory_layout import resolved_layout
from bivallate.run.more_epochs import effects_of_more_epochs
from bivallate.run.packing import unpack
from bivallate.run.progress import Progress, TerminalProgress
from bivallate.run.reopen import FREE, Tell, differing, reopen, reopened, repair
from bivallate.run.session import Session, create_model, own_data, pick_device
from bivallate.run.trainer import limit_threads


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
    """Go on with an interrupted run, to the same weights bit for bit.

    Those that an uninterrupted one would have reached.

    Args:
        path: the run's folder.
        model, method, dataset: for parts that only the user's code can build.
        epochs: how many the run is to have now, for one that is to go on beyond its end; written into its
            configuration. Up to the end that was planned all is as planned; from there on every schedule is
            that of a run of the new length, and what this changes is said.
        progress: show a bar, or a `Progress` of one's own; without, what was found and mended is warned of.
        fall_back: take the older checkpoint if the newest is damaged, and say so; else that is an error.
        data, data_dir, device, threads: where the data lie now, where named sets are looked for and where to
            compute, if not as before; the run's configuration keeps its own. On another device, or with
            another number of threads, the weights agree with those of an uninterrupted run to rounding only;
            a device without the run's precision goes on in float32, and says so.
        log: as in `train`; a run does not remember its loggers.

    Raises:
        UserError: no run, no readable checkpoint, other data, another model, method or configuration,
            fewer epochs than before, or another process trains in the folder.
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
            config = dataclasses.replace(config, method=checked(method))
        moved = {"device": device, "threads": threads, "data.data_dir": data_dir, "data.name": data}
        for key, value in moved.items():
            config = config.set(key, value) if value is not None else config
        config = computable(config, shown.note)
        limit_threads(config.threads)
        loaded = dataset if dataset is not None else own_data(config.data, config.seed)
        network = _network(config, loaded, model, anew=found is None)
        if config.channels_last == "auto":  # written so by hand before the first checkpoint
            config = resolved_layout(config, loaded, network, shown.note)
            planned = dataclasses.replace(planned, channels_last=config.channels_last)
            if collective.rank() == 0:
                planned.write(folder.config)
        session = Session(config, loaded, network)
        if found is not None:
            unpack(session, found)
        if config.epochs > planned.epochs:
            _go_beyond(folder, session, planned, shown.note)
        if lock is not None:
            repair(folder, session, shown.note)
        return finish(session, folder, shown, lock, max_minutes, told)


def computable(config: Config, tell: Tell = lambda words: None) -> Config:
    """The configuration in float32 where the device has not its precision, which `tell` hears of."""
    device = pick_device(config.device)
    here = within(config.precision, device)
    if here != config.precision:
        tell(f"{config.precision} is not to be had on this {device.type}: the run goes on in {here}")
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
    """Run a complete configuration, or go on with the run that is in the folder.

    With `resume_if_there` goes on with the run that is in the folder, if one is, which has to be the same,
    and begins anew otherwise. options: as of `execute`.

    Raises:
        UserError: the run that is there is another one, or there is no folder, or it is to be replaced too.
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
    _check_same(config, folder)
    where = {"device": config.device, "threads": config.threads}
    return resume(out, model=model, method=config.method, dataset=dataset, **where, **options)


def _check_same(config: Config, folder: RunFolder) -> None:
    """Raise UserError unless a folder's run is of this configuration, but for where it is computed."""
    try:
        there = Config.read(folder.config)
    except UserError:  # torn or missing: `resume` writes it again
        return
    free = (*FREE, "channels_last") if config.channels_last == "auto" else FREE
    other = [key for key in differing(config, there) if key not in free]
    if other:
        raise UserError(
            f"the run in {folder.path} is another one: {', '.join(other[:5])} "
            f"differ{'s' if len(other) == 1 else ''}; name another folder with out=..., or go on with it by "
            f"`{command('resume', folder.path)}`"
        )


def _go_beyond(folder: RunFolder, session: Session, planned: Config, tell: Tell) -> None:
    """Write down that the run is longer than it was planned, and say what that changes."""
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
    """The network of a run, to be filled from its checkpoint, or `anew` with what the run begins with."""
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
