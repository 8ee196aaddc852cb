"""The runs of a sweep: train and attack those that are missing, several at a time."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from bivallate.commands.sweep_budget import with_plans
from bivallate.commands.sweep_cells import Combination, SweepOptions
from bivallate.errors import UserError
from bivallate.evaluation import attack_named
from bivallate.evaluation.progress_display import duration
from bivallate.evaluation.threat_union import members, radius, same_threat
from bivallate.files import make_folder, write_json
from bivallate.quoting import line
from bivallate.reports.collect import RunRecord, collect
from bivallate.reports.comparison.comparable import EvaluationFilter
from bivallate.reports.comparison.compare_runs import compare_by
from bivallate.reports.comparison.comparison_table import Comparison
from bivallate.run.config import Config
from bivallate.run.folder import RunFolder
from bivallate.run.signals import Interrupted, Request, interruptible
from bivallate.schema import read_json
from bivallate.terminal import say

__all__ = ["compared", "run_all", "unchanged"]

STATE, LOGS = "sweep.json", "logs"  # the arguments of every run, and the folder of their output


class SweepStopped(Exception):
    """A process of the sweep was interrupted, or was not started because the sweep stops."""


def unchanged(out: Path, cells: Sequence[Combination]) -> None:
    """Raise UserError if a folder holds a run with other arguments or one of no sweep."""
    kept = _state(out)
    for cell in cells:
        before = kept.get(cell.name)
        if before is not None and before != list(cell.train):
            other = sorted({*before} ^ {*cell.train})
            raise UserError(
                f"{cell.folder} was trained with other settings ({', '.join(other)}): name another --out, or "
                "vary them with --set"
            )
        if before is None and not RunFolder(cell.folder).free:
            raise UserError(f"{cell.folder} is there already and is not of this sweep: name another --out")


def _state(out: Path) -> dict[str, Any]:
    place = out / STATE
    return read_json(place, "record of a sweep", dict[str, Any]) if place.exists() else {}


def run_all(out: Path, cells: Sequence[Combination], common: SweepOptions) -> list[tuple[str, str]]:
    """Train and attack what is missing of all runs.

    Args:
        out: folder of the sweep.
        cells: its combinations.
        common: settings of all runs.

    Returns:
        (name, last line of output) of every run that failed.

    Raises:
        Interrupted: on a request to stop, after running trainings have saved their state.
    """
    make_folder(out / LOGS)
    write_json(out / STATE, {**_state(out), **{cell.name: list(cell.train) for cell in cells}})
    radii, failed, done = _radii(cells), list[tuple[str, str]](), 0
    with interruptible() as request, ThreadPoolExecutor(common.jobs) as pool:
        crew = SweepProcesses(out, common, radii)
        waiting: dict[Future[str], Combination] = {pool.submit(crew.complete, cell): cell for cell in cells}
        while waiting:
            finished, _ = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
            for future in finished:
                cell, done = waiting.pop(future), done + 1
                why = _reason(future)
                failed += [(cell.name, why)] if why else []
                said = f"failed: {why}" if why else future.result()
                say(f"{done} of {len(cells)}  {cell.name}: {said}", to_stderr=True)
            if request.made:
                _stop(crew, waiting, request)
    return failed


def _reason(future: Future[str]) -> str:
    error = future.exception()
    if error is not None and not isinstance(error, UserError | SweepStopped):
        raise error
    return "" if error is None else str(error)


def _stop(crew: SweepProcesses, waiting: dict[Future[str], Combination], request: Request) -> None:
    for future in waiting:
        future.cancel()
    crew.stop()
    wait(waiting)
    raise Interrupted("interrupted; what was done is kept: the same command goes on from there")


class SweepProcesses:
    """The processes that train and attack the runs of a sweep.

    Attributes:
        out: folder of the sweep.
        common: settings of all runs.
        within: threats that every run is attacked within: those of all combinations.
    """

    def __init__(self, out: Path, common: SweepOptions, radii: list[Any]) -> None:
        self.out, self.common = out, common
        self.within = list(dict.fromkeys(one for threat in radii for one in members(threat)))
        self._running: set[subprocess.Popen[bytes]] = set()
        self._over, self._lock = False, threading.Lock()

    def complete(self, cell: Combination) -> str:
        """Train and attack what is missing of one run.

        Returns:
            A line with its robust accuracy and what was done.

        Raises:
            UserError: a process failed. SweepStopped: the sweep was asked to stop.
        """
        began, did = time.monotonic(), list[str]()
        method, model = (f"--{k}={v}" if (v := cell.own.get(k)) else "" for k in ("method", "model"))
        threads = f"--threads={self.common.each}"
        if RunFolder(cell.folder).free:
            did.append("trained")
            self._run(cell, ["train", *cell.train, threads, f"--out={cell.folder}", "--quiet"])
        elif not _trained(cell.folder):
            did.append("went on")
            self._run(cell, ["resume", str(cell.folder), method, model, threads, "--quiet"])
        for threat in self.within:
            if self._score(cell, threat) is None:
                did += [] if did[-1:] == ["attacked"] else ["attacked"]
                more = [*self.common.words("data-dir", "device"), threads, "--quiet", model]
                more += [f"--n={self.common.n}"] if self.common.n else []
                ball = [f"--eps={threat.eps!r}", f"--norm={type(threat).__name__.lower()}"]
                self._run(
                    cell, ["evaluate", str(cell.folder), f"--attack={self.common.attack}", *ball, *more]
                )
        robust = self._score(cell, cell.threat)
        shown = f"robust {robust:.1%} at {radius(cell.threat)}" if robust is not None else ""
        took = f" ({duration(time.monotonic() - began)})" if did else ""
        return f"{shown}, {' and '.join(did) or 'was done'}{took}"

    def _score(self, cell: Combination, threat: Any) -> float | None:
        """The stored robust accuracy within a threat; None if there is none."""
        name = attack_named(self.common.attack).name
        for e in _record(cell.folder).within(threat):
            if not e.stale and EvaluationFilter("best", "test", name, points=self.common.points).fits(e):
                return e.score.robust_accuracy
        return None

    def _run(self, cell: Combination, words: list[str]) -> None:
        """Run one command in its own process, with its output in the run's log file."""
        log = self.out / LOGS / f"{cell.name}.txt"
        call = [sys.executable, "-P", "-m", "bivallate", *filter(None, words)]
        with log.open("ab") as stream:
            with self._lock:
                if self._over:
                    raise SweepStopped("interrupted")
                process = subprocess.Popen(call, stdout=stream, stderr=stream, start_new_session=True)
                self._running.add(process)
            status = process.wait()
        with self._lock:
            self._running.discard(process)
        if self._over:
            raise SweepStopped("interrupted")
        if status:
            raise UserError(f"{_last_line(log)} (all of it is in {log})")

    def stop(self) -> None:
        """Interrupt all processes, which save their state and end, and start no more."""

        with self._lock:
            self._over = True
            for process in self._running:
                process.send_signal(getattr(signal, "SIGINT", signal.SIGTERM))


