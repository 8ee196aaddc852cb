"""What a person sees of a run while it goes on."""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console
from rich.live import Live
from rich.progress import TimeRemainingColumn

from bivallate.evaluation.progress_display import EVERY, SHORT, duration
from bivallate.quoting import visible
from bivallate.safe_streams import SafeStream
from bivallate.terminal import bar, literal_console
from bivallate.types import StepRecord

SURE = 3.0  # seconds after which the pace is known


class WatchedRun(Protocol):
    """What progress needs to know of a session."""

    epoch: int
    step: int
    config: Any
    dataset: Any
    batches: Any
    best: float
    best_epoch: int


class Progress:
    """The progress that shows nothing, for runs in memory and for tests; the base of all others."""

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def begin(self, session: WatchedRun) -> None:
        """The run starts or goes on."""

    def step(self, session: WatchedRun, record: StepRecord, lr: float) -> None:
        """One minibatch is done."""

    def epoch(self, session: WatchedRun, line: dict[str, Any]) -> None:
        """One epoch is done and measured."""

    def alarm(self, session: WatchedRun, text: str) -> None:
        """The sentinel has seen something."""

    def note(self, text: str) -> None:
        """Something that was found or mended, which is no error; may come before `begin`."""
        warnings.warn(text, stacklevel=3)

    def end(self, session: WatchedRun) -> None:
        """The run is complete."""


def attacks(line: Mapping[str, Any]) -> bool:
    """Whether the training of an epoch attacked its images.

    It took more than the one forward pass of its loss.
    """
    return line.get("forward", math.inf) > 1


def legend(session: WatchedRun) -> str:
    """What the numbers of an epoch's line mean."""
    text = "train robust: of the training images, right under the attack that they are trained with"
    text += " (train right: nobody attacks them)"
    if session.dataset.validation is not None:
        text += f"; held-out: clean, and robust under PGD-{session.config.validation.steps} at the full eps"
    text += "; averaged: robust, of the averaged weights" if session.config.average else ""
    text += "; w: mean weight of the images, ess: how many of them count (100%: all alike)"
    return text + "; F, B: forward and backward passes an image"


def describe(line: dict[str, Any], epochs: int) -> str:
    """One epoch in one line of text."""
    text = f"epoch {line['epoch']:>3}/{epochs}  loss {line['loss']:.3f}"
    text += f"  train {'robust' if attacks(line) else 'right '} {line['train_robust']:6.1%}"
    text += f" at eps {line['eps']:.3g}" if "eps" in line else ""
    if "robust" in line:
        text += f"  held-out clean {line['clean']:6.1%} robust {line['robust']:6.1%}"
    if "average_robust" in line:
        text += f"  averaged {line['average_robust']:6.1%}"
    text += f"  w {line['weight_mean']:.2f} (ess {line['effective']:4.0%})"
    return text + f"  {line['forward']:.3g}F+{line['backward']:.3g}B  {line['seconds']:.1f}s"


class TerminalProgress(Progress):
    """Shows a bar with the running numbers on a terminal, and a line an epoch.

    Lines alone where there is no terminal, also within a long epoch. Before the first of them, what their
    numbers mean, unless that has been said. `quiet`: alarms alone.
    """

    def __init__(
        self,
        title: str,
        console: Console | None = None,
        every: int = 1,
        explain: bool = True,
        quiet: bool = False,
    ) -> None:
        self.console = console or literal_console(beside=True, soft_wrap=True)
        if console is None:
            self.console.file = SafeStream(lambda: sys.stderr)  # pyright: ignore[reportAttributeAccessIssue]
        self.title, self.every, self.explain = visible(title), every, explain
        self.quiet = quiet
        self._bar = bar(self.console, TimeRemainingColumn(elapsed_when_finished=True))
        self._live: Live | None = None
        self._shown = self._began = 0.0
        self._spoken: float | None = None
        self._first = 0

    def __enter__(self) -> TerminalProgress:
        self._drawn = self.console.is_terminal and not self.quiet
        if self._drawn:
            self._bar.start()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self._drawn:
            self._bar.stop()

    def begin(self, session: WatchedRun) -> None:
        """The run starts or goes on."""
        total = session.config.epochs * len(session.batches)
        done = session.epoch * len(session.batches) + session.step
        self._began, self._first, self._spoken = time.monotonic(), done, None
        if self.explain and not self.quiet:
            self.console.print(legend(session), markup=False, style="dim")
        self._task = self._bar.add_task(self.title, total=total, completed=done, numbers="")

    def step(self, session: WatchedRun, record: StepRecord, lr: float) -> None:
        """Move the bar, at most ten times a second."""
        done = session.epoch * len(session.batches) + session.step + 1
        now = time.monotonic()
        if now - self._shown < 0.1:
            return
        self._shown = now
        accuracy = record.correct / record.examples
        what = "robust" if record.passes.forward > record.examples else "right"
        numbers = (
            f"epoch {session.epoch + 1}/{session.config.epochs} loss {record.loss:.3f} {what} {accuracy:.0%}"
        )
        numbers += f" w {record.weight_mean:.2f} ess {record.effective:.0%} lr {lr:.3g}"
        total = session.config.epochs * len(session.batches)  # other phases have other minibatches
        self._bar.update(self._task, completed=done, total=total, numbers=numbers)
        if not self._drawn and not self.quiet:
            self._speak(session, done, now)

    def _speak(self, session: WatchedRun, done: int, now: float) -> None:
        """Say how far the run is, where there is no terminal.

        Once when it is known to be long, then every half minute.
        """
        spent, total = now - self._began, session.config.epochs * len(session.batches)
        left = spent * (total - done) / max(1, done - self._first)
        due = spent >= SURE and left > SHORT if self._spoken is None else now - self._spoken >= EVERY
        if not due:
            return
        self._spoken = now
        place = f"epoch {session.epoch + 1}/{session.config.epochs}, minibatch {session.step + 1} of "
        place += f"{len(session.batches)}, about {duration(left)} left"
        self.console.print(f"{self.title}  {place}", markup=False)

    def epoch(self, session: WatchedRun, line: dict[str, Any]) -> None:
        """A line for the epoch."""
        self._bar.update(self._task, completed=session.epoch * len(session.batches))
        last = session.epoch >= session.config.epochs
        if (session.epoch % self.every == 0 or last) and not self.quiet:
            self.console.print(f"{self.title}  {describe(line, session.config.epochs)}", markup=False)

    def alarm(self, session: WatchedRun, text: str) -> None:
        """A line for the alarm."""
        self.console.print(visible(f"{self.title}  ALARM {text}"), markup=False, style="bold red")

    def note(self, text: str) -> None:
        """A line of its own."""
        self.console.print(text, markup=False)

    def end(self, session: WatchedRun) -> None:
        """Why it ended early; the result is the caller's to report."""
        patience = session.config.patience
        if session.epoch < session.config.epochs and not self.quiet:
            text = f"ends after epoch {session.epoch} of {session.config.epochs}: held-out robust accuracy "
            text += f"has not risen since epoch {session.best_epoch + 1} (patience {patience})"
            self.console.print(f"{self.title}  {text}", markup=False)
