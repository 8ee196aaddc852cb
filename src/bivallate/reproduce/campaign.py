"""A campaign: run many cells, several at once; a cell with a record is not run again."""

from __future__ import annotations

import multiprocessing
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from bivallate.data.workers import end_with_parent
from bivallate.errors import UserError
from bivallate.reproduce.definition import is_of_cell, lacking
from bivallate.reproduce.records import read_record
from bivallate.reproduce.reuse import record_from_another
from bivallate.reproduce.running import Job, record_path, run_job
from bivallate.reproduce.work_queue import Training, Work, WorkQueue
from bivallate.run.progress import Progress
from bivallate.run.signals import Interrupted
from bivallate.terminal import say

__all__ = ["Outcome", "pending", "run_campaign"]


@dataclass
class Outcome:
    """The results of a campaign's jobs.

    Attributes:
        done: paths of the records that were written.
        skipped: titles of the jobs that had a record already.
        failed: title -> reason.
    """

    done: list[Path] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def pending(jobs: Sequence[Job]) -> list[Job]:
    """The jobs without a readable record that matches the present definition of their cell."""
    return [job for job in jobs if not _recorded(job)]


def _recorded(job: Job) -> bool:
    if not path_of(job).exists():
        return False
    try:
        entry = read_record(path_of(job)).entry
    except UserError:  # damaged: the cell is run again
        return False
    return is_of_cell(entry, job.cell, job.seed, job.sources) and not lacking(entry, job.cell)


def path_of(job: Job) -> Path:
    """Path of a job's record."""
    return record_path(job.out, job.table, job.scale, job.cell, job.seed)


def run_campaign(
    jobs: Sequence[Job],
    *,
    at_once: int = 1,
    say: Callable[[str], object] | None = None,
    until: float | None = None,
    shown: Callable[[str], Progress] | None = None,
) -> Outcome:
    """Run every pending job, in order. A cell that fails is reported, and the others continue.

    Args:
        jobs: the jobs.
        at_once: number of processes; 1 runs in this process.
        say: called with one line for each event.
        until: value of `time.monotonic()` after which no cell is started.
        shown: function from a training's title to its progress; used if at_once is 1.

    Raises:
        UserError: at_once is below 1.
        Interrupted: a signal asked to stop; all trainings can be continued.
    """
    if at_once < 1:
        raise UserError(f"--jobs must be at least 1, got {at_once}")
    speak = say or (lambda line: None)
    outcome, waiting = Outcome(), pending(jobs)
    outcome.skipped = [job.title for job in jobs if job not in waiting]
    if outcome.skipped:
        speak(f"{len(outcome.skipped)} of {len(jobs)} cells have their record already")
    late = lambda: until is not None and time.monotonic() > until  # noqa: E731
    if at_once == 1:
        _here(waiting, outcome, speak, late, shown)
    else:
        _Workers(waiting, outcome, speak, late).work(at_once)
    return outcome


def _here(
    waiting: list[Job],
    outcome: Outcome,
    speak: Callable[[str], object],
    late: Callable[[], bool],
    shown: Callable[[str], Progress] | None,
) -> None:
    for place, job in enumerate(waiting, 1):
        if late():
            speak(f"time is up: {len(waiting) - place + 1} cells are left for a later run")
            return
        begun = time.monotonic()
        speak(f"[{place}/{len(waiting)}] {job.title}")
        result = _attempt(job, shown(job.cell.row) if shown is not None else None)
        _note(outcome, job, result, time.monotonic() - begun, speak)


def _attempt(work: Work, progress: Progress | None = None) -> tuple[bool, str]:
    """Run a job or make a training; return whether it succeeded, and the path of the record or the reason."""
    try:
        if isinstance(work, Training):
            work.make()
            return True, ""
        return True, str(record_from_another(work) or run_job(work, progress))
    except Interrupted:
        raise
    except UserError as error:
        return False, str(error)
    except Exception as error:  # one cell must not end a campaign
        return False, f"{type(error).__name__}: {error}\n{traceback.format_exc()}"


