"""The interface of a logger, and the progress that feeds loggers.

A logger receives the numbers that the run's folder holds. It cannot change or break a run: a logger
that raises is reported and no longer called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from bivallate import collective
from bivallate.parts import encode
from bivallate.run.progress import Progress, WatchedRun
from bivallate.types import StepRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EVERY = 10
"""Minibatches between two calls of `Logger.step`: writing every one would slow fast trainings down."""


class Logger(Protocol):
    """The calls that a logger receives. Numbers are plain floats; steps count minibatches from 1.

    Only the first process calls loggers.

    Example:
        >>> class Printer:
        ...     def begin(self, config, folder, step): print("begins at", step)
        ...     def step(self, step, values): pass
        ...     def epoch(self, step, values): print("epoch", int(values["epoch"]), "after step", step)
        ...     def alarm(self, step, text): print(text)
        ...     def figure(self, step, name, figure): pass
        ...     def end(self): print("ends")
        >>> import bivallate as bv
        >>> _ = bv.train("linear", "digits", "plain", eps=0, epochs=1, log=[Printer()])
        begins at 0
        epoch 1 after step 11
        ends
    """

    def begin(self, config: Mapping[str, Any], folder: Path | None, step: int) -> None:
        """Called when the run starts, or continues after `step` minibatches.

        Numbers that were logged for later minibatches are void.

        Args:
            config: the resolved configuration, as in config.toml.
            folder: the run's folder, or None.
            step: minibatches done so far.
        """

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Called after every tenth minibatch with its numbers.

        They are the loss, "robust" (fraction classified correctly under the training attack), the learning
        rate, the mean weight, the effective sample size, and what the method's parts log.
        """

    def epoch(self, step: int, values: Mapping[str, float]) -> None:
        """Called after each epoch with the numbers in its line of metrics.jsonl."""

    def alarm(self, step: int, text: str) -> None:
        """Called when the sentinel raises an alarm."""

    def figure(self, step: int, name: str, figure: Figure) -> None:
        """Called at the end of the run with a figure of its curves."""

    def end(self) -> None:
        """Called last, whether the run is complete, interrupted or has failed."""


class LoggedProgress(Progress):
    """A progress that passes every call on to another one, and to the loggers of the first process."""

    def __init__(self, shown: Progress, loggers: Sequence[Logger], folder: Path | None) -> None:
        self.shown, self.folder = shown, folder
        self.loggers = list(loggers) if collective.rank() == 0 else []
        self._begun = False

    def __enter__(self) -> LoggedProgress:
        self.shown.__enter__()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self._begun:
            self._tell("end")
        self.shown.__exit__(kind, error, trace)

    def begin(self, session: WatchedRun) -> None:
        """Tell the loggers that the run starts or continues."""
        self.shown.begin(session)
        self._begun = True
        self._tell("begin", encode(session.config), self.folder, _step(session))

    def step(self, session: WatchedRun, record: StepRecord, lr: float) -> None:
        """Log the numbers of every tenth minibatch."""
        self.shown.step(session, record, lr)
        step = _step(session) + 1
        if self.loggers and step % EVERY == 0:
            values = {"loss": record.loss, "robust": record.correct / record.examples, "lr": lr}
            values |= {"weight_mean": record.weight_mean, "effective": record.effective}
            self._tell("step", step, values | record.logged)

    def epoch(self, session: WatchedRun, line: dict[str, Any]) -> None:
        """Log the numbers of the epoch."""
        self.shown.epoch(session, line)
        numbers = {
            k: float(v) for k, v in line.items() if isinstance(v, int | float) and not isinstance(v, bool)
        }
        self._tell("epoch", _step(session), numbers)

    def alarm(self, session: WatchedRun, text: str) -> None:
        """Log an alarm of the sentinel."""
        self.shown.alarm(session, text)
        self._tell("alarm", _step(session), text)

    def note(self, text: str) -> None:
        """Show a note; loggers do not receive it."""
        self.shown.note(text)

    def end(self, session: WatchedRun) -> None:
        """Log a figure of the run's curves."""
        self.shown.end(session)
        history = getattr(session, "history", ())
        if self.loggers and history:
            self._tell("figure", _step(session), "training", curves_figure(history))

    def _tell(self, what: str, *arguments: Any) -> None:
        for logger in list(self.loggers):
            try:
                getattr(logger, what)(*arguments)
            except Exception as error:  # a logger may raise anything; the run continues without it
                self.loggers.remove(logger)
                name = getattr(logger, "name", type(logger).__name__)
                self.shown.note(
                    f"the logger {name} failed ({type(error).__name__}: {error}) and is left out from here "
                    "on; the run's own record is complete"
                )


def _step(session: WatchedRun) -> int:
    return session.epoch * len(session.batches) + session.step


def curves_figure(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw loss and accuracies over the epochs."""
    from bivallate.style import colour, figure, styled  # here, as few runs log and matplotlib loads slowly

    with styled():
        fig, (left, right) = figure(2, width=2, height=2.6)
        epochs = [line["epoch"] for line in history]
        left.plot(epochs, [line["loss"] for line in history], color=colour(0))
        left.set_xlabel("epoch")
        left.set_ylabel("training loss")
        curves = {
            "train_robust": "training, attacked",
            "clean": "held out, clean",
            "robust": "held out, attacked",
        }
        for k, (key, label) in enumerate(curves.items()):
            if all(line.get(key) is not None for line in history):
                right.plot(epochs, [100 * line[key] for line in history], color=colour(k), label=label)
        right.set_xlabel("epoch")
        right.set_ylabel("accuracy (%)")
        right.set_ylim(0, 100)
        right.legend()
    return fig
