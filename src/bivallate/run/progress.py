"""The progress of a run on the terminal."""

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

SURE = 3.0  # seconds after which the speed is measured well enough for an estimate


class WatchedRun(Protocol):
    """The attributes of a session that progress reads."""

    epoch: int
    step: int
    config: Any
    dataset: Any
    batches: Any
    best: float
    best_epoch: int


class Progress:
    """The base of all progress classes; it shows nothing but notes, as warnings."""

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def begin(self, session: WatchedRun) -> None:
        """Called when the run starts or continues."""

    def step(self, session: WatchedRun, record: StepRecord, lr: float) -> None:
        """Called after each minibatch, with its learning rate."""

    def epoch(self, session: WatchedRun, line: dict[str, Any]) -> None:
        """Called after each epoch, with its line of metrics.jsonl."""

    def alarm(self, session: WatchedRun, text: str) -> None:
        """Called when the sentinel raises an alarm."""

    def note(self, text: str) -> None:
        """Called with a note about something found or repaired, which is no error; also before `begin`."""
        warnings.warn(text, stacklevel=3)

    def end(self, session: WatchedRun) -> None:
        """Called when the run is complete."""


def attacks(line: Mapping[str, Any]) -> bool:
    """Whether training attacked the images of an epoch: it took more forward passes than the loss needs."""
    return line.get("forward", math.inf) > 1


def legend(session: WatchedRun) -> str:
    """An explanation of the numbers in an epoch's line."""
    text = "train robust: of the training images, right under the attack that they are trained with"
    text += " (train right: nobody attacks them)"
    if session.dataset.validation is not None:
        text += f"; held-out: clean, and robust under PGD-{session.config.validation.steps} at the full eps"
    text += "; averaged: robust, of the averaged weights" if session.config.average else ""
    text += "; w: mean weight of the images, ess: how many of them count (100%: all alike)"
    return text + "; F, B: forward and backward passes an image"


def describe(line: dict[str, Any], epochs: int) -> str:
    """The numbers of an epoch as one line of text."""
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
    """A progress bar with the current numbers, and one line per epoch.

    Where the output is not a terminal there is no bar; in a long epoch lines appear from time to time.

    Args:
        title: name at the beginning of each line.
        console: where to write; default standard error.
        every: epochs between two lines.
        explain: whether to explain the numbers first.
        quiet: show alarms and notes only.
    """

    def __init__(
        self,
        title: str,
        console: Console | None = None,
        every: int = 1,
        explain: bool = True,
        quiet: bool = False,
    ) -> None:
        self.console = console or literal_console(to_stderr=True, soft_wrap=True)
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
        """Explain the numbers, and start the bar at the session's place."""
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
        total = session.config.epochs * len(session.batches)  # computed anew: phases differ in batch size
        self._bar.update(self._task, completed=done, total=total, numbers=numbers)
        if not self._drawn and not self.quiet:
            self._speak(session, done, now)

    def _speak(self, session: WatchedRun, done: int, now: float) -> None:
        """Print how far the run is: once it is known to take long, and then every half minute."""
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
        """Print a line for every `every`-th epoch and the last."""
        self._bar.update(self._task, completed=session.epoch * len(session.batches))
        last = session.epoch >= session.config.epochs
        if (session.epoch % self.every == 0 or last) and not self.quiet:
            self.console.print(f"{self.title}  {describe(line, session.config.epochs)}", markup=False)

    def alarm(self, session: WatchedRun, text: str) -> None:
        """Print a line for the alarm."""
        self.console.print(visible(f"{self.title}  ALARM {text}"), markup=False, style="bold red")

    def note(self, text: str) -> None:
        """Print the note."""
        self.console.print(text, markup=False)

    def end(self, session: WatchedRun) -> None:
        """Print why a run ended early; the caller reports the result."""
        patience = session.config.patience
        if session.epoch < session.config.epochs and not self.quiet:
            text = f"ends after epoch {session.epoch} of {session.config.epochs}: held-out robust accuracy "
            text += f"has not risen since epoch {session.best_epoch + 1} (patience {patience})"
            self.console.print(f"{self.title}  {text}", markup=False)