def _note(
    outcome: Outcome, job: Job, result: tuple[bool, str], seconds: float, speak: Callable[[str], object]
) -> None:
    good, text = result
    if good:
        outcome.done.append(Path(text))
        speak(f"    done in {seconds:.0f} s: {text}")
    else:
        outcome.failed[job.title] = text
        speak(f"    FAILED: {job.title}: {text}")


def _serve(pipe: Connection) -> None:
    """Do work in a worker until None is received or the campaign's process has ended."""
    # A worker that outlived a killed campaign would train in the same folder as the next campaign's worker.
    # It may end at any moment: a resumed training repeats what was done since the last checkpoint.
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        while (work := pipe.recv()) is not None:
            pipe.send(_attempt(work))
    except Interrupted:
        sys.exit(130)  # the training is saved; the campaign notices the closed pipe
    except (EOFError, ConnectionError):
        sys.exit(1)  # the campaign's process has ended


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    work: Work | None = None
    trainings: frozenset[str] = frozenset()  # which the work keeps busy
    begun: float = 0.0


class _Workers:
    """Worker processes with one piece of work each at a time; a process that dies is replaced."""

    def __init__(
        self, waiting: list[Job], outcome: Outcome, speak: Callable[[str], object], late: Callable[[], bool]
    ) -> None:
        self.queue = WorkQueue(waiting)
        self.outcome, self.speak, self.late = outcome, speak, late
        self.total = len(waiting)
        self.context = multiprocessing.get_context("spawn")
        self.workers: list[_Worker] = []

    def work(self, size: int) -> None:
        """Run all jobs on `size` processes, or fewer if there is less work."""
        try:
            for _ in range(min(size, len(self.queue))):
                self._give(self._hire())
            while any(worker.work is not None for worker in self.workers):
                self._listen()
        finally:
            for worker in self.workers:  # all are told to end before the first one is waited for
                self._dismiss(worker)
            for worker in self.workers:
                worker.process.join(timeout=30)

    def _hire(self) -> _Worker:
        mine, theirs = self.context.Pipe()
        process: Any = self.context.Process(target=_serve, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        worker = _Worker(process, mine)
        self.workers.append(worker)
        return worker

    def _give(self, worker: _Worker) -> None:
        busy = frozenset[str]().union(*(w.trainings for w in self.workers if w.work is not None))
        found = None if self.late() else self.queue.take(busy)
        if found is None:
            return
        worker.work, worker.trainings = found
        worker.begun = time.monotonic()
        cell = isinstance(worker.work, Job)
        self.speak(f"[{self.total - self.queue.cells}/{self.total}] " * cell + worker.work.title)
        worker.pipe.send(worker.work)

    def _listen(self) -> None:
        busy = {worker.pipe: worker for worker in self.workers if worker.work is not None}
        for pipe in wait(list(busy)):
            worker = busy[pipe]  # pyright: ignore[reportArgumentType]
            assert worker.work is not None
            try:
                result = worker.pipe.recv()
            except (EOFError, ConnectionError):  # the process has died
                worker.process.join()
                result = False, f"its process died (exit status {worker.process.exitcode})"
                self.workers.remove(worker)
            self._end(worker.work, result, time.monotonic() - worker.begun)
            worker.work = None
            if worker not in self.workers and len(self.queue):
                self._hire()
        for worker in self.workers:
            if worker.work is None:
                self._give(worker)

    def _end(self, work: Work, result: tuple[bool, str], seconds: float) -> None:
        """Note a result; the cells whose training failed have failed with it."""
        if isinstance(work, Job):
            _note(self.outcome, work, result, seconds, self.speak)
            return
        good, reason = result
        if good:
            self.speak(f"    done in {seconds:.0f} s: {work.title}")
        for job in self.queue.finish(work, good):
            _note(self.outcome, job, (False, work.told(job, reason)), seconds, self.speak)

    def _dismiss(self, worker: _Worker) -> None:
        if worker.work is None and worker.process.is_alive():
            worker.pipe.send(None)
        else:
            worker.process.terminate()


def to_stderr(line: str) -> None:
    """Print a line to standard error."""
    say(line, to_stderr=True)
