"""Run a complete configuration to its end, in a folder that no other process uses meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from bivallate import collective
from bivallate.data import Dataset
from bivallate.errors import UserError, check_number
from bivallate.gradient_sums import overlapping
from bivallate.lower.synced_batchnorm import unsynchronise
from bivallate.models import Classifier
from bivallate.run.arithmetic import computing, limit_threads
from bivallate.run.config import Config
from bivallate.run.folder import RunFolder
from bivallate.run.lock import Lock, lock_folder
from bivallate.run.logger import LoggedProgress, Logger
from bivallate.run.loggers import loggers
from bivallate.run.memory_layout import resolved_layout
from bivallate.run.progress import Progress
from bivallate.run.session import Session
from bivallate.run.trainer import Trainer

__all__ = ["Run", "check_minutes", "check_possible", "execute", "finish", "locked_folder"]


@dataclass(frozen=True, repr=False)
class Run:
    """A finished run.

    Attributes:
        model: the model with the last weights, in eval mode.
        average: the model with the averaged weights, in eval mode, or None.
        history: one dictionary per epoch, as in metrics.jsonl; accuracies are fractions in [0, 1].
        path: the run's folder, or None.
    """

    model: Classifier
    average: Classifier | None
    history: list[dict[str, Any]]
    path: Path | None

    def __repr__(self) -> str:
        last = self.history[-1] if self.history else {}
        accuracies = [
            f"{what} {last[what]:.1%}" for what in ("clean", "robust") if last.get(what) is not None
        ]
        held = f", held-out {', '.join(accuracies)}" if accuracies else ""
        return f"<Run in {self.path or 'memory'}: {len(self.history)} epochs{held}>"


def check_possible(config: Config, dataset: Dataset) -> None:
    """Raise UserError for epochs to keep that do not come, and for patience without held-out images."""
    if config.keep and max(config.keep) > config.epochs:
        raise UserError(f"keep names epoch {max(config.keep)}, but training ends with epoch {config.epochs}")
    if config.patience and not dataset.validation:
        raise UserError(
            "patience watches the held-out robust accuracy, and nothing is held out: "
            "use --set data.validation=0.1, or patience 0"
        )


def execute(
    config: Config,
    dataset: Dataset,
    model: nn.Module,
    out: Path | None,
    *,
    progress: Progress | None = None,
    overwrite: bool = False,
    max_minutes: float | None = None,
    log: str | Sequence[str | Logger] = (),
) -> Run:
    """Run a complete configuration in a new folder, which stays locked until the end.

    Args:
        config, dataset, model: the run.
        out: folder of the run; None writes nothing to disk.
        progress: what to show; None shows nothing.
        overwrite: replace the run in the folder.
        max_minutes: save the state and stop after this time by raising `Interrupted`.
        log: loggers, as in `train`.

    Raises:
        UserError: the folder is not free or in use, or the configuration asks for what cannot be done.
        Interrupted, NonFinite: as in `train`.
    """
    if config.keep and out is None:
        raise UserError("keep=... stores weights in the run's folder: name one with out=...")
    check_possible(config, dataset)
    check_minutes(max_minutes)
    told = loggers(log)
    limit_threads(config.threads)
    collective.join()
    shown = first_rank_progress(progress)
    config = resolved_layout(config, dataset, model, shown.note)
    session = Session(config, dataset, model)
    if out is None:
        return finish(session, None, shown, minutes=max_minutes, told=told)

    def begin() -> None:
        folder = RunFolder.create(out, overwrite=overwrite)  # checked again, now that the folder is locked
        folder.tidy()
        folder.clear()
        config.write(folder.config)

    with locked_folder(lambda: RunFolder.create(out, overwrite=overwrite), shown, begin) as lock:
        return finish(session, RunFolder(out), shown, lock, max_minutes, told)


class _Silent(Progress):
    def note(self, text: str) -> None:
        """Say nothing."""


def first_rank_progress(progress: Progress | None) -> Progress:
    """The progress on the first rank; one that says nothing on the others."""
    if collective.rank() == 0:
        return progress if progress is not None else Progress()
    return _Silent()


@contextmanager
def locked_folder(
    find: Callable[[], RunFolder], shown: Progress, prepare: Callable[[], None]
) -> Iterator[Lock | None]:
    """Find, lock and prepare the folder on the first rank; if that fails, raise its error on all ranks.

    Yields the lock on the first rank, None on the others.
    """
    lock, failed = None, None
    with ExitStack() as stack:
        if collective.rank() == 0:
            try:
                lock = stack.enter_context(lock_folder(find().path, shown.note))
                prepare()
            except UserError as error:
                failed = error
        collective.raise_on_all_ranks(failed)
        yield lock


def finish(
    session: Session,
    folder: RunFolder | None,
    progress: Progress,
    lock: Lock | None = None,
    minutes: float | None = None,
    told: Sequence[Logger] = (),
) -> Run:
    """Train a session to its end, with its precision, and report its progress to the loggers `told`."""
    shown = LoggedProgress(progress, told, folder.path if folder else None) if told else progress
    config = session.config
    once = not session.method.accumulate
    with (
        computing(config.precision, config.deterministic, session.device),
        overlapping(session.model, once),
    ):
        Trainer(session, folder, shown, lock, minutes).run()
    collective.barrier()
    unsynchronise(session.model.eval())
    average = session.average.model.eval() if session.average is not None else None
    if average is not None:
        unsynchronise(average)
    return Run(session.model, average, session.history, folder.path if folder else None)  # pyright: ignore


def check_minutes(minutes: float | None) -> None:
    """Raise UserError unless `minutes` is a positive number or None."""
    if minutes is None:
        return
    check_number("max_minutes", minutes)
    if not minutes > 0:
        raise UserError(f"max_minutes must be positive, got {minutes!r}")