def _last_line(log: Path) -> str:
    lines = log.read_bytes()[-4000:].decode("utf-8", "replace").strip().splitlines()
    return line(lines[-1].removeprefix("bivallate: "), 300) if lines else "it ended without a word"


def _trained(folder: Path) -> bool:
    """Whether the run has finished all its epochs, or ended by `patience`."""
    run = RunFolder.open(folder)
    return Config.read(run.config).ended(run.read_metrics())


def _record(folder: Path) -> RunRecord:
    return collect([folder])[0]


def _radii(cells: Sequence[Combination]) -> list[Any]:
    """The distinct threats of the combinations, in their order."""
    found: list[Any] = []
    for cell in cells:
        if not any(same_threat(cell.threat, threat) for threat in found):
            found.append(cell.threat)
    return found


def compared(cells: Sequence[Combination], common: SweepOptions, failed: Sequence[str]) -> list[Comparison]:
    """Compare the finished runs, averaged over the seeds, in one table for each radius.

    Args:
        failed: names of the combinations to leave out.
    """
    costs = {cell.folder: cell.cost for cell in cells if cell.name not in failed}
    done = list(costs)
    seeds = {cell.train[-1] for cell in cells if cell.name not in failed}
    if not done:
        return []
    records, attack = collect(done), attack_named(common.attack).name
    filters = (
        EvaluationFilter("best", "test", attack, threat=threat, points=common.points)
        for threat in _radii(cells)
    )
    tables = [compare_by(wanted, records, done, over_seeds=len(seeds) > 1) for wanted in filters]
    planned = {folder: cost for folder, cost in costs.items() if cost is not None}
    return [with_plans(table, planned, common.passes) for table in tables] if common.passes else tables
