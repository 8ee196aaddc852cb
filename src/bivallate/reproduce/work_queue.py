"""The order in which a campaign with several processes does its work.

Cells that share the network of a transfer column are measured when that network is trained. Its training, and
the cells' own, are work by themselves, so that every process has some.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from bivallate.errors import UserError
from bivallate.reproduce.reuse import record_from_another
from bivallate.reproduce.running import Job, train_for

__all__ = ["Training", "Work", "WorkQueue"]


@dataclass(frozen=True)
class Training:
    """A training that is made before the cells that need it are measured.

    Attributes:
        key: text that is equal for equal trainings.
        job: a job that needs it, in whose folders it is made.
        source: name among the job's sources; None for the training of its own cell.
        jobs: all jobs that need it.
    """

    key: str
    job: Job
    source: str | None
    jobs: tuple[Job, ...]

    @property
    def title(self) -> str:
        """Title in messages."""
        return f"training of {self.job.title}" + (f": its source {self.source}" if self.source else "")

    def told(self, job: Job, reason: str) -> str:
        """Why a job fails for which this training failed."""
        own = job.trainings[None] == self.key
        return reason if own else f"the training that its transfer columns need failed: {reason}"

    def make(self) -> None:
        """Train, unless records of other cells serve all jobs. Raises whatever a training raises."""
        if not all(record_from_another(job) for job in self.jobs):
            train_for(self.job, self.source)


Work = Training | Job


@dataclass
class _Cell:
    """A job that waits; `keys`: name of a source, or None for the cell itself -> its training."""

    job: Job
    keys: dict[str | None, str]
    splits: bool = False

    @property
    def sources(self) -> set[str]:
        """The trainings of other networks."""
        return {key for name, key in self.keys.items() if name is not None}

    @property
    def holds(self) -> frozenset[str]:
        """The trainings that nobody else may touch while the cell is measured."""
        return frozenset({self.keys[None]} if self.splits else self.keys.values())


class WorkQueue:
    """The work that has not begun, in the jobs' order.

    A cell with a source that another waiting cell has too comes after its trainings, which are work of their
    own. Any other cell makes its trainings itself. Only one process at a time trains in a folder or measures
    its run; the finished network of a source serves several.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._cells = [_Cell(job, _trainings(job)) for job in jobs]
        users = Counter(key for cell in self._cells for key in cell.sources)
        for cell in self._cells:
            cell.splits = any(users[key] > 1 for key in cell.sources)
        self._trainings = self._needed()
        self._unfinished = set(self._trainings)

    def __len__(self) -> int:
        return len(self._cells) + len(self._trainings)

    @property
    def cells(self) -> int:
        """The number of cells that wait."""
        return len(self._cells)

    def _needed(self) -> dict[str, Training]:
        """The trainings that are work of their own, each once, by their key."""
        users: dict[str, list[tuple[Job, str | None]]] = {}
        for cell in self._cells:
            for name, key in cell.keys.items() if cell.splits else ():
                users.setdefault(key, []).append((cell.job, name))
        return {key: Training(key, *them[0], tuple(job for job, _ in them)) for key, them in users.items()}

    def take(self, busy: frozenset[str]) -> tuple[Work, frozenset[str]] | None:
        """Remove the first work that can begin, and return it with the trainings that it keeps busy.

        Args:
            busy: trainings that the work of other processes keeps busy.
        """
        for cell in self._cells:
            waits = cell.splits and not self._unfinished.isdisjoint(cell.keys.values())
            for key in cell.keys.values() if waits else ():
                if key in self._trainings and key not in busy:
                    return self._trainings.pop(key), frozenset({key})
            if not waits and cell.holds.isdisjoint(busy):
                self._cells.remove(cell)
                return cell.job, cell.holds
        return None

    def finish(self, training: Training, succeeded: bool) -> list[Job]:
        """Note that a training has ended; return the jobs that cannot be done because it failed."""
        self._unfinished.discard(training.key)
        lost = [] if succeeded else [cell for cell in self._cells if training.key in cell.keys.values()]
        lost = [cell for cell in lost if cell.splits]  # another one trains itself, and says what went wrong
        self._cells = [cell for cell in self._cells if cell not in lost]
        wanted = {key for cell in self._cells if cell.splits for key in cell.keys.values()}
        self._trainings = {key: other for key, other in self._trainings.items() if key in wanted}
        return [cell.job for cell in lost]


def _trainings(job: Job) -> dict[str | None, str]:
    """The trainings of a job; none if its cell cannot be configured (running it reports the error)."""
    try:
        return job.trainings
    except UserError:
        return {}
