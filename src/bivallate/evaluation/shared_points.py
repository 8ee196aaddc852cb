"""One evaluation on several processes: each has a share of the points and its own progress file."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bivallate import collective
from bivallate.errors import UserError
from bivallate.evaluation.evaluation_progress import EvaluationProgress
from bivallate.evaluation.state import Position, State
from bivallate.quoting import file_name
from bivallate.types import Passes

__all__ = [
    "SharedProgress",
    "clear",
    "merged",
    "own_file",
    "own_points",
    "own_progress_file",
    "partial_files",
    "progress_files",
]

Known = Callable[[State, Tensor, Path], State]

OF_PROCESS = re.compile(r"\.(\d+)-of-(\d+)")
LOOK = 0.5  # seconds between two reads of the other processes' progress


def own_points(rows: Tensor) -> Tensor:
    """This process's points: every `world`-th, so that all processes have about as many robust ones."""
    return rows[collective.rank() :: collective.world_size()]


def own_file(file: str | os.PathLike[str], rank: int, world: int) -> Path:
    """The progress file of a process: `file` itself if there is only one process."""
    path = Path(file)
    return path if world == 1 else path.with_name(f"{path.name}.{rank}-of-{world}")


def progress_files(file: str | os.PathLike[str]) -> dict[tuple[int, int], Path]:
    """(rank, world) -> existing progress files, for any number of processes."""
    path = Path(file)
    found = {(0, 1): path} if path.exists() else {}
    for place in path.parent.glob(f"{_escaped(path.name)}.*-of-*") if path.parent.is_dir() else ():
        match = OF_PROCESS.fullmatch(place.name.removeprefix(path.name))
        if match:
            found[int(match[1]), int(match[2])] = place
    return found


def _escaped(name: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", name)


def partial_files(place: Path | None, labels: Iterable[str]) -> dict[str, Path | None]:
    """The progress file of each of several models, beside the result's file; None if there is no file."""
    if place is None:
        return dict.fromkeys(labels)
    return {label: place.with_name(f".{place.name}-{file_name(label)}.partial") for label in labels}


def clear(*files: Path | None) -> None:
    """Remove the progress files of all processes, after the result is saved; only the first process does."""
    for file in files if collective.rank() == 0 else ():
        for progress in progress_files(file).values() if file is not None else ():
            progress.unlink(missing_ok=True)


def own_progress_file(file: str | os.PathLike[str], n: int, key: str, known: Known, *, several: bool) -> Path:
    """This process's progress file.

    If another number of processes has left files, the first process divides them anew. If one of those files
    is missing, they are removed and the evaluation begins anew.

    Args:
        n: number of points of the evaluation. key: of the evaluation. several: whether processes share it.
        known: (state, its points, file) -> the state. Raises UserError if it belongs to another model.

    Raises:
        UserError: on all processes, for a file that cannot be resumed.
    """
    rank, world = (collective.rank(), collective.world_size()) if several else (0, 1)
    failed = None
    if rank == 0:
        try:
            _rearrange(file, n, key, known, world)
        except UserError as error:
            failed = error
    if several:
        collective.raise_on_all_ranks(failed)
    elif failed is not None:
        raise failed
    return own_file(file, rank, world)


def _rearrange(file: str | os.PathLike[str], n: int, key: str, known: Known, world: int) -> None:
    there, every = progress_files(file), torch.arange(n)
    others = {were for _, were in there if were != world}
    for were in others if len(others) == 1 and sum(k[1] in others for k in there) == max(others) else ():
        states = [
            known(State.load(there[rank, were], key), every[rank::were], there[rank, were])
            for rank in range(were)
        ]
        whole = merged(states, n)
        for rank in range(world):
            rows = every[rank::world]
            known(_cut(whole, rank, world), rows, Path(file)).save(own_file(file, rank, world), key)
    for (_, were), place in there.items():
        if were != world:
            place.unlink(missing_ok=True)


def _cut(whole: State, rank: int, world: int) -> State:
    """A process's share of a state and its passes, set back to the beginning of the present turn."""
    share = whole.select(slice(rank, None, world))
    forward, backward = (
        total // world + (rank < total % world) for total in (whole.passes.forward, whole.passes.backward)
    )
    at, passes = replace(whole.position, offset=0), Passes(forward, backward)
    return replace(share, position=at, passes=passes, sample=torch.zeros(0, 0))


def merged(states: Sequence[State], n: int) -> State:
    """Merge the states of all processes into one state of n points.

    State k has the points k, k + number of states, .... The position is the beginning of the present turn of
    the process that is furthest behind. Points that were broken later stay broken.
    """
    if len(states) == 1:
        return states[0]
    whole = State.of(n, states[0].batch_size, states[0].threads)
    for k, state in enumerate(states):
        for key, column in whole.point_columns.items():
            column[k :: len(states)] = state.point_columns[key]
        whole.passes = whole.passes + state.passes
    behind = min((s.position for s in states), key=lambda p: (p.stage_number, p.turn))
    classes = min(state.classes for state in states)
    seconds = max(state.seconds for state in states)
    return replace(
        whole, position=Position(behind.stage_number, behind.turn), classes=classes, seconds=seconds
    )


class SharedProgress:
    """The progress of all processes, shown by the first one; the others report theirs to it.

    Args:
        show: called on the first process.
        topic: a text that is equal on all processes, and different for each evaluation.
    """

    def __init__(self, show: Callable[[Any], object] | None, topic: str, points: int) -> None:
        self._show, self._topic, self._points = show, topic, points
        self._last: EvaluationProgress | None = None
        self._tell(0.0, points, None)
        collective.barrier()

    def __call__(self, moment: EvaluationProgress) -> None:
        self._last = moment
        self._tell(moment.fraction, moment.living, moment.seconds_left)
        self._look()

    def finish(self, state: State, n: int) -> State:
        """Report that this share is done; the first process shows the others' progress until all are done.

        Returns the state of all n points, on every process.
        """
        living = self._last.living if self._last is not None else 0
        self._tell(1.0, living, 0.0)
        while self._show is not None and self._last is not None and self._look() < 1:
            time.sleep(LOOK)
        return merged(collective.gather_objects(state), n)

    def _tell(self, fraction: float, living: int, left: float | None) -> None:
        own = {"fraction": fraction, "points": self._points, "living": living, "left": left}
        collective.post(f"{self._topic}/{collective.rank()}", json.dumps(own))

    def _look(self) -> float:
        """Show the progress of all, and return the fraction that the slowest process has done."""
        if collective.rank() or self._show is None or self._last is None:
            return 1.0
        told = [collective.posted(f"{self._topic}/{rank}") for rank in range(collective.world_size())]
        every = [json.loads(text) for text in told if text is not None]
        points, living = (sum(share[name] for share in every) for name in ("points", "living"))
        fraction = sum(share["fraction"] * share["points"] for share in every) / max(1, points)
        waits = [share["left"] for share in every]
        left = None if None in waits else max(waits)
        whole = {"points": points, "living": living, "robust_accuracy": living / max(1, points)}
        self._show(replace(self._last, fraction=fraction, seconds_left=left, **whole))
        return min(share["fraction"] for share in every)
