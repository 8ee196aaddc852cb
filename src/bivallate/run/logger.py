"""Where a run's numbers go besides its own folder: the interface of a logger, and what feeds loggers.

A logger is told what a run's folder holds anyway; it changes nothing, and cannot break a run: one that raises
is left out from then on, with a word.
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
"""Minibatches between two lines of steps: reading a number makes an accelerator wait."""


class Logger(Protocol):
    """What a logger can be told. Numbers come as plain floats, steps count minibatches from 1.

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
        """The run starts, or goes on after `step` minibatches; what was told of later ones is void.

        config: the resolved configuration, as in config.toml. folder: the run's, or None.
        """

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of one minibatch: loss, robust (share right under the training attack), lr, weights."""

    def epoch(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of one epoch: the line of metrics.jsonl, as far as it is numbers."""

    def alarm(self, step: int, text: str) -> None:
        """The sentinel has seen something."""

    def figure(self, step: int, name: str, figure: Figure) -> None:
        """A figure, at the end of the run."""

    def end(self) -> None:
        """The run is complete, interrupted or broken: nothing comes after this."""


class LoggedProgress(Progress):
    """Shows what another progress shows, and tells the loggers. On several processes, the first one's."""

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
        """The run starts or goes on."""
        self.shown.begin(session)
        self._begun = True
        self._tell("begin", encode(session.config), self.folder, _step(session))

    def step(self, session: WatchedRun, record: StepRecord, lr: float) -> None:
        """One minibatch is done; every tenth is told."""
        self.shown.step(session, record, lr)
        step = _step(session) + 1
        if self.loggers and step % EVERY == 0:
            values = {"loss": record.loss, "robust": record.correct / record.examples, "lr": lr}
            values |= {"weight_mean": record.weight_mean, "effective": record.effective}
            self._tell("step", step, values | record.logged)

    def epoch(self, session: WatchedRun, line: dict[str, Any]) -> None:
        """One epoch is done and measured."""
        self.shown.epoch(session, line)
        numbers = {
            k: float(v) for k, v in line.items() if isinstance(v, int | float) and not isinstance(v, bool)
        }
        self._tell("epoch", _step(session), numbers)

    def alarm(self, session: WatchedRun, text: str) -> None:
        """The sentinel has seen something."""
        self.shown.alarm(session, text)
        self._tell("alarm", _step(session), text)

    def note(self, text: str) -> None:
        """Something found or mended."""
        self.shown.note(text)

    def end(self, session: WatchedRun) -> None:
        """The run is complete: its curves are drawn."""
        self.shown.end(session)
        history = getattr(session, "history", ())
        if self.loggers and history:
            self._tell("figure", _step(session), "training", curves_figure(history))

    def _tell(self, what: str, *arguments: Any) -> None:
        for logger in list(self.loggers):
            try:
                getattr(logger, what)(*arguments)
            except Exception as error:  # whatever a foreign logger raises: the run goes on without it
                self.loggers.remove(logger)
                name = getattr(logger, "name", type(logger).__name__)
                self.shown.note(
                    f"the logger {name} failed ({type(error).__name__}: {error}) and is left out from here "
                    "on; the run's own record is complete"
                )


def _step(session: WatchedRun) -> int:
    return session.epoch * len(session.batches) + session.step


def curves_figure(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Loss and accuracies over the epochs."""
    from bivallate.style import colour, figure, styled  # plotting takes a second to load, and few log

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
